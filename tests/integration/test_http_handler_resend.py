"""If a reused connection ends as a post begins, the post is resent once, in the same attempt."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from order_relay.delivery.answer import Verdict
from order_relay.handlers.http_client import client
from tests.integration.http_client import BODY, post, talking
from tests.support.raw_server import BUSY, OK, TIMED_OUT, Peer, Script, replies

Ending = Callable[[Peer], Awaitable[None]]


@pytest.fixture(autouse=True)
def any_answer_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse the connection, to show that no byte of the answer is left."""
    monkeypatch.setattr(client, "INSTANCE_STATUSES", frozenset())


async def fin(peer: Peer) -> None:
    """The connection is closed."""
    peer.finish()
    await peer.end()


async def rst(peer: Peer) -> None:
    """The connection is reset."""
    peer.reset()


async def timed_out(peer: Peer) -> None:
    """A proxy answers that it timed out waiting for a request, and closes."""
    await peer.send(TIMED_OUT)
    await fin(peer)


ENDINGS = [
    pytest.param(fin, id="FIN"),
    pytest.param(rst, id="RST"),
    pytest.param(timed_out, id="408 and FIN"),
]
WITHOUT_A_BYTE = ENDINGS[:2]


def ending(end: Ending, *, used: bool) -> Script:
    """End the connection instead of answering the first request, or the second if ``used``."""

    async def script(peer: Peer) -> None:
        if used:
            await peer.request()
            await peer.send(OK)
        await peer.request()
        await end(peer)

    return script


@pytest.mark.parametrize("body", [BODY, BODY + b" " * 1_000_000], ids=["small", "large"])
@pytest.mark.parametrize("end", ENDINGS)
async def test_a_used_connection_that_ends(end: Ending, body: bytes) -> None:
    """The same request is resent on a new connection, and its answer counts."""
    async with talking(ending(end, used=True), replies(BUSY)) as (server, http):
        assert (await post(http, "first")).verdict is Verdict.SUCCESS
        answer = await post(http, "second", body)
    assert (answer.status, answer.detail) == (503, "busy")
    assert [(request.connection, request.key) for request in server.requests] == [
        (0, "first"),
        (0, "second"),
        (1, "second"),
    ]
    assert server.requests[1].head == server.requests[2].head
    assert server.requests[1].body == server.requests[2].body == body


@pytest.mark.parametrize("again", WITHOUT_A_BYTE)
@pytest.mark.parametrize("end", ENDINGS)
async def test_a_new_connection_that_ends_too(end: Ending, again: Ending) -> None:
    """If the new connection also ends without a byte, the attempt fails without another resend."""
    async with talking(ending(end, used=True), ending(again, used=False), replies(OK)) as (
        server,
        http,
    ):
        await post(http, "first")
        answer = await post(http, "second")
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        assert answer.failure == "reset"
        assert server.connections == [0, 0, 1]
        assert (await post(http, "third")).verdict is Verdict.SUCCESS
    assert server.connections == [0, 0, 1, 2]


@pytest.mark.parametrize("end", ENDINGS)
async def test_another_used_connection_is_not_tried(end: Ending) -> None:
    """It is resent on a new connection, as other kept ones may have ended, too."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await both.wait()
        await peer.send(OK)
        await peer.request()
        await end(peer)

    both = asyncio.Barrier(2)
    async with talking(script, script, replies(OK)) as (server, http):
        await asyncio.gather(post(http, "first"), post(http, "second"))
        answer = await post(http, "last")
    assert answer.verdict is Verdict.SUCCESS
    first, again = (request.connection for request in server.requests if request.key == "last")
    assert first in (0, 1)
    assert again == 2


@pytest.mark.parametrize("end", WITHOUT_A_BYTE)
async def test_a_first_use_that_ends(end: Ending) -> None:
    """A new connection that ends without a byte is a failed attempt, sent once."""
    async with talking(ending(end, used=False), replies(OK)) as (server, http):
        answer = await post(http)
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        assert answer.failure == "reset"
        assert answer.detail
        assert server.connections == [0]
        assert (await post(http)).verdict is Verdict.SUCCESS


async def test_408_to_a_first_use() -> None:
    """On a new connection 408 is an ordinary answer."""
    async with talking(ending(timed_out, used=False), replies(OK)) as (server, http):
        answer = await post(http)
    assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, 408)
    assert server.connections == [0]


async def test_408_that_keeps_the_connection() -> None:
    """Without Connection: close, 408 on a used connection is an ordinary answer, too."""
    kept = TIMED_OUT.replace(b"Connection: close\r\n", b"")
    async with talking(replies(OK, kept, OK)) as (server, http):
        await post(http)
        assert (await post(http)).status == 408
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 0, 0]


@pytest.mark.parametrize(
    "begun", [b"H", b"HTTP/1.1 20", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["H", "20", "100"]
)
@pytest.mark.parametrize("end", WITHOUT_A_BYTE)
async def test_an_answer_that_has_begun(end: Ending, begun: bytes) -> None:
    """If a used connection ends after a byte of the answer, the attempt fails; it is sent once."""

    async def begin(peer: Peer) -> None:
        await peer.send(begun)
        await end(peer)

    async with talking(ending(begin, used=True), replies(OK)) as (server, http):
        await post(http)
        answer = await post(http)
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        assert answer.failure == "reset"
        assert server.connections == [0, 0]


@pytest.mark.parametrize("end", ENDINGS)
async def test_a_kept_connection_that_ends_between_posts(end: Ending) -> None:
    """If the end is seen before the post, the request is sent only once."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await end(peer)

    async with talking(script, replies(OK)) as (server, http):
        await post(http)
        await server.ended(0)
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 1]
