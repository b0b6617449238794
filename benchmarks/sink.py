"""The sink: an HTTP/1.1 server that answers every POST after a fixed time, and counts.

``python -m benchmarks.sink LATENCY_MS`` prints its port and serves until its standard input ends.
``GET /`` returns the counts as JSON, ``GET /arrivals`` when each order came. It speaks as much HTTP
as is needed to stay far cheaper than what it measures: keep-alive, bodies with a Content-Length,
pipelining.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop

BODY = b'{"status":"ok"}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + BODY
LENGTH_REQUIRED = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MAX_HEAD_BYTES = 64 * 1024
# Of each key, orders have rising numbers; the user's number is the key (benchmarks.brokers).
ORDER = re.compile(rb'"orderId":(\d+),"userId":(\d+)')


class Counts:
    """What the sink has seen.

    Attributes:
        answered: Requests that were answered.
        last_answer: When the last one was, by CLOCK_MONOTONIC, as in other processes.
        arrivals: When each order arrived for the first time, by the same clock.
        last_arrival: When the last of them did.
        repeated: Arrivals of an order that had arrived before.
        reordered: Orders that arrived for the first time after a later one of their key.
        overlapping: Orders that arrived for the first time while another of their key waited for
            its answer.
    """

    def __init__(self) -> None:
        self.answered = 0
        self.last_answer = 0.0
        self.arrivals: dict[int, float] = {}
        self.last_arrival = 0.0
        self.repeated = 0
        self.reordered = 0
        self.overlapping = 0
        self._newest: dict[int, int] = {}
        self._waiting: dict[int, int] = {}

    def arrived(self, body: bytes) -> int:
        """Note a request; returns the order's key, for `left`."""
        found = ORDER.search(body)
        if found is None:
            return 0
        order, key = int(found[1]), int(found[2])
        waiting = self._waiting.get(key, 0)
        self._waiting[key] = waiting + 1
        if order in self.arrivals:
            self.repeated += 1
            return key
        self.arrivals[order] = self.last_arrival = time.monotonic()
        self.overlapping += waiting > 0
        if order < self._newest.get(key, 0):
            self.reordered += 1
        else:
            self._newest[key] = order
        return key

    def left(self, key: int) -> None:
        """Note that a request no longer waits, answered or not."""
        self._waiting[key] = self._waiting.get(key, 1) - 1

    def as_json(self) -> bytes:
        """The counts, and what the clock says now."""
        return json.dumps(
            {
                "clock": time.monotonic(),
                "answered": self.answered,
                "last_answer": self.last_answer,
                "arrived": len(self.arrivals),
                "last_arrival": self.last_arrival,
                "repeated": self.repeated,
                "reordered": self.reordered,
                "overlapping": self.overlapping,
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
            body = buffer[head_end + 4 : request_end]
            buffer = buffer[request_end:]
            self._answer(head, body)
        self._buffer = buffer
        if len(buffer) > MAX_HEAD_BYTES and b"\r\n\r\n" not in buffer:
            self._transport.close()

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET "):
            self._tell(head)
            return
        key = self._counts.arrived(body)
        if self._latency_seconds:
            self._loop.call_later(self._latency_seconds, self._accept, key)
        else:
            self._accept(key)

    def _tell(self, head: bytes) -> None:
        if head.startswith(b"GET /arrivals "):
            text = json.dumps(self._counts.arrivals).encode()
        else:
            text = self._counts.as_json()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text))
        self._transport.write(text)

    def _accept(self, key: int) -> None:
        self._counts.left(key)
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


async def serve(latency_seconds: float) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    counts = Counts()
    server = await loop.create_server(
        lambda: Connection(counts, latency_seconds), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink")
    parser.add_argument("latency_ms", type=float)
    uvloop.run(serve(parser.parse_args().latency_ms / 1000))


if __name__ == "__main__":
    main()
