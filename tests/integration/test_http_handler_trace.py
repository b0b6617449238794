"""The trace context in requests to a real HTTP server."""

from order_relay.delivery.answer import Verdict
from order_relay.model.trace_context import of_record
from tests.integration.http_client import BODY, client
from tests.support.sink import ScriptedSink

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_it_goes_along_as_headers(sink: ScriptedSink) -> None:
    """Unchanged, beside the others; a post without one has none, over the same connection."""
    trace = of_record([("traceparent", TRACEPARENT.encode()), ("tracestate", b"a=x y~!,b=2")])
    async with client(sink.url, token="t0ken") as http:
        assert (await http.post(BODY, "with", trace)).verdict is Verdict.SUCCESS
        assert (await http.post(BODY, "without")).verdict is Verdict.SUCCESS
    traced, plain = sink.requests
    assert traced.headers["traceparent"] == TRACEPARENT
    assert traced.headers["tracestate"] == "a=x y~!,b=2"
    assert traced.headers["authorization"] == "Bearer t0ken"
    assert (traced.idempotency_key, traced.body) == ("with", BODY)
    assert set(traced.headers) - set(plain.headers) == {"traceparent", "tracestate"}
    assert sink.connections == 1
