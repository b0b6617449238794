"""The client of the target against a real HTTP server that misbehaves."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from order_relay.delivery.answer import Verdict
from order_relay.handlers.http import HttpHandler
from tests.integration.http_client import BODY, client
from tests.support.sink import Answer, ScriptedSink


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
    """Retry-After is read in both forms; with a 503 it means that the target throttles."""
    in_half_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    async with client(sink.url) as http:
        for value, (low, high) in {"7": (7, 7), in_half_a_minute: (1, 30), "soon": (0, 0)}.items():
            sink.fail_next(1, 503, headers={"Retry-After": value})
            answer = await http.post(BODY, "key")
            assert answer.verdict is Verdict.THROTTLED
            assert low <= answer.retry_after_seconds <= high, value


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
