"""Which connections the client of the target reuses, and which it closes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from order_relay.delivery.answer import Answer, Verdict
from order_relay.handlers.http_client import client
from order_relay.handlers.http_client.client import REPLACE_SECONDS, HttpClient
from order_relay.handlers.http_client.connection import Connection
from tests.integration.http_client import BODY, patient_client, post, talking
from tests.support.kafka.ports import LOOPBACK
from tests.support.raw_server import BUSY, OK, Peer, RawServer, replies, unanswered
from tests.support.waiting import eventually

LOOPBACK_6 = "::1"
# More than the system buffers when the receiver does not read.
HUGE = b" " * 20_000_000


async def echo(peer: Peer) -> None:
    """Refuse every request with its own key, after a few turns of the loop."""
    while True:
        key = (await peer.request()).key
        for _ in range(int(key) % 5):
            await asyncio.sleep(0)
        await peer.send(f"HTTP/1.1 422 No\r\nContent-Length: {len(key)}\r\n\r\n{key}".encode())


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (OK, True),
        (b"HTTP/1.1 204 None\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 422 No\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nconnection: x, Close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
    ],
    ids=["200", "204", "body", "chunks", "asked", "close", "list", "error", "HTTP/1.0"],
)
async def test_the_answer_says_whether_its_connection_is_kept(answer: bytes, kept: bool) -> None:
    """HTTP/1.1 keeps it unless the answer says close; the client closes other connections."""
    async with talking(replies(answer)) as (server, http):
        for _ in range(3):
            await post(http)
        if not kept:
            await server.ended(0)
    assert server.connections == ([0, 0, 0] if kept else [0, 1, 2])


async def test_the_next_request_goes_elsewhere_after_a_failure() -> None:
    """Behind a load balancer a connection is one instance, and the failed one may be broken."""

    async def instances(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(BUSY if peer.number == 0 else OK)

    async with talking(instances) as (server, http):
        verdicts = [(await post(http)).verdict for _ in range(5)]
    assert verdicts == [Verdict.RETRYABLE, *[Verdict.SUCCESS] * 4]
    assert server.connections == [0, 1, 1, 1, 1]


async def test_connections_are_not_made_anew_for_each_failure() -> None:
    """At most one in a tenth of a second: a handshake for each 5xx would do more harm."""
    async with talking(replies(BUSY)) as (server, http):
        begun = time.monotonic()
        for _ in range(200):
            await post(http)
        seconds = time.monotonic() - begun
    assert 2 <= len(set(server.connections)) <= 2 + seconds / REPLACE_SECONDS


async def test_one_that_worked_is_used_before_one_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if the failed connection was used last."""
    monkeypatch.setattr(client, "REPLACE_SECONDS", 60.0)
    may_answer = asyncio.Event()

    async def instances(peer: Peer) -> None:
        while True:
            await peer.request()
            if peer.number == 1:
                await peer.send(OK)
            else:
                await may_answer.wait()
                await peer.send(BUSY)

    async with talking(instances) as (server, http):
        may_answer.set()
        await post(http)  # fails, and its connection is replaced
        may_answer.clear()
        assert (await post(http)).verdict is Verdict.SUCCESS
        both = asyncio.gather(post(http, "one"), post(http, "two"))
        await eventually(lambda: len(server.requests) == 4)
        await asyncio.sleep(0)
        may_answer.set()
        await both  # the one that fails comes back last
        assert [(await post(http)).verdict for _ in range(4)] == [Verdict.SUCCESS] * 4
    assert server.connections[-4:] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("status", "closes"), [(200, False), (413, False), (413, True), (503, True)]
)
async def test_an_answer_before_all_was_sent(status: int, closes: bool) -> None:
    """An early answer counts at once; its connection, still sending, is not reused."""

    async def script(peer: Peer) -> None:
        await peer.head()
        close = b"Connection: close\r\n" if closes else b""
        await peer.send(b"HTTP/1.1 %d Early\r\n%sContent-Length: 0\r\n\r\n" % (status, close))
        if closes:
            peer.finish()
        await told.wait()
        await peer.end()

    told = asyncio.Event()
    async with talking(script, replies(OK)) as (server, http):
        assert (await post(http, body=HUGE)).status == status
        assert (await post(http)).verdict is Verdict.SUCCESS
        told.set()
        await server.ended(0)
    assert server.connections == [0, 1]


@pytest.mark.parametrize("max_connections", [10, 100])
async def test_a_hundred_posts_at_a_time(max_connections: int) -> None:
    """Each gets its own answer; connections are reused, and their number is limited."""
    async with talking(echo, max_connections=max_connections) as (server, http):
        for start in (100, 200, 300):
            keys = [str(number) for number in range(start, start + 100)]
            answers = await asyncio.gather(*(post(http, key) for key in keys))
            assert [answer.detail for answer in answers] == keys
    assert len(server.requests) == 300
    assert len(server.peers) <= max_connections


async def test_failed_and_cancelled_posts_free_their_slots() -> None:
    """Failed and cancelled posts free their slots for later posts."""

    async def script(peer: Peer) -> None:
        if (await peer.request()).key == "cancelled":
            begun.set()
            await peer.end()

    begun = asyncio.Event()
    async with talking(script, max_connections=2) as (server, http):
        for _ in range(3):
            assert (await post(http, "reset")).failure == "reset"
            begun.clear()
            posting = asyncio.create_task(post(http, "cancelled"))
            await begun.wait()
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)
            assert posting.cancelled()
    assert server.connections == list(range(6))


