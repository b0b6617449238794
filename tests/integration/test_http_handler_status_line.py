"""The status line of an answer decides the result; without one the attempt fails."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from order_relay.delivery.answer import Verdict
from order_relay.delivery.batch_results import item_answers
from order_relay.handlers.http import MAX_KEPT_BODY_LENGTH
from tests.integration.http_client import client, patient_client, post, talking
from tests.support.raw_server import FLOOD_BYTES, OK, Peer, RawServer, replies

# The idempotency key of a post that gets a correct answer.
AFTER = "after"
TOKEN = "s3cret-token-of-ours"

Ending = Callable[[Peer], Awaitable[None]]


async def silence(peer: Peer) -> None:
    """Send nothing more, and keep the connection open."""
    await peer.end()


async def close(peer: Peer) -> None:
    """Send nothing more, and close the connection."""
    peer.finish()
    await peer.end()


def endless(chunk: bytes) -> Ending:
    """Send bytes until the client closes the connection."""
    return lambda peer: peer.flood(chunk, FLOOD_BYTES)


@dataclass(frozen=True)
class Flaw:
    """An answer with a correct status and a fault after it.

    Attributes:
        packets: What follows the status line, packet by packet.
        then: What the server does next; ``None`` if the connection can be reused.
        line: The status line.
        kept: Whether the client reuses the connection; ``None`` if it may do either.
        retry_after: Whether a Retry-After comes before the fault.
    """

    packets: tuple[bytes, ...]
    then: Ending | None = silence
    line: bytes = b"HTTP/1.1 %d Reason\r\n"
    kept: bool | None = False
    retry_after: bool = True

    async def answer(self, peer: Peer) -> None:
        """Answer with the status that is the request's idempotency key."""
        while True:
            key = (await peer.request()).key
            if key == AFTER:
                await peer.send(OK)
                continue
            start = self.line % int(key)
            if self.retry_after:
                start += b"Retry-After: 7\r\n"
            await peer.send(start + self.packets[0], *self.packets[1:])
            if self.then is not None:
                await self.then(peer)


def flaw(*packets: bytes, then: Ending = silence, **more: Any) -> Flaw:
    """An invalid answer: its connection must not be reused."""
    return Flaw(packets, then, **more)


def odd(*packets: bytes, kept: bool | None = None, **more: Any) -> Flaw:
    """An odd but readable answer: its connection may be reused."""
    return Flaw(packets, None, kept=kept, **more)


