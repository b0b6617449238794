"""The sink: an HTTP/1.1 server that answers every POST after a fixed time, and counts.

``python -m benchmarks.sink LATENCY_MS`` prints its port and serves until its standard input ends.
``GET /`` returns the counts as JSON, ``GET /arrivals`` when each order came. It does not use
aiohttp's server, to be far cheaper than the subject.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from typing import cast

import httptools
import uvloop

BODY = b'{"status":"ok"}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + BODY
# The orders of a key have rising numbers; userId is the key (benchmarks.brokers).
ORDER = re.compile(rb'"orderId":(\d+),"userId":(\d+)')


class Counts:
    """The counts of the sink.

    Attributes:
        answered: Requests that were answered.
        last_answer: Time of the last answer, by CLOCK_MONOTONIC, as in other processes.
        arrivals: When each order arrived for the first time, by the same clock.
        last_arrival: Time of the last first arrival.
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
        """Count a request; returns the order's key, for `left`."""
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
        """Record that a request no longer waits, answered or not."""
        self._waiting[key] = self._waiting.get(key, 1) - 1

    def now(self) -> dict[str, float]:
        """The counts, and the time now."""
        return {
            "clock": time.monotonic(),
            "answered": self.answered,
            "last_answer": self.last_answer,
            "arrived": len(self.arrivals),
            "last_arrival": self.last_arrival,
            "repeated": self.repeated,
            "reordered": self.reordered,
            "overlapping": self.overlapping,
        }


class Connection(asyncio.Protocol):
    """One client's connection and its parser's callbacks."""

    def __init__(self, counts: Counts, latency_seconds: float) -> None:
        self._counts = counts
        self._latency_seconds = latency_seconds
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._path = self._body = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path, self._body = url, b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            arrivals = self._path == b"/arrivals"
            text = json.dumps(self._counts.arrivals if arrivals else self._counts.now()).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text)
            self._transport.write(head + text)
            return
        key = self._counts.arrived(self._body)
        if self._latency_seconds:
            self._loop.call_later(self._latency_seconds, self._accept, key)
        else:
            self._accept(key)

    def _accept(self, key: int) -> None:
        self._counts.left(key)
        if not self._transport.is_closing():
            self._transport.write(ANSWER)
            self._counts.answered += 1
            self._counts.last_answer = time.monotonic()


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
