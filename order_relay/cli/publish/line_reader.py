"""Reading the lines of a file or a pipe without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

CHUNK_BYTES = 256 * 1024
CHUNKS_AHEAD = 4
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its line end.

    Attributes:
        number: From 1.
        value: The line's bytes; empty when it is too long.
        too_long: Whether it is over the limit.
    """

    number: int
    value: bytes
    too_long: bool = False


class LineReader:
    """Reads the lines of a file descriptor, which the caller closes.

    A daemon thread reads: a silent pipe delays neither the event loop nor the end of the process.
    (asyncio itself reads no regular files, and would make a shared stdin non-blocking.)

    Attributes:
        bytes_read: The size of the lines returned so far.
    """

    def __init__(self, descriptor: int, *, max_line_bytes: int) -> None:
        """Read from ``descriptor``; lines over ``max_line_bytes`` are not kept in memory."""
        self._descriptor = descriptor
        self._max_line_bytes = max_line_bytes
        self._chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._room = threading.Semaphore(CHUNKS_AHEAD)
        self._stopped = threading.Event()
        self.bytes_read = 0

    def stop(self) -> None:
        """Return no more lines; to be called in the event loop."""
        self._stopped.set()
        self._chunks.put_nowait(b"")  # ends the wait for a chunk

    async def lines(self) -> AsyncIterator[Line]:
        """Yield the lines except blank ones; to be called once.

        Raises:
            OSError: Reading failed.
        """
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="lines", daemon=True).start()
        number = 0
        rest = bytearray()
        too_long = False
        at_end = False
        while not at_end:
            chunk = await self._chunks.get()
            self._room.release()
            if self._stopped.is_set():
                return
            if isinstance(chunk, OSError):
                raise chunk
            at_end = not chunk
            *whole, begun = chunk.split(b"\n")
            for piece in [b""] if at_end else whole:
                rest += piece
                number += 1
                line = self._line(number, rest, too_long)
                self.bytes_read += len(rest) + 1
                rest.clear()
                too_long = False
                if line is not None:
                    yield line
                if self._stopped.is_set():  # while the caller used the line
                    return
            rest += begun
            if len(rest) > self._max_line_bytes:
                self.bytes_read += len(rest)
                rest.clear()
                too_long = True

    def _line(self, number: int, content: bytearray, too_long: bool) -> Line | None:
        if too_long or len(content) > self._max_line_bytes:
            return Line(number, b"", too_long=True)
        value = bytes(content)
        if number == 1:
            value = value.removeprefix(BYTE_ORDER_MARK)
        value = value.strip(b" \t\r")
        return Line(number, value) if value else None

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        chunk: bytes | OSError = b"?"
        while chunk and not isinstance(chunk, OSError) and not self._stopped.is_set():
            self._room.acquire()
            try:
                chunk = os.read(self._descriptor, CHUNK_BYTES)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:
                return  # the loop has ended first