EMPTY = b"Content-Length: 0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
FLAWS = {
    "header line of 9,000 bytes": odd(b"X-Long: " + b"x" * 8_990 + b"\r\n" + EMPTY),
    "header line of 60,000 bytes": odd(b"X-Long: " + b"x" * 59_990 + b"\r\n" + EMPTY),
    "300 cookies": odd(
        b"".join(b"Set-Cookie: c%d=%s\r\n" % (n, b"x" * 40) for n in range(300)) + EMPTY
    ),
    "1 MiB of headers": odd((b"X-Long: " + b"x" * 1014 + b"\r\n") * 1024 + EMPTY),
    "headers without end": flaw(b"", then=endless(b"X-Long: " + b"x" * 8192 + b"\r\n")),
    "a header without end": flaw(b"X-Long: ", then=endless(b"x" * 8192)),
    "malformed chunk": flaw(CHUNKED + b"\r\nxyz\r\nbody\r\n0\r\n\r\n"),
    "malformed chunk later": flaw(CHUNKED + b"\r\n", b"4\r\nbody\r\n", b"xyz\r\nbody\r\n"),
    "chunk longer than said": flaw(CHUNKED + b"\r\n2\r\nbody\r\n0\r\n\r\n"),
    "chunk of 2^70 bytes": flaw(CHUNKED + b"\r\n400000000000000000\r\nbody"),
    "chunks that break off": flaw(CHUNKED + b"\r\n4\r\nbo", then=close),
    "body too short, silence": flaw(b"Content-Length: 9\r\n\r\nbody"),
    "body too short, closed": flaw(b"Content-Length: 9\r\n\r\nbody", then=close),
    "body too long": flaw(b"Content-Length: 2\r\n\r\nbody"),
    "length and chunks": flaw(CHUNKED + b"Content-Length: 4\r\n\r\n4\r\nbody\r\n0\r\n\r\n"),
    "two lengths, the first right": flaw(b"Content-Length: 4\r\nContent-Length: 9\r\n\r\nbody"),
    "two lengths, the last right": flaw(b"Content-Length: 9\r\nContent-Length: 4\r\n\r\nbody"),
    "negative length": flaw(b"Content-Length: -4\r\n\r\nbody"),
    "garbage for a length": flaw(b"Content-Length: many\r\n\r\nbody"),
    "length of 2^70": flaw(b"Content-Length: 1180591620717411303424\r\n\r\nbody"),
    "unknown transfer coding": flaw(b"Transfer-Encoding: zip\r\n\r\nbody", then=close),
    "chunks without end": flaw(CHUNKED + b"\r\n", then=endless(b"2000\r\n%8192s\r\n" % b"x")),
    "body without end": flaw(b"\r\n", then=endless(b"x" * 8192)),
    "long body without end": flaw(
        b"Content-Length: 1000000000000\r\n\r\n", then=endless(b"x" * 8192)
    ),
    "header without a colon": flaw(b"no colon\r\n" + EMPTY),
    "header without a name": flaw(b": value\r\n" + EMPTY),
    "space in a header's name": flaw(b"X Name: value\r\n" + EMPTY),
    "space after a header's name": odd(b"X-Name : value\r\n" + EMPTY),
    "folded header": odd(b"X-Name: one\r\n two\r\n" + EMPTY),
    "NUL in a header": flaw(b"X-Name: a\0b\r\n" + EMPTY),
    "not ASCII in a header": odd(b"X-Name: \xe4\xff\r\n" + EMPTY),
    "line ends without CR": odd(
        b"Content-Length: 0\n\n", line=b"HTTP/1.1 %d Reason\n", retry_after=False
    ),
    "no CR in the headers": odd(b"X-Name: value\nContent-Length: 0\r\n\r\n"),
    "head breaks off, silence": flaw(b"", retry_after=False),
    "head breaks off, closed": flaw(b"", then=close, retry_after=False),
    "header breaks off, silence": flaw(b"X-Na"),
    "header breaks off, closed": flaw(b"X-Na", then=close),
    "no reason phrase": odd(EMPTY, line=b"HTTP/1.1 %d\r\n", kept=True),
    "empty reason phrase": odd(EMPTY, line=b"HTTP/1.1 %d \r\n", kept=True),
    "not ASCII in the reason": odd(EMPTY, line=b"HTTP/1.1 %d \xe4\xff\r\n"),
    "HTTP/1.0": flaw(b"\r\nbody", line=b"HTTP/1.0 %d Reason\r\n", then=close),
    "binary behind the head": flaw(EMPTY + bytes(range(256))),
}
WITHOUT_BODY = {
    "204 with a body": flaw(b"Content-Length: 4\r\n\r\nbody"),
    "204 with chunks": flaw(CHUNKED + b"\r\n4\r\nbody\r\n0\r\n\r\n"),
    "204 with a length alone": odd(b"Content-Length: 4\r\n\r\n"),
}
# First lines without a status, alone before the end of the connection, or with a head.
CUT_OFF = ("HTTP/1.1 20", "HTTP/1.1 200", "HTTP/1.1 200 O", "{}", "<html>200 OK</html>")
MALFORMED = (
    "HTTP/1.1 2x0 OK", "HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 099 x", "HTTP/1.1 -200 x",
    "HTTP/1.1 OK", "HTTP/2 200", "HTTP/11 200 OK", "HTTPS/1.1 200 OK", "200 OK",
    "SSH-2.0-OpenSSH_9.6", "220 mail.example ESMTP", "POST / HTTP/1.1",
)  # fmt: skip


@pytest.mark.parametrize("name", FLAWS)
async def test_200_is_a_success_whatever_follows(name: str) -> None:
    """A faulty answer with 200 is a success without a wait; the next post works."""
    await _succeeds(FLAWS[name], 200)


@pytest.mark.parametrize("name", WITHOUT_BODY)
async def test_204_is_a_success_whatever_follows(name: str) -> None:
    """A 204 with a body is a success, and the body is not read as the next answer."""
    await _succeeds(WITHOUT_BODY[name], 204)


@pytest.mark.parametrize(
    "name", [name for name in FLAWS if not re.search("breaks? off|without end|too short", name)]
)
async def test_200_is_a_success_for_a_batch_whatever_follows(name: str) -> None:
    """A malformed 200 is a success for every record; only a late or cut one is not."""
    async with talking(FLAWS[name].answer, batch_size=2) as (_, http):
        found = item_answers(await post(http, "200"), 2, str)
    assert [one.verdict for one in found] == [Verdict.SUCCESS] * 2


