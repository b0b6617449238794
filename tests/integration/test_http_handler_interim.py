"""Interim answers (1xx) come before the final one; the client waits for that, within a limit."""

import asyncio

import pytest

from order_relay.delivery.answer import Verdict
from tests.integration.http_client import patient_client, post, talking
from tests.support.raw_server import BUSY, FLOOD_BYTES, OK, Peer, RawServer, replies

INTERIM = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\nX-Progress: half\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nRetry-After: 9\r\n\r\n",
    "no reason phrase": b"HTTP/1.1 100\r\n\r\n",
}
ALL = b"".join(INTERIM.values())


@pytest.mark.parametrize("interim", [*INTERIM.values(), ALL], ids=[*INTERIM, "all"])
@pytest.mark.parametrize("together", [True, False], ids=["one packet", "packets"])
async def test_interim_answers_are_not_the_answer(interim: bytes, together: bool) -> None:
    """What comes after them is the answer, with none of their headers; the connection is kept."""

    async def script(peer: Peer) -> None:
        for final in (OK, BUSY, OK):
            await peer.request()
            await peer.send(*([interim + final] if together else [interim, final]))
        await peer.end()

    async with talking(script) as (server, http):
        assert (await post(http)).verdict is Verdict.SUCCESS
        answer = await post(http)
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, 503)
        assert (answer.detail, answer.retry_after_seconds) == ("busy", 0)
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 0, 0]


async def test_an_interim_answer_before_the_body_is_sent() -> None:
    """One that comes while a large body is on its way stops nothing: all of it arrives."""
    body = b'{"pad":"' + b"0123456789" * 300_000 + b'"}'

    async def script(peer: Peer) -> None:
        request = await peer.head()
        await peer.send(ALL)
        arrived.append(await peer.body(request))
        await peer.send(OK)
        await replies(OK)(peer)

    arrived: list[bytes] = []
    async with talking(script) as (server, http):
        assert (await post(http, body=body)).verdict is Verdict.SUCCESS
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert arrived == [body]
    assert server.connections == [0, 0]


async def test_a_flood_of_interim_answers_is_a_failed_attempt() -> None:
    """Endless interim answers are not read without limit, and delay no other post."""

    async def flood(peer: Peer) -> None:
        await peer.request()
        await peer.flood(INTERIM["100"] * 400, FLOOD_BYTES)

    async with (
        RawServer(flood, replies(OK)) as flooding,
        RawServer(replies(OK)) as other,
        patient_client(flooding.url) as flooded,
        patient_client(other.url) as calm,
    ):
        answer, *answers = await asyncio.gather(
            post(flooded), *(post(calm, f"key-{number}") for number in range(10))
        )
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        assert answer.detail
        assert {other.verdict for other in answers} == {Verdict.SUCCESS}
        await flooding.ended(0)
        assert (await post(flooded)).verdict is Verdict.SUCCESS
    assert flooding.peers[0].sent_bytes < FLOOD_BYTES
    assert flooding.connections == [0, 1]


async def test_switching_protocols_is_a_failed_attempt() -> None:
    """101 was not asked for: what follows it is not HTTP, and its connection is closed."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", OK
        )
        await peer.end()

    async with talking(script, replies(OK)) as (server, http):
        assert (await post(http)).verdict is Verdict.RETRYABLE
        await server.ended(0)
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 1]
