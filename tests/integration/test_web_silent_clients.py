"""Silent and slow clients: the web server still serves all others."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

import aiohttp
import pytest

from order_relay.publishing.publisher import Publisher
from order_relay.web.connections import ConnectionLimits
from order_relay.web.order_paid_page import Limits
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import FakeProducer
from tests.support.publish_ways import LOOPBACK, TOPIC, body, serving
from tests.support.waiting import eventually

LIMIT_SECONDS = 60.0
# A deadline that tests wait for; other clients must meet it on a busy machine, too.
HEAD_SECONDS = 2.0
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, data: bytes) -> Self:
        """Send bytes."""
        self._writer.write(data)
        await self._writer.drain()
        return self

    async def status(self) -> int:
        """The status of the next answer, which is read to the end of its body."""
        async with asyncio.timeout(LIMIT_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split()[1])
            for line in head.splitlines():
                if line.startswith("Content-Length: "):
                    await self._reader.readexactly(int(line.split()[1]))
            return status

    async def end(self, seconds: float = LIMIT_SECONDS) -> bytes:
        """Everything received until the server closes the connection.

        Raises:
            TimeoutError: It did not.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._reader.read()
        except ConnectionError:
            return b""

    async def trickle(self, data: bytes) -> bytes:
        """Send byte by byte until the server closes the connection; returns its answer."""
        for byte in data:
            with suppress(TimeoutError, ConnectionError):
                await self.say(bytes((byte,)))
                return await self.end(HEAD_SECONDS / 20)
        return await self.end()

    def close(self) -> None:
        """Close it."""
        self._writer.close()


@dataclass
class Server:
    """A web server, its fakes and its clients."""

    url: str
    kafka: FakeProducer
    http: aiohttp.ClientSession
    closed: Counter[str]
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        """A connection."""
        port = int(self.url.rpartition(":")[2])
        client = Client(*await asyncio.open_connection(LOOPBACK, port))
        self.clients.append(client)
        return client

    async def promise(self, length: int) -> Client:
        """A post whose body does not come; the server waits for it."""
        client = await self.connect()
        await client.say(
            b"POST /order-paid HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length
        )
        assert await client.status() == 100
        return client

    async def live(self) -> int:
        """The status of a health check on a new connection."""
        headers = {"Connection": "close"}
        async with self.http.get(f"{self.url}/health/live", headers=headers) as answer:
            return answer.status

    async def post(self, number: int = 1) -> int:
        """The status of a posted order."""
        headers = {"Content-Type": "application/json"}
        url = f"{self.url}/order-paid"
        async with self.http.post(url, data=body(number), headers=headers) as answer:
            return answer.status


@asynccontextmanager
async def server(*, limits: Limits | None = None, **connections: float) -> AsyncIterator[Server]:
    """A server with these connection limits."""
    kafka, closed = FakeProducer(), Counter[str]()
    publisher = Publisher(kafka, MemoryFallbackStore(), TOPIC)

    def count(reason: str) -> None:
        closed[reason] += 1

    async with (
        serving(
            publisher,
            limits=limits,
            connections=ConnectionLimits(**connections),  # type: ignore[arg-type] # ints, too
            on_closed=count,
        ) as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_SECONDS)) as http,
    ):
        one = Server(url, kafka, http, closed)
        try:
            yield one
        finally:
            for client in one.clients:
                client.close()
            kafka.answers.set()
            await publisher.close()


async def test_heads_that_do_not_come() -> None:
    """Silence, half a head, single bytes, half of a second head: each connection is closed.

    A connection may be idle after an answer.
    """
    async with server(head_seconds=HEAD_SECONDS) as one:
        resting, again = [await (await one.connect()).say(LIVE) for _ in range(2)]
        assert [await resting.status(), await again.status()] == [200, 200]
        await again.say(LIVE[:-2])
        silent, half, slow = [await one.connect() for _ in range(3)]
        await half.say(LIVE[:-2])
        trickle = slow.trickle(LIVE[:-2] + b"X-Long: " + LIVE)
        ends = await asyncio.gather(trickle, *(one.end() for one in (silent, half, again)))
        assert ends == [b""] * 4
        assert one.closed == {"silent": 4}
        assert await (await resting.say(LIVE)).status() == 200


async def test_connections_that_rest_for_too_long() -> None:
    """A connection that is idle after an answer is closed at its limit."""
    async with server(head_seconds=HEAD_SECONDS, idle_seconds=0.01) as one:
        resting = await (await one.connect()).say(LIVE)
        assert await resting.status() == 200
        assert await resting.end() == b""
        assert one.closed == {"silent": 1}


async def test_bodies_that_do_not_come_take_no_room() -> None:
    """Posts that announce 1 MiB and send nothing do not take room from others."""
    limits = Limits(requests=1, total_bytes=1024 * 1024, body_seconds=LIMIT_SECONDS)
    async with server(limits=limits) as one:
        promises = [await one.promise(limits.body_bytes) for _ in range(5)]
        assert [await one.post(number) for number in range(10)] == [202] * 10
        assert len(one.kafka.sent) == 10
        await promises[0].say(b"[" + b" " * (limits.body_bytes - 2) + b"]")
        assert await promises[0].status() == 400  # it was read, and is not an event


async def test_too_many_connections() -> None:
    """Beyond the limit, the connections silent for longest are closed for new ones."""
    async with server(connections=5) as one:
        clients = [await one.connect() for _ in range(50)]
        assert await one.live() == 200
        assert await one.post() == 202
        assert await asyncio.gather(*(client.end() for client in clients[:44])) == [b""] * 44
        assert await (await clients[-1].say(LIVE)).status() == 200
        assert one.closed["silent"] == 0
        assert one.closed["crowded"] >= 45


async def test_too_many_promises() -> None:
    """Posts whose bodies do not come are closed, too, although each is a request in progress."""
    limits = Limits(body_seconds=LIMIT_SECONDS)
    async with server(limits=limits, connections=5) as one:
        promises = [await one.promise(1000) for _ in range(20)]
        assert await one.live() == 200
        assert await asyncio.gather(*(client.end() for client in promises[:15])) == [b""] * 15


async def test_clients_that_wait_for_an_answer_keep_their_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Orders in progress are answered although many connections come, and so are health checks."""
    async with server(connections=5) as one:
        one.kafka.answers.clear()
        waiting = [asyncio.create_task(one.post(number)) for number in range(4)]
        await eventually(lambda: len(one.kafka.sent) == 4)
        for _ in range(50):
            await one.connect()
        assert await one.live() == 200
        assert await one.post() == 429
        assert await one.live() == 200
        one.kafka.answers.set()
        assert await asyncio.gather(*waiting) == [202] * 4
    said = [record.message for record in caplog.records if "Too many conn" in record.message]
    assert said == [
        "Too many connections to the web server, the longest silent ones are closed connections=5"
    ]


async def test_no_connection_can_make_room() -> None:
    """If every client waits for an answer, a new connection is closed at once."""
    async with server(connections=1) as one:
        one.kafka.answers.clear()
        waiting = asyncio.create_task(one.post())
        await eventually(lambda: one.kafka.sent)
        assert await (await one.connect()).end() == b""
        one.kafka.answers.set()
        assert await waiting == 202
        assert one.closed == {"crowded": 1}
