"""Interim answers, unsolicited bytes, and answers cut into packets."""

import asyncio
from asyncio import Event

import pytest

from order_relay.delivery.answer import Verdict
from order_relay.handlers.http_client import client
from tests.integration.http_client import patient_client, post, talking
from tests.support.raw_server import BUSY, FLOOD_BYTES, OK, TIMED_OUT, Peer, RawServer, replies

INTERIM = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\nX-Progress: half\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nRetry-After: 9\r\n\r\n",
    "no reason phrase": b"HTTP/1.1 100\r\n\r\n",
}
ALL = b"".join(INTERIM.values())


@pytest.fixture(autouse=True)
def any_answer_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse the connection, to show that no byte of the answer is left."""
    monkeypatch.setattr(client, "INSTANCE_STATUSES", frozenset())


@pytest.mark.parametrize("interim", [*INTERIM.values(), ALL], ids=[*INTERIM, "all"])
async def test_interim_answers_are_not_the_answer(interim: bytes) -> None:
    """The answer after them counts, without their headers; the connection is kept."""

    async def script(peer: Peer) -> None:
        for final in (OK, BUSY, OK):
            await peer.request()
            await peer.send(interim, final)
        await peer.end()

    async with talking(script) as (server, http):
        assert (await post(http)).verdict is Verdict.SUCCESS
        answer = await post(http)
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, 503)
        assert (answer.detail, answer.retry_after_seconds) == ("busy", 0)
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 0, 0]


async def test_an_interim_answer_before_the_body_is_sent() -> None:
    """An interim answer during a large body does not stop the body."""
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
    """An unrequested 101 closes the connection, as HTTP does not follow it."""

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


GARBAGE = b"\x00\xff garbage"
UNSOLICITED = [
    pytest.param(OK, id="an answer"), pytest.param(OK[:12], id="part of an answer"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="an interim answer"),
    pytest.param(GARBAGE, id="garbage"), pytest.param(b"\r\n", id="an empty line"),
    pytest.param(TIMED_OUT, id="408"),
]  # fmt: skip


@pytest.mark.parametrize("unsolicited", UNSOLICITED)
@pytest.mark.parametrize("when", ["behind an answer", "later", "later, closed"])
async def test_bytes_that_no_request_asked_for(unsolicited: bytes, when: str) -> None:
    """They close the connection, and are no answer to the next post, which opens a new one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if when == "behind an answer":
            await peer.send(OK + unsolicited)
        else:
            await peer.send(OK)
            await answered.wait()
            await peer.send(unsolicited)
        if when == "later, closed":
            peer.finish()
        await peer.arrived()
        arrived.set()
        await peer.end()

    answered, arrived = Event(), Event()
    async with talking(script, replies(BUSY)) as (server, http):
        assert (await post(http, "first")).verdict is Verdict.SUCCESS
        answered.set()
        if when != "behind an answer":
            await arrived.wait()
        answer = await post(http, "second")
        await server.ended(0)
        await post(http, "third")
    assert (answer.status, answer.detail) == (503, "busy")
    # No connection is used again for a while, unless these bytes can be no answer to a post.
    harmless = GARBAGE if when == "behind an answer" else TIMED_OUT
    assert server.connections == [0, 1, 1 if unsolicited == harmless else 2]


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
# After these the connection is reused.
KEPT = {
    "200": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "200 body": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "201 no reason": b"HTTP/1.1 201\r\nContent-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 None\r\n\r\n",
    "200 chunks": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
    "100 200": b"HTTP/1.1 100 Go\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "103 103 422": b"HTTP/1.1 103 A\r\n\r\nHTTP/1.1 103 B\r\n\r\nHTTP/1.1 422 C\r\n"
    b"Content-Length: 2\r\n\r\nno",
    "302": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    "401": b"HTTP/1.1 401 Who\r\nContent-Length: 4\r\n\r\n who",
    "404": b"HTTP/1.1 404 Not\r\nContent-Length: 0\r\n\r\n",
    "422 umlaut": b"HTTP/1.1 422 No\r\nContent-Length: 6\r\n\r\n\xc3\xa4\xe2\x82\xac\xff",
    "422 chunks": b"HTTP/1.1 422 No\r\n" + CHUNKED + b'1;a="b"\r\nn\r\n1\r\no\r\n0\r\nA: b\r\n\r\n',
    "429": b"HTTP/1.1 429 Slow\r\nRetry-After: 17\r\nContent-Length: 4\r\n\r\nslow",
    "503 retry": b"HTTP/1.1 503 Busy\r\nretry-after:5 \r\nContent-Length: 0\r\n\r\n",
}
# These end it.
ENDED = {
    "200 close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
    "200 HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nok",
    "200 bad length": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
    "200 bad header": b"HTTP/1.1 200 OK\r\nX\r\n\r\nok",
    "200 bad chunk": b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"x\r\n",
    "101": b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz",
    "422 to the end": b"HTTP/1.1 422 No\r\n\r\nno",
    "503 bad chunk": b"HTTP/1.1 503 Busy\r\n" + CHUNKED + b"4\r\nbusy\r\nx\r\n",
    "500 broken off": b"HTTP/1.1 500 Bad\r\nContent-Length: 9\r\n\r\nbad",
    "500 bad header": b"HTTP/1.1 500 Bad\r\nRetry-After: 3\r\nX\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "bad status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "bad version": b"HTTP/2 200\r\n\r\n",
    "half a line": b"HTTP/1.1 200 O",
}


def cuts(answer: bytes) -> list[list[bytes]]:
    """The answer whole, in all possible pairs, and byte by byte."""
    return [
        [answer],
        *([answer[:at], answer[at:]] for at in range(1, len(answer))),
        [bytes((byte,)) for byte in answer],
    ]


@pytest.mark.parametrize("name", KEPT | ENDED)
async def test_the_packets_of_an_answer_do_not_matter(name: str) -> None:
    """An answer cut anywhere, or sent byte by byte, is read like one packet."""
    ways = cuts((KEPT | ENDED)[name])

    async def script(peer: Peer) -> None:
        while True:
            await peer.send(*ways[int((await peer.request()).key)])
            if name in ENDED:
                return

    async with talking(script) as (server, http):
        answers = [await post(http, str(way)) for way in range(len(ways))]
    assert answers == [answers[0]] * len(ways)
    assert len(server.peers) == (1 if name in KEPT else len(ways))
