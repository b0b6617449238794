"""A receiver of OTLP over HTTP, as a collector is: it decodes and keeps the spans it is sent.

async with OtlpReceiver() as receiver:
    ... OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url ...
    await receiver.wait_for(lambda spans: len(spans) == 3)
"""

import asyncio
import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.waiting import eventually

LIMIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span.

    Attributes:
        service: ``service.name`` of what sent it.
        kind: In lower case, such as ``producer``.
        trace_id: Hexadecimal, as in a traceparent; likewise the other two ids.
        parent_id: "" without a parent.
        failed: Whether its status is an error.
    """

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    attributes: dict[str, str | int]
    failed: bool

    def is_parent_in(self, traceparent: str | None) -> bool:
        """Whether a traceparent names it as the parent, and is sampled."""
        _, trace_id, span_id, flags = (traceparent or "---").split("-")
        return (trace_id, span_id) == (self.trace_id, self.span_id) and int(flags, 16) % 2 == 1


class OtlpReceiver:
    """The server. It runs in the test's event loop.

    Attributes:
        spans: All spans that were accepted, in the order of their arrival.
        requests: How many requests came.
        status: What it answers; spans are kept with 200 only.
        gate: Requests wait for it before they are answered.
    """

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.requests = 0
        self.status = 200
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = f"http://{LOOPBACK}:{free_ports(1)[0]}"
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/traces", self._post)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2])
        await web.TCPSite(self._runner, LOOPBACK, port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def wait_for(self, condition: Callable[[list[ReceivedSpan]], object]) -> None:
        """Wait until the spans so far satisfy a condition."""
        await eventually(
            lambda: condition(self.spans),
            LIMIT_SECONDS,
            lambda: f"the spans are as expected: {[span.name for span in self.spans]}",
        )

    def of_trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of a trace."""
        return [span for span in self.spans if span.trace_id == trace_id]

    async def _post(self, request: web.Request) -> web.Response:
        self.requests += 1
        body = await request.read()
        await self.gate.wait()
        if self.status != 200:
            return web.Response(status=self.status)
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        decoded = ExportTraceServiceRequest()
        decoded.ParseFromString(body)
        for resource_spans in decoded.resource_spans:
            service = _attributes(resource_spans.resource.attributes)["service.name"]
            for scope_spans in resource_spans.scope_spans:
                self.spans += (_span(str(service), span) for span in scope_spans.spans)
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )


def _span(service: str, span: trace_pb2.Span) -> ReceivedSpan:
    return ReceivedSpan(
        service,
        span.name,
        trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        _attributes(span.attributes),
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for pair in pairs:
        value = pair.value
        found[pair.key] = value.int_value if value.HasField("int_value") else value.string_value
    return found
