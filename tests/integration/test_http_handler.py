"""The client of the target against a real HTTP server: what it sends, and where."""

import asyncio
import gc
import re
import socket
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from yarl import URL

from order_relay.delivery.answer import Verdict
from order_relay.delivery.batches import NDJSON
from order_relay.handlers.http import HttpHandler
from order_relay.handlers.http_client import addresses
from order_relay.handlers.http_client import client as http_client
from order_relay.model.trace_context import of_record
from order_relay.settings import load_settings
from tests.integration.http_client import BODY, client, patient_client, post
from tests.support.kafka.ports import LOOPBACK
from tests.support.raw_server import RawServer, replies
from tests.support.sink import Answer, ScriptedSink


async def test_one_post_carries_the_bytes_as_they_are(sink: ScriptedSink) -> None:
    """The body byte for byte, the idempotency key and a JSON content type; no signature."""
    body = b' {"orderId" : 1, "note":"\xc3\xa4\\u00e4\\n"}\r\n'
    async with client(sink.url) as http:
        answer = await http.post(body, "order-paid-events-0-17")
    (request,) = sink.requests
    assert answer.verdict is Verdict.SUCCESS
    assert (request.method, request.path, request.body) == ("POST", "/logs", body)
    assert request.idempotency_key == "order-paid-events-0-17"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["content-length"] == str(len(body))
    assert not re.search("authorization|webhook-|trace", " ".join(request.headers))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(sink: ScriptedSink, status: int) -> None:
    """A redirect is an outage: neither event nor token is sent elsewhere."""
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


async def test_a_post_without_start_is_a_fault_of_ours(sink: ScriptedSink) -> None:
    """A client that is not started raises an error that says so."""
    http = HttpHandler(load_settings(external_logger_url=sink.url), max_connections=1)
    with pytest.raises(RuntimeError, match="not started"):
        await http.post(BODY, "key")


async def test_headers_of_ours_go_along(sink: ScriptedSink) -> None:
    """Every post has all configured headers; they replace defaults of the same name."""
    headers = "X-Key: a:b c\nuser-agent: shop\nX-Key: second\nX-Empty:"
    async with client(sink.url, headers=headers, token="t0ken") as http:
        for _ in range(2):
            assert (await http.post(BODY, "key")).verdict is Verdict.SUCCESS
    for request in sink.requests:
        assert request.headers["x-key"] in ("a:b c", "second")
        assert request.headers["user-agent"] == "shop"
        assert request.headers["x-empty"] == ""
        assert request.headers["accept"] == "*/*"
        assert request.headers["authorization"] == "Bearer t0ken"
        assert (request.idempotency_key, request.body) == ("key", BODY)
    assert sink.connections == 1


async def test_a_content_type_of_ours_is_that_of_every_body(sink: ScriptedSink) -> None:
    """Without a configured one it depends on the body."""
    async with client(sink.url, content_type="application/x.orders+json; v=2") as http:
        await http.post(BODY, "key")
        await http.post(BODY, "key", content_type=NDJSON)
    async with client(sink.url) as http:
        await http.post(BODY, "key")
        await http.post(BODY, "key", content_type=NDJSON)
    assert [request.headers["content-type"] for request in sink.requests] == [
        "application/x.orders+json; v=2", "application/x.orders+json; v=2", "application/json",
        NDJSON,
    ]  # fmt: skip


async def test_a_trace_context_goes_along(sink: ScriptedSink) -> None:
    """Trace headers are sent unchanged; a later post without a trace has none."""
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    trace = of_record([("traceparent", traceparent.encode()), ("tracestate", b"a=x y~!,b=2")])
    async with client(sink.url) as http:
        assert (await http.post(BODY, "with", trace)).verdict is Verdict.SUCCESS
        assert (await http.post(BODY, "without")).verdict is Verdict.SUCCESS
    traced, plain = sink.requests
    assert traced.headers["traceparent"] == traceparent
    assert traced.headers["tracestate"] == "a=x y~!,b=2"
    assert (traced.idempotency_key, traced.body) == ("with", BODY)
    assert set(traced.headers) - set(plain.headers) == {"traceparent", "tracestate"}
    assert sink.connections == 1


OLD, NEW, OTHER = (b64encode(bytes([number]) * 24).decode() for number in range(3))


