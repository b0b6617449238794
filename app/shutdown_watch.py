"""Ends the process when the shutdown overruns: a client that waits for a dead broker would."""

from __future__ import annotations

import logging
import os
import threading

from app.standard_streams import drain

logger = logging.getLogger(__name__)


class ShutdownWatch:
    """A deadline that may be set anew; safe at any moment: what is not committed comes again."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def allow(self, seconds: float) -> None:
        """Give the shutdown so long from now on."""
        self.cancel()
        self._timer = threading.Timer(seconds, _end_process, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Let the process go on."""
        if self._timer is not None:
            self._timer.cancel()


def _end_process(after_seconds: float) -> None:
    logger.critical("Shutdown took over %.0f s: ending the process", after_seconds)
    drain()
    os._exit(1)
