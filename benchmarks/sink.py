"""The sink: an HTTP/1.1 server that answers every POST after a fixed time, and counts.

``python -m benchmarks.sink LATENCY_MS [--count-keys]`` prints its port and serves until its
standard input ends. ``GET /`` returns the counts as JSON. It speaks as much HTTP as is needed to
stay far cheaper than what it measures: keep-alive, bodies with a Content-Length, pipelining.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import cast

import uvloop

BODY = b'{"status":"ok"}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + BODY
LENGTH_REQUIRED = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MAX_HEAD_BYTES = 64 * 1024


class Counts:
    """What the sink has seen."""

    def __init__(self, *, count_keys: bool) -> None:
        self.answered = 0
        self.last_answer = 0.0
        self.repeated = 0
        self._keys: set[bytes] | None = set() if count_keys else None

    def arrived(self, head: bytes) -> None:
        """Note a request; one whose Idempotency-Key came before is a repetition."""
        if self._keys is None:
            return
        key = _header(head, b"\r\nidempotency-key:")
        if key is not None:
            self.repeated += key in self._keys
            self._keys.add(key)

    def as_json(self) -> bytes:
        """The counts; ``clock`` and ``last_answer`` are CLOCK_MONOTONIC, as in other processes."""
        return json.dumps(
            {
                "answered": self.answered,
                "last_answer": self.last_answer,
                "clock": time.monotonic(),
                "repeated": self.repeated if self._keys is not None else None,
            }
        ).encode()


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, counts: Counts, latency_seconds: float) -> None:
        self._counts = counts
        self._latency_seconds = latency_seconds
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while (head_end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[: head_end + 2]
            length = _header(head, b"\r\ncontent-length:")
            if length is None and not head.startswith(b"GET "):
                self._transport.write(LENGTH_REQUIRED)
                self._transport.close()
                return
            request_end = head_end + 4 + int(length or 0)
            if len(buffer) < request_end:
                break
            buffer = buffer[request_end:]
            self._answer(head)
        self._buffer = buffer
        if len(buffer) > MAX_HEAD_BYTES and b"\r\n\r\n" not in buffer:
            self._transport.close()

    def _answer(self, head: bytes) -> None:
        if head.startswith(b"GET "):
            body = self._counts.as_json()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            self._transport.write(body)
            return
        self._counts.arrived(head)
        if self._latency_seconds:
            self._loop.call_later(self._latency_seconds, self._accept)
        else:
            self._accept()

    def _accept(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)
            self._counts.answered += 1
            self._counts.last_answer = time.monotonic()


def _header(head: bytes, name: bytes) -> bytes | None:
    start = head.lower().find(name)
    if start < 0:
        return None
    start += len(name)
    return head[start : head.index(b"\r\n", start)].strip()


async def serve(latency_seconds: float, *, count_keys: bool) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    counts = Counts(count_keys=count_keys)
    server = await loop.create_server(
        lambda: Connection(counts, latency_seconds), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink")
    parser.add_argument("latency_ms", type=float)
    parser.add_argument("--count-keys", action="store_true")
    options = parser.parse_args()
    uvloop.run(serve(options.latency_ms / 1000, count_keys=options.count_keys))


if __name__ == "__main__":
    main()