async def test_a_signature_is_one_that_receivers_check(sink: ScriptedSink) -> None:
    """Each secret signs, with one id for all attempts; another secret or body does not verify."""
    body = '[{"orderId":1,"note":"\u00fc"}]\n'.encode()
    trace = of_record([("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")])
    async with client(sink.url, signing_secrets=f"{OLD},{NEW}", token="t0ken") as http:
        for _ in range(2):
            await http.post(body, "orders-0-1", trace)
    first, again = sink.requests
    for request in (first, again):
        headers = dict(request.headers)
        assert headers["webhook-id"] == request.idempotency_key == "orders-0-1"
        assert headers["webhook-timestamp"].isdecimal()
        assert len(headers["webhook-signature"].split(" ")) == 2
        for secret in (OLD, f"whsec_{NEW}"):
            assert Webhook(secret).verify(request.body, headers) == [
                {"orderId": 1, "note": "\u00fc"}
            ]
        with pytest.raises(WebhookVerificationError):
            Webhook(OTHER).verify(request.body, headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(OLD).verify(request.body + b" ", headers)
    assert "traceparent" in first.headers


OK = b"HTTP/1.1 204 No Content\r\n\r\n"


class Names:
    """A name server: the addresses of ``logger.test``, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
        self.ports = list(ports)
        self.asked = 0
        self.fails = False
        self.hangs: asyncio.Event | None = None
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._find)

    async def _find(self, host: str, port: int, **kwargs: Any) -> list[Any]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.hangs is not None:
            await self.hangs.wait()
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "no name server")
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, (LOOPBACK, one)) for one in self.ports]


def port_of(server: RawServer) -> int:
    """The server's port."""
    return URL(server.url).port or 0


async def test_a_name_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under steady traffic connections reach their maximum age, and DNS is asked again."""
    monkeypatch.setattr(http_client, "LIFE_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(addresses, "KNOWN_SECONDS", 0.05)
    async with RawServer(replies(OK)) as before, RawServer(replies(OK)) as after:
        names = Names(monkeypatch, port_of(before))
        async with patient_client("http://logger.test/logs") as http:
            await post(http)
            names.ports = [port_of(after)]
            while not after.requests:
                await post(http)
    # With the real settings, within a minute.
    monkeypatch.undo()
    assert http_client.LIFE_SECONDS[1] + addresses.KNOWN_SECONDS < 60


async def test_connections_go_to_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections at once resolve the name once, and use all its addresses."""
    async with RawServer(replies(OK)) as first, RawServer(replies(OK)) as second:
        names = Names(monkeypatch, port_of(first), port_of(second))
        async with patient_client("http://logger.test/logs") as http:
            await asyncio.gather(*(post(http, f"key-{number}") for number in range(10)))
        assert names.asked == 1
        assert (len(first.requests), len(second.requests)) == (5, 5)


async def test_many_posts_at_once_find_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them waits for the same question, and one that asks again disturbs no other."""
    names = Names(monkeypatch)
    names.fails = True
    async with patient_client("http://logger.test/logs") as http:

        async def twice() -> list[Verdict]:
            return [(await http.post(BODY, "key")).verdict for _ in range(2)]

        verdicts = await asyncio.gather(*(twice() for _ in range(5)))
    assert verdicts == [[Verdict.LOCAL] * 2] * 5


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
async def test_what_is_known_serves_while_no_name_server_answers(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """Once the name was resolved, an outage of the name server is at most a brief wait."""
    monkeypatch.setattr(http_client, "LIFE_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(addresses, "KNOWN_SECONDS", 0.0)
    if hangs:
        monkeypatch.setattr(addresses, "REFRESH_SECONDS", 0.01)
    async with RawServer(replies(OK)) as server:
        names = Names(monkeypatch, port_of(server))
        async with patient_client("http://logger.test/logs") as http:
            await post(http)
            names.fails = not hangs
            names.hangs = asyncio.Event() if hangs else None
            for _ in range(3):
                await post(http)
            if names.hangs is not None:
                names.hangs.set()
        assert len(server.requests) == 4
        assert hangs or names.asked == 4


async def test_a_name_server_that_hangs_is_a_fault_of_this_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a local failure, like an unreachable one; its late answer is not logged."""
    names = Names(monkeypatch)
    names.hangs, names.fails = asyncio.Event(), True
    async with client("http://logger.test/logs", connect_timeout_seconds=0.1) as http:
        answer = await post(http)
        assert (answer.verdict, answer.failure) == (Verdict.LOCAL, "local")
        assert "name server" in answer.detail
        names.hangs.set()
        await asyncio.sleep(0)
        answer = await post(http)
    gc.collect()
    assert "no name server" in answer.detail
    assert not caplog.records
