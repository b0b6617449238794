"""The client of the target against a real HTTP server that misbehaves."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from order_relay.delivery.answer import Verdict
from order_relay.handlers.http import HttpHandler
from tests.integration.http_client import BODY, client
from tests.support.raw_server import RawServer
from tests.support.sink import Answer, Fault, ScriptedSink


async def test_one_post_carries_the_bytes_as_they_are(sink: ScriptedSink) -> None:
    """The body arrives byte for byte, with the idempotency key and a JSON content type."""
    body = b' {"orderId" : 1, "note":"\xc3\xa4\\u00e4\\n"}\r\n'
    async with client(sink.url) as http:
        answer = await http.post(body, "order-paid-events-0-17")
    (request,) = sink.requests
    assert answer.verdict is Verdict.SUCCESS
    assert (request.method, request.path, request.body) == ("POST", "/logs", body)
    assert request.idempotency_key == "order-paid-events-0-17"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(body))
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    ("verdict", "statuses"),
    [
        (Verdict.SUCCESS, (200, 201, 202, 203, 204, 206, 299)),
        (Verdict.RETRYABLE, (408, 425, 500, 501, 502, 503, 504, 507, 599)),
        (Verdict.THROTTLED, (429,)),
        (Verdict.REJECTED, (400, 402, 406, 409, 411, 413, 414, 415, 422, 451)),
        (Verdict.GONE, (404, 405, 410)),
        (Verdict.OUTAGE, (401, 403)),
    ],
)
async def test_every_status_class(
    sink: ScriptedSink, verdict: Verdict, statuses: tuple[int, ...]
) -> None:
    """A status decides the verdict, and comes back with it."""
    async with client(sink.url) as http:
        for status in statuses:
            sink.fail_next(1, status)
            answer = await http.post(BODY, f"key-{status}")
            assert (answer.verdict, answer.status) == (verdict, status)
    assert len(sink.requests) == len(statuses)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(sink: ScriptedSink, status: int) -> None:
    """A redirect is an outage: it is not followed, with neither the event nor the token."""
    async with ScriptedSink() as elsewhere:
        sink.fail_next(1, status, headers={"Location": elsewhere.url})
        async with client(sink.url, token="s3cret-token") as http:
            answer = await http.post(BODY, "key")
        assert (answer.verdict, answer.status) == (Verdict.OUTAGE, status)
        assert not elsewhere.requests


async def test_retry_after_in_seconds_and_as_a_date(sink: ScriptedSink) -> None:
    """Retry-After is read in both forms and capped at a minute; an invalid one is ignored."""
    in_half_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    long_ago = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    expected = {
        "7": (7, 7),
        "0": (0, 0),
        "86400": (60, 60),
        in_half_a_minute: (1, 30),
        long_ago: (0, 0),
        "soon": (0, 0),
        "-5": (0, 0),
    }
    async with client(sink.url) as http:
        for value, (low, high) in expected.items():
            sink.fail_next(1, 503, headers={"Retry-After": value})
            answer = await http.post(BODY, "key")
            assert low <= answer.retry_after_seconds <= high, value


async def test_a_connection_that_breaks_is_retryable(sink: ScriptedSink) -> None:
    """A connection that is closed instead of an answer is a failed attempt; the next one is new."""
    sink.fail_next(1, fault=Fault.RESET)
    async with client(sink.url) as http:
        answer = await http.post(BODY, "key")
        assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        assert answer.detail
        assert answer.error_type
        assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
    # aiohttp may not send it again by itself: attempts are counted.
    assert len(sink.requests) == 2


async def test_a_logger_that_is_down_is_retryable(sink: ScriptedSink) -> None:
    """Refused connections are retryable, and the same client works once the target is back."""
    async with client(sink.url) as http:
        assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
        await sink.down()
        for _ in range(3):
            answer = await http.post(BODY, "key")
            assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
        await sink.up()
        assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
    ids=["nothing", "garbage", "no status", "tls"],
)
async def test_what_is_not_http_is_retryable(reply: bytes) -> None:
    """A server that does not speak HTTP leads to a failed attempt, not an exception."""
    async with RawServer(reply) as server, client(f"{server.url}/logs") as http:
        answer = await http.post(BODY, "key")
    assert (answer.verdict, answer.status) == (Verdict.RETRYABLE, None)
    assert answer.error_type


async def test_sequential_posts_share_one_connection(sink: ScriptedSink) -> None:
    """Keep-alive: a hundred posts, errors among them, go over one connection."""
    sink.script = lambda request: Answer(
        503 if len(sink.requests) % 3 == 0 else 200, body=b'{"some":"answer"}'
    )
    async with client(sink.url) as http:
        for number in range(100):
            await http.post(BODY, f"key-{number}")
    assert len(sink.requests) == 100
    assert sink.connections == 1


async def test_no_more_connections_than_allowed(sink: ScriptedSink) -> None:
    """Concurrent posts share the allowed connections, and all of them end."""
    sink.script = lambda request: Answer(delay_seconds=0.02)
    async with client(sink.url, max_connections=3) as http:
        answers = await asyncio.gather(*(http.post(BODY, f"key-{n}") for n in range(30)))
    assert {answer.verdict for answer in answers} == {Verdict.SUCCESS}
    assert sink.connections <= 3
    assert sink.most_open_requests == 3


async def test_cookies_are_not_kept(sink: ScriptedSink) -> None:
    """A cookie of one answer does not change the next attempt."""
    sink.script = lambda request: Answer(headers={"Set-Cookie": "session=1"})
    async with client(sink.url) as http:
        await http.post(BODY, "key-1")
        await http.post(BODY, "key-2")
    assert all("cookie" not in request.headers for request in sink.requests)


async def test_a_large_record_arrives_whole(sink: ScriptedSink) -> None:
    """A body of several megabytes is sent in pieces, and arrives as it was."""
    body = b'{"pad":"' + b"0123456789" * 300_000 + b'"}'
    async with client(sink.url) as http:
        assert (await http.post(body, "key")).verdict is Verdict.SUCCESS
    assert sink.requests[0].body == body


async def test_a_post_without_start_is_a_fault_of_ours(sink: ScriptedSink) -> None:
    """A client that is not started raises an error that says so."""
    http = HttpHandler(sink.url, timeout_seconds=1, connect_timeout_seconds=1, max_connections=1)
    with pytest.raises(RuntimeError, match="not started"):
        await http.post(BODY, "key")
