"""Ctrl-C, and the signals that mean the same."""

from __future__ import annotations

import asyncio
import signal


class Interruption:
    """Counts requests to stop: the first asks for a clean stop, the second for a quick one.

    Attributes:
        first: Set by the first request.
        second: Set by the second.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def listen(self) -> None:
        """Take over the signals; must be called in the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.request)

    def request(self) -> None:
        """Ask to stop."""
        (self.second if self.first.is_set() else self.first).set()
