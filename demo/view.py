"""Where the snapshots go: a live panel in a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from demo.live_view import render
from demo.plain_view import EVERY_SECONDS, plain_line
from demo.snapshot import Snapshot


class Screen(Protocol):
    """Shows snapshots, as a context manager."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""

    def show(self, now: Snapshot) -> None:
        """Show one moment; may be called many times a second."""


class LivePanel:
    """A panel on the terminal's other screen; what was there before is back at the end.

    There, typed keys and a change of the window's size leave no traces.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(
            console=console,
            auto_refresh=False,
            screen=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, now: Snapshot) -> None:
        """Draw one moment."""
        self._live.update(render(now), refresh=True)


class PlainLines:
    """One line every other second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def show(self, now: Snapshot) -> None:
        """Print one moment if the last is long enough ago."""
        if time.monotonic() - self._last >= EVERY_SECONDS:
            self._last = time.monotonic()
            say(self._console, plain_line(now))


def screen_for(console: Console) -> Screen:
    """Choose by what the console can do."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePanel(console)
    return PlainLines(console)


def say(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no colours, no line breaks of our own."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
