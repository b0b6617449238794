"""Stdout and stderr: they take any text, and a log that nobody reads makes nobody wait."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

# What waits for a reader: some ten thousand lines.
MAX_WAITING_CHARACTERS = 4 * 1024 * 1024
# At the end of the process.
DRAIN_SECONDS = 2.0
STDERR = 2  # the number of its file descriptor
_patient: list[PatientStream] = []


def take_any_text() -> None:
    r"""Print as ``\u2026`` what the locale's encoding does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # It asks where a file stands, and a pipe may have come in the file's place.
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


def open_closed() -> None:
    """Open what was closed before the start, to nowhere.

    A socket would get the number of a closed stream, and libuv ends a process that closes one.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open till the end
            setattr(sys, name, nowhere)


@atexit.register
def drain() -> None:
    """Let what was logged be written, before the process ends; after a moment without it."""
    for stream in _patient:
        stream.drain(DRAIN_SECONDS)


class PatientStream(io.TextIOBase):
    """Takes text at once, and writes it to a stream by a thread of its own.

    A pipe whose reader stands still then stops that thread alone. What there is no room for is
    left out; once the reader goes on, an error line says how much.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        on_left_out: Callable[[], None] = lambda: None,
        max_waiting: int = MAX_WAITING_CHARACTERS,
    ) -> None:
        """Write to ``stream``, and keep at most ``max_waiting`` characters waiting.

        ``on_left_out`` is called for each line that is left out, by the thread that logs it.
        """
        super().__init__()
        self._stream = stream
        self._on_left_out = on_left_out
        self._left_out = 0
        self._max_waiting = max_waiting
        self._waiting: deque[str] = deque()
        self._characters = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()
        _patient.append(self)

    def write(self, text: str) -> int:
        """Take text; never blocks, never fails."""
        with self._changed:
            if self._characters + len(text) <= self._max_waiting:
                self._waiting.append(text)
                self._characters += len(text)
                self._changed.notify_all()
            else:
                self._left_out += 1
                self._on_left_out()
        return len(text)

    def flush(self) -> None:
        """Do nothing: what was taken is written soon."""

    def isatty(self) -> bool:
        """Whether a terminal is behind it."""
        return self._stream.isatty()

    def drain(self, seconds: float) -> None:
        """Wait until everything is written, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._characters, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                text = "".join(self._waiting)
                self._waiting.clear()
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                pass  # the reader has left, or the disk is full: there is no place to say so
            with self._changed:
                self._characters -= len(text)
                self._changed.notify_all()
                left_out, self._left_out = self._left_out, 0
            if left_out:
                logger.error(LogLine("Log lines left out: nobody read the log", count=left_out))
