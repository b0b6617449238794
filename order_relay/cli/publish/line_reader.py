"""Reading lines from a file or a pipe beside the event loop, each as soon as it is there."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

CHUNK_BYTES = 256 * 1024
CHUNKS_AHEAD = 4
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end.

    Attributes:
        number: From 1.
        value: What it holds; empty when it is too long.
        too_long: It is over the limit.
    """

    number: int
    value: bytes
    too_long: bool = False


class LineReader:
    """Reads the lines of a file descriptor; the descriptor is the caller's.

    It is read by a daemon thread, straight from the system: a pipe on which nothing comes keeps
    neither the loop nor the end of the process waiting.

    Attributes:
        bytes_read: How much of it has been handed out.
    """

    def __init__(self, descriptor: int, *, max_line_bytes: int) -> None:
        """Read from ``descriptor``; lines over ``max_line_bytes`` are not kept in memory."""
        self._descriptor = descriptor
        self._max_line_bytes = max_line_bytes
        self._chunks: deque[bytes] = deque()
        self._room = threading.Semaphore(CHUNKS_AHEAD)
        self._news = asyncio.Event()
        self._error: OSError | None = None
        self._stopped = False
        self.bytes_read = 0

    def stop(self) -> None:
        """Hand out no more lines; to be called from the loop."""
        self._stopped = True
        self._news.set()

    async def lines(self) -> AsyncIterator[Line]:
        """Yield the lines, blank ones left out; to be called once.

        Raises:
            OSError: It cannot be read on.
        """
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="lines", daemon=True).start()
        number = 0
        rest = bytearray()
        too_long = False
        while not self._stopped:
            chunk = await self._chunk()
            if chunk is None:
                return
            ended = not chunk
            *whole, begun = chunk.split(b"\n")
            for piece in whole if not ended else [b""]:
                rest += piece
                number += 1
                line = self._line(number, rest, too_long)
                self.bytes_read += len(rest) + 1
                rest.clear()
                too_long = False
                if line is not None:
                    yield line
                if self._is_stopped():  # while the line was being used
                    return
            if ended:
                return
            rest += begun
            if len(rest) > self._max_line_bytes:
                self.bytes_read += len(rest)
                rest.clear()
                too_long = True

    def _is_stopped(self) -> bool:
        return self._stopped

    def _line(self, number: int, content: bytearray, too_long: bool) -> Line | None:
        if too_long or len(content) > self._max_line_bytes:
            return Line(number, b"", too_long=True)
        value = bytes(content)
        if number == 1:
            value = value.removeprefix(BYTE_ORDER_MARK)
        value = value.strip(b" \t\r")
        return Line(number, value) if value else None

    async def _chunk(self) -> bytes | None:
        """Return what was read next; empty at the end, ``None`` when stopped."""
        while not self._chunks and not self._stopped:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        if self._stopped:
            return None
        self._room.release()
        return self._chunks.popleft()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        chunk = b"?"
        try:
            while chunk and not self._stopped:
                self._room.acquire()
                try:
                    chunk = os.read(self._descriptor, CHUNK_BYTES)
                except OSError as error:
                    loop.call_soon_threadsafe(self._failed, error)
                    return
                loop.call_soon_threadsafe(self._arrived, chunk)
        except RuntimeError:
            return  # the loop has ended first

    def _arrived(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._news.set()

    def _failed(self, error: OSError) -> None:
        self._error = error
        self._news.set()
