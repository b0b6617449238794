"""What stands in the head of a POST to the target, beside what it always has."""

from base64 import b64decode, b64encode

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from order_relay.delivery.answer import Verdict
from order_relay.delivery.batches import NDJSON
from order_relay.model.trace_context import of_record
from tests.integration.http_client import BODY, client
from tests.support.sink import ScriptedSink


async def test_headers_of_ours_go_along(sink: ScriptedSink) -> None:
    """Every post has all configured headers; they replace defaults of the same name."""
    headers = (("X-Key", "a:b c"), ("user-agent", "shop"), ("X-Key", "second"), ("X-Empty", ""))
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
    """Without a configured content type it follows from the body."""
    async with client(sink.url, content_type="application/x.orders+json; v=2") as http:
        await http.post(BODY, "key")
        await http.post(BODY, "key", content_type=NDJSON)
    async with client(sink.url) as http:
        await http.post(BODY, "key")
        await http.post(BODY, "key", content_type=NDJSON)
    assert [request.headers["content-type"] for request in sink.requests] == [
        "application/x.orders+json; v=2",
        "application/x.orders+json; v=2",
        "application/json",
        NDJSON,
    ]


async def test_a_trace_context_goes_along(sink: ScriptedSink) -> None:
    """Unchanged, beside the others; a post without one has none, over the same connection."""
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
    """Each secret signs, with one id for all attempts; another secret or body does not match."""
    body = '[{"orderId":1,"note":"\u00fc"}]\n'.encode()
    trace = of_record([("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")])
    keys = [b64decode(OLD), b64decode(NEW)]
    async with client(sink.url, signing_keys=keys, token="t0ken") as http:
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


async def test_without_keys_nothing_is_signed(sink: ScriptedSink) -> None:
    """No header of a signature goes along."""
    async with client(sink.url) as http:
        await http.post(BODY, "key")
    assert not [name for name in sink.requests[0].headers if name.startswith("webhook-")]