@pytest.mark.parametrize("body", [BODY, HUGE], ids=["while waiting", "while sending"])
async def test_a_cancelled_post_closes_its_connection(body: bytes) -> None:
    """Its answer may still come, so no other post may use the connection."""

    async def script(peer: Peer) -> None:
        await peer.head()
        begun.set()
        await cancelled.wait()
        await peer.end()

    begun, cancelled = asyncio.Event(), asyncio.Event()
    async with talking(script, replies(OK), max_connections=1) as (server, http):
        posting = asyncio.create_task(post(http, "cancelled", body))
        await begun.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting
        cancelled.set()
        await server.ended(0)
        assert (await post(http, "next")).verdict is Verdict.SUCCESS
    assert server.connections == [0, 1]


async def test_a_post_cancelled_just_as_its_answer_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the next post has its connection by then, that post still gets its answer."""

    def free_and_tell(self: HttpClient, connection: Connection, status: int) -> None:
        free(self, connection, status)
        freed.set()  # so that the next post goes on before the first one does

    async def cancel_and_post() -> Answer:
        await freed.wait()
        first.cancel()
        return await post(http, "second")

    free, freed = HttpClient.free, asyncio.Event()
    monkeypatch.setattr(HttpClient, "free", free_and_tell)
    async with talking(replies(OK)) as (server, http):
        first = asyncio.create_task(post(http, "first"))
        assert (await cancel_and_post()).verdict is Verdict.SUCCESS
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
    assert server.connections == [0, 0]


async def test_a_post_cancelled_while_it_waits_for_a_connection() -> None:
    """A cancelled post is not sent; its connection goes to the next post."""

    async def script(peer: Peer) -> None:
        await peer.request()
        begun.set()
        await go_on.wait()
        await peer.send(OK)
        await replies(OK)(peer)

    begun, go_on = asyncio.Event(), asyncio.Event()
    async with talking(script, max_connections=1) as (server, http):
        first = asyncio.create_task(post(http, "first"))
        await begun.wait()
        waiting = [asyncio.create_task(post(http, f"waiting-{n}")) for n in range(3)]
        await asyncio.sleep(0)
        for task in waiting[:2]:
            task.cancel()
        go_on.set()
        await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [task.cancelled() for task in waiting] == [True, True, False]
        assert (await post(http, "last")).verdict is Verdict.SUCCESS
    assert [request.key for request in server.requests] == ["first", "waiting-2", "last"]
    assert server.connections == [0, 0, 0]


async def test_stopping_closes_every_connection() -> None:
    """Kept connections are closed when the client stops."""
    async with RawServer(replies(OK)) as server:
        async with patient_client(server.url) as http:
            await asyncio.gather(*(post(http, f"key-{number}") for number in range(5)))
        for number in range(len(server.peers)):
            await server.ended(number)


async def test_a_connection_that_was_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """After more than 4 s a kept connection is not used again: servers close them after 5 s."""
    async with talking(replies(OK)) as (server, http):
        await post(http)
        await post(http)
        now = time.monotonic
        # The event loop's clock, too.
        monkeypatch.setattr(time, "monotonic", lambda: now() + 4.1)
        await post(http)
    assert server.connections == [0, 0, 1]


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Gives a host name these addresses, in this order."""

    def give(*addresses: str) -> str:
        def getaddrinfo(host: Any, port: Any, *args: Any, **more: Any) -> list[Any]:
            if host != "logger.test":
                return real(host, port, *args, **more)
            return [
                found
                for address in addresses
                for found in real(address, port, type=socket.SOCK_STREAM)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return "logger.test"

    real = socket.getaddrinfo
    return give


@pytest.mark.parametrize("listening", [LOOPBACK, LOOPBACK_6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("first", [LOOPBACK, LOOPBACK_6], ids=["IPv4 first", "IPv6 first"])
async def test_a_name_with_two_addresses_of_which_one_listens(
    name: Callable[..., str], first: str, listening: str
) -> None:
    """The post arrives, whichever address listens and whichever comes first."""
    both = (LOOPBACK, LOOPBACK_6) if first == LOOPBACK else (LOOPBACK_6, LOOPBACK)
    async with (
        RawServer(replies(OK), host=listening) as server,
        patient_client(f"http://{name(*both)}:{server.port}/logs") as http,
    ):
        assert (await post(http)).verdict is Verdict.SUCCESS
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 0]
    assert server.requests[0].header("Host") == f"logger.test:{server.port}"


async def test_an_address_that_does_not_answer_delays_no_post(name: Callable[..., str]) -> None:
    """Another address is tried long before the connect time-out of the first one."""
    host = name(LOOPBACK_6, LOOPBACK)
    async with RawServer(replies(OK)) as server:
        with unanswered(LOOPBACK_6, server.port):
            async with patient_client(f"http://{host}:{server.port}/logs") as http:
                assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0]


class SocketOfIPv6(socket.socket):
    """A socket class that has no file descriptor left for IPv4."""

    def __init__(self, family: int, *more: Any, **named: Any) -> None:
        if family == socket.AF_INET:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        super().__init__(family, *more, **named)


async def test_one_of_two_addresses_gets_no_file_descriptor(
    name: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fault of this host, even if the other address refuses the connection."""
    with socket.socket(socket.AF_INET6) as unused:
        unused.bind((LOOPBACK_6, 0))
        url = f"http://{name(LOOPBACK_6, LOOPBACK)}:{unused.getsockname()[1]}/logs"
        async with patient_client(url) as http:
            monkeypatch.setattr(socket, "socket", SocketOfIPv6)
            answer = await post(http)
    assert (answer.verdict, answer.failure) == (Verdict.LOCAL, "local")
    assert os.strerror(errno.EMFILE) in answer.detail
