"""Stdout and stderr: they accept any text, and a slow reader does not block the worker."""

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

# Some ten thousand lines.
MAX_WAITING_CHARACTERS = 4 * 1024 * 1024
# The longest wait at the end of the process.
DRAIN_SECONDS = 2.0
STDERR = 2  # its file descriptor
_streams: list[NonBlockingStream] = []


def escape_unencodable() -> None:
    r"""Print characters that the locale's encoding lacks as ``\u2026``, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # It asks for the file's position, which fails if a pipe has replaced the file.
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


def open_closed_streams() -> None:
    """Open the standard streams that were closed before the start, to ``/dev/null``.

    Else a socket would get the file descriptor of a closed stream, and libuv aborts the process
    when such a socket is closed.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open till the end
            setattr(sys, name, nowhere)


@atexit.register
def drain_streams() -> None:
    """Wait until everything logged is written, 2 s at most; call it before the process ends."""
    for stream in _streams:
        stream.drain(DRAIN_SECONDS)


class NonBlockingStream(io.TextIOBase):
    """Accepts text without blocking, and writes it to a stream in a thread of its own.

    A pipe that is not read then blocks that thread only. Lines that do not fit into the buffer are
    dropped. Once the reader continues, an error line tells how many.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        on_left_out: Callable[[], None] = lambda: None,
        max_waiting: int = MAX_WAITING_CHARACTERS,
    ) -> None:
        """Write to ``stream``, and buffer at most ``max_waiting`` characters.

        ``on_left_out`` is called for each dropped line, in the thread that logs it.
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
        _streams.append(self)

    def write(self, text: str) -> int:
        """Accept text. Never blocks, never raises."""
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
        """Do nothing: the thread writes everything soon."""

    def isatty(self) -> bool:
        """Whether it writes to a terminal."""
        return self._stream.isatty()

    def drain(self, seconds: float) -> None:
        """Wait until everything is written, ``seconds`` at most."""
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
                pass  # the reader has gone or the disk is full, and an error cannot be logged
            with self._changed:
                self._characters -= len(text)
                self._changed.notify_all()
                left_out, self._left_out = self._left_out, 0
            if left_out:
                logger.error(LogLine("Log lines left out: the log was not read", count=left_out))
