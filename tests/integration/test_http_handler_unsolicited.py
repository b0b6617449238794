"""What a server sends without having been asked is never taken for the answer to a post."""

from asyncio import Event

import pytest

from order_relay.delivery.answer import Verdict
from tests.integration.http_client import post, talking
from tests.support.raw_server import BUSY, OK, TIMED_OUT, Peer, replies

UNSOLICITED = [
    pytest.param(OK, id="an answer"),
    pytest.param(OK[:12], id="part of an answer"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="an interim answer"),
    pytest.param(b"\x00\xff garbage", id="garbage"),
    pytest.param(b"\r\n", id="an empty line"),
]


@pytest.mark.parametrize("unsolicited", UNSOLICITED)
async def test_bytes_behind_an_answer(unsolicited: bytes) -> None:
    """What comes in one packet with an answer ends the connection; the next post has a new one."""
    async with talking(replies(OK + unsolicited), replies(BUSY)) as (server, http):
        assert (await post(http, "first")).verdict is Verdict.SUCCESS
        answer = await post(http, "second")
        await server.ended(0)
    assert (answer.status, answer.detail) == (503, "busy")
    assert [(request.connection, request.key) for request in server.requests] == [
        (0, "first"),
        (1, "second"),
    ]


@pytest.mark.parametrize(
    ("unsolicited", "closes"),
    [
        *(pytest.param(*one.values, False, id=one.id) for one in UNSOLICITED),
        pytest.param(TIMED_OUT, True, id="408, closed"),
        pytest.param(OK, True, id="an answer, closed"),
    ],
)
async def test_bytes_on_an_idle_connection(unsolicited: bytes, closes: bool) -> None:
    """What comes between two posts ends the connection; the next post has a new one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await answered.wait()
        await peer.send(unsolicited)
        if closes:
            peer.finish()
        await peer.arrived()
        arrived.set()
        await peer.end()

    answered, arrived = Event(), Event()
    async with talking(script, replies(BUSY)) as (server, http):
        assert (await post(http, "first")).verdict is Verdict.SUCCESS
        answered.set()
        await arrived.wait()
        answer = await post(http, "second")
        await server.ended(0)
    assert (answer.status, answer.detail) == (503, "busy")
    assert [(request.connection, request.key) for request in server.requests] == [
        (0, "first"),
        (1, "second"),
    ]


@pytest.mark.parametrize("later", [False, True], ids=["same packet", "later"])
async def test_many_posts_to_a_server_that_answers_twice(later: bool) -> None:
    """However often a server sends an unsolicited 200, each refused post gets its own refusal."""

    async def script(peer: Peer) -> None:
        refusal = refuse((await peer.request()).key)
        if later:
            await peer.send(refusal)
            await told.wait()
            await peer.send(OK)
        else:
            await peer.send(refusal + OK)
        await peer.arrived()
        arrived.set()
        await peer.end()

    told, arrived = Event(), Event()
    async with talking(script) as (server, http):
        for number in range(50):
            told.clear()
            arrived.clear()
            answer = await post(http, f"key-{number}")
            assert (answer.status, answer.detail) == (422, f"key-{number}")
            told.set()
            await arrived.wait()
    assert server.connections == list(range(50))


def refuse(key: str) -> bytes:
    """An answer that names the post it belongs to."""
    return f"HTTP/1.1 422 No\r\nContent-Length: {len(key)}\r\n\r\n{key}".encode()
