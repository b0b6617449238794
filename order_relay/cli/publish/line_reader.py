"""Reading the lines of a file or a pipe without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

CHUNK_BYTES = 256 * 1024
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

    A daemon thread reads each chunk: a silent pipe delays neither the event loop nor the end of the
    process. (asyncio itself reads no regular files, and would make a shared stdin non-blocking.)

    Attributes:
        bytes_read: How much was read so far.
    """

    def __init__(self, descriptor: int, *, max_line_bytes: int) -> None:
        """Read from ``descriptor``; lines over ``max_line_bytes`` are not kept in memory."""
        self._descriptor = descriptor
        self._max_line_bytes = max_line_bytes
        self._chunk: asyncio.Future[bytes] | None = None
        self._stopped = False
        self.bytes_read = 0

    def stop(self) -> None:
        """Return no more lines; to be called in the event loop."""
        self._stopped = True
        if self._chunk is not None and not self._chunk.done():
            self._chunk.set_result(b"")  # ends the wait for it

    async def batches(self) -> AsyncIterator[list[Line]]:
        """Yield the lines that end in each chunk, except blank ones; to be called once.

        Raises:
            OSError: Reading failed.
        """
        number, rest, chunk = 0, bytearray(), b"?"
        while chunk:
            chunk = await self._next_chunk()
            if self._stopped:
                return
            self.bytes_read += len(chunk)
            first, *others = chunk.split(b"\n") if chunk else (b"", b"")
            # Of a line that is too long, one byte too many is kept.
            rest += first[: self._max_line_bytes + 1 - len(rest)]
            pieces: list[bytes] = []
            if others:
                pieces = [bytes(rest), *others[:-1]]
                rest = bytearray(others[-1][: self._max_line_bytes + 1])
            lines = [self._line(number, piece) for number, piece in enumerate(pieces, number + 1)]
            number += len(pieces)
            yield [line for line in lines if line.value or line.too_long]

    def _line(self, number: int, content: bytes) -> Line:
        if len(content) > self._max_line_bytes:
            return Line(number, b"", too_long=True)
        if number == 1:
            content = content.removeprefix(BYTE_ORDER_MARK)
        return Line(number, content.strip(b" \t\r"))

    async def _next_chunk(self) -> bytes:
        if self._stopped:  # while the last batch was in use
            return b""
        loop = asyncio.get_running_loop()
        chunk: asyncio.Future[bytes] = loop.create_future()
        self._chunk = chunk

        def settle(content: bytes, error: OSError | None) -> None:
            if not chunk.done():
                chunk.set_result(content) if error is None else chunk.set_exception(error)

        def read() -> None:
            content, problem = b"", None
            try:
                content = os.read(self._descriptor, CHUNK_BYTES)
            except OSError as error:
                problem = error
            with suppress(RuntimeError):  # the loop has ended first
                loop.call_soon_threadsafe(settle, content, problem)

        threading.Thread(target=read, name="lines", daemon=True).start()
        return await chunk
