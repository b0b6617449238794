"""Stdout and stderr: they accept any text, and a slow reader does not block the worker."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO

from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

MAX_WAITING_LINES = 10_000
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
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - open till the end
            setattr(sys, name, nowhere)


@atexit.register
def drain_streams() -> None:
    """Wait until everything logged is written, 2 s at most; call it before the process ends."""
    for stream in _streams:
        stream.drain(DRAIN_SECONDS)


class NonBlockingStream(io.TextIOBase):
    """Accepts lines without blocking, and writes them to a stream in a thread of its own.

    A pipe that is not read then blocks that thread only. Lines for which the queue has no room are
    dropped. Once the reader continues, an error line tells how many.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        on_left_out: Callable[[], None] = lambda: None,
        max_waiting: int = MAX_WAITING_LINES,
    ) -> None:
        """Write to ``stream``, and queue at most ``max_waiting`` lines.

        ``on_left_out`` is called for each dropped line, in the thread that logs it.
        """
        super().__init__()
        self._stream = stream
        self._on_left_out = on_left_out
        self._left_out = 0
        self._max_waiting = max_waiting
        # This queue can be used again while it is in use: a finalizer may log at any moment.
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()
        _streams.append(self)

    def write(self, text: str) -> int:
        """Accept a line. Never blocks, never raises."""
        if self._queue.qsize() < self._max_waiting:
            self._queue.put(text)
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
        written = threading.Event()
        self._queue.put(written)
        written.wait(seconds)

    def _run(self) -> None:
        told = 0
        while True:
            line = self._queue.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            # The reader may have gone, or the disk be full, and an error cannot be logged.
            with suppress(OSError, ValueError):
                self._stream.write(line)
                self._stream.flush()
            if self._queue.empty() and (left_out := self._left_out) > told:
                logger.error(
                    LogLine("Log lines left out: the log was not read", count=left_out - told)
                )
                told = left_out