async def _succeeds(fault: Flaw, status: int) -> None:
    async with talking(fault.answer) as (server, http):
        answer = await post(http, str(status))
        assert (answer.verdict, answer.status) == (Verdict.SUCCESS, status)
        assert (await post(http, AFTER)).verdict is Verdict.SUCCESS
        if fault.kept is False:
            await server.ended(0)
    assert server.peers[0].sent_bytes < FLOOD_BYTES
    assert [request.key for request in server.requests] == [str(status), AFTER]
    if fault.kept is not None:
        assert server.connections == [0, 0 if fault.kept else 1]


@pytest.mark.parametrize("name", FLAWS)
async def test_an_error_keeps_its_status_whatever_follows(name: str) -> None:
    """A faulty answer with 500, 429 or 422 keeps the status, and a Retry-After before the fault."""
    verdicts = {500: Verdict.RETRYABLE, 429: Verdict.THROTTLED, 422: Verdict.REJECTED}
    fault = FLAWS[name]
    # The client may wait for an error's body until the attempt's time-out.
    limits = client if fault.then is silence else patient_client
    async with RawServer(fault.answer) as server, limits(server.url) as http:
        answers = await asyncio.gather(*(post(http, str(status)) for status in verdicts))
        assert (await post(http, AFTER)).verdict is Verdict.SUCCESS
    for answer, (status, verdict) in zip(answers, verdicts.items(), strict=True):
        assert (answer.verdict, answer.status) == (verdict, status)
        assert answer.retry_after_seconds == (7 if fault.retry_after else 0)
        assert len(answer.detail) <= MAX_KEPT_BODY_LENGTH
    assert all(peer.sent_bytes < FLOOD_BYTES for peer in server.peers)
    # A fast answer may leave its connection to another of the posts.
    assert len(server.requests) == len(verdicts) + 1


@pytest.mark.parametrize("came", [*CUT_OFF, *MALFORMED])
async def test_no_status_line_is_a_failed_attempt(came: str) -> None:
    """The error quotes bytes that are not HTTP or end in the status line; the next post works."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(came.encode() + (b"" if came in CUT_OFF else b"\r\n" + EMPTY))
        await (close if came in CUT_OFF else silence)(peer)

    async with talking(script, replies(OK)) as (server, http):
        answer = await post(http)
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        assert came in answer.detail
        assert answer.error_type
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.connections == [0, 1]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 "], ids=["nothing", "a status"])
async def test_a_line_without_end_is_a_failed_attempt(start: bytes) -> None:
    """An endless first line is read up to a limit, and the error quotes only its beginning."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        await peer.flood(b"x" * 8192, FLOOD_BYTES)

    async with talking(script, replies(OK)) as (server, http):
        answer = await post(http)
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        assert 0 < len(answer.detail) <= MAX_KEPT_BODY_LENGTH
        await server.ended(0)
        assert (await post(http)).verdict is Verdict.SUCCESS
    assert server.peers[0].sent_bytes < FLOOD_BYTES
    assert server.connections == [0, 1]


@pytest.mark.parametrize(
    ("status", "came"),
    [
        (None, TOKEN * 200),
        (None, "x" * (len(TOKEN) // 2) + TOKEN * 200),
        (None, f"HTTP/1.1 2x0 {TOKEN}\r\n\r\n"),
        (None, f"HTTP/1.1 200{TOKEN}\r\n\r\n"),
        (None, f"{TOKEN} HTTP/1.1 200 OK\r\n\r\n"),
        (None, "x" * 1020 + f"{TOKEN}\r\n\r\n"),
        (400, f"HTTP/1.1 400 {TOKEN}\r\nContent-Length: {len(TOKEN)}\r\n\r\n{TOKEN}"),
        *((status, f"HTTP/1.1 {status} Status\r\n{line}\r\n\r\n")
          for status in (200, 500) for line in (TOKEN, f"Content-Length: {TOKEN}")),
    ],
    ids=range(11),
)  # fmt: skip
async def test_what_came_in_place_of_an_answer_is_redacted(status: int | None, came: str) -> None:
    """No part of a token is quoted, wherever the bytes are cut; a status before it counts."""
    async with talking(came.encode(), token=TOKEN) as (_, http):
        answer = await post(http)
    assert answer.status == status
    assert answer.detail or status is not None
    assert TOKEN[:6] not in repr(answer)
    assert TOKEN[-6:] not in repr(answer)
    assert len(answer.detail) <= MAX_KEPT_BODY_LENGTH
