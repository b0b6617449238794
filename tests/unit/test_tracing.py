"""Spans of attempts and publishes, without a worker; and what is loaded without tracing."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer, get_current_span

from order_relay.delivery.batches import Batching
from order_relay.delivery.dead_letters import refused_letter
from order_relay.errors import InvalidSettings, PublishFailed, Reject
from order_relay.handlers.function import FunctionHandler
from order_relay.model.consumer import Delivery
from order_relay.model.trace_context import of_record
from order_relay.publishing.publisher import Publisher, Saved
from order_relay.settings import load_settings
from order_relay.tracing.export import SpanExport
from order_relay.tracing.spans import Tracing
from order_relay.tracing.switch import make_tracing
from tests.support.child import run_python
from tests.support.fakes import Bench, answer, record
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import FakeProducer, refusal
from tests.support.publish_ways import TOPIC, paid

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
HEADERS = [("traceparent", TRACEPARENT.encode()), ("tracestate", b"rojo=1")]


@dataclass
class Spans:
    """Tracing whose spans are kept in memory."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer: Tracer = provider.get_tracer("test")
        self.tracing = Tracing(cast(SpanExport, self))

    def named(self, beginning: str) -> list[Any]:
        """The ended spans whose names begin so."""
        return [one for one in self.exporter.get_finished_spans() if one.name.startswith(beginning)]


def span_id(span: Any) -> str:
    """The id of a span, as a traceparent has it."""
    return f"{span.context.span_id:016x}"


def parent_id(span: Any) -> str:
    """The id of a span's parent."""
    return f"{span.parent.span_id:016x}"


async def test_a_function_runs_within_the_span_of_its_attempt() -> None:
    """Its own spans are children of it, in a thread too; the headers that it gets name it."""
    spans = Spans()
    seen: list[Delivery] = []

    async def handle(event: object, delivery: Delivery) -> None:
        seen.append(delivery)
        with spans.tracer.start_as_current_span("own"):
            pass
        if delivery.offset:
            raise Reject("secret text")

    def handle_in_thread(event: object, delivery: Delivery) -> None:
        seen.append(delivery)
        with spans.tracer.start_as_current_span("own"):
            pass

    for offset, function in enumerate((handle, handle_in_thread)):
        bench = Bench(
            target=FunctionHandler(function, load_settings(), max_in_flight=2),
            tracer=spans.tracing.of_consumer("coupons", "group"),
        )
        await bench.deliver(record(offset, "a", headers=HEADERS))
    rejected = spans.named("process")
    for process, own, delivery in zip(rejected, spans.named("own"), seen, strict=True):
        assert parent_id(own) == span_id(process)
        assert parent_id(process) == "00f067aa0ba902b7"
        passed_on = of_record(delivery.headers)
        assert passed_on is not None
        assert passed_on.trace_id == TRACE_ID
        assert passed_on.traceparent.split("-")[2] == span_id(process)
        assert passed_on.tracestate == "rojo=1"
    assert "secret text" not in "".join(one.to_json() for one in rejected)


@pytest.mark.virtual_time
async def test_each_record_of_a_batch_has_its_own_span() -> None:
    """A POST of several records has none and no trace context; that of one has its own."""
    spans = Spans()
    bench = Bench(
        batching=Batching(2, linger_seconds=0.1), tracer=spans.tracing.of_consumer("c", "g")
    )
    await bench.deliver(record(0, "a", headers=HEADERS), record(1, "b", headers=HEADERS))
    await bench.submit(record(2, "c", headers=HEADERS))
    await bench.until_finished(3)
    assert len(spans.named("process")) == 3
    together, alone = (attempt.trace for attempt in bench.target.attempts)
    assert together is None
    assert alone is not None
    assert alone.traceparent.split("-")[2] == span_id(spans.named("process")[2])


async def test_a_saved_event_has_its_publish_as_parent() -> None:
    """The row's headers name the span, for its replay; the span has not failed."""
    spans = Spans()
    kafka, store = FakeProducer(), MemoryFallbackStore()
    kafka.refuse = lambda _: refusal()
    publisher = Publisher(kafka, store, TOPIC, tracing=spans.tracing)
    saved = await publisher.publish(paid(1), headers=HEADERS)
    assert isinstance(saved, Saved)
    (span,) = spans.named("publish")
    assert span.attributes["order_relay.fallback.row_id"] == saved.row_id
    assert span.status.is_unset
    (row,) = (await store.claim(limit=1, lease_seconds=1, token="t")).rows
    parent = of_record(row.headers)
    assert parent is not None
    assert parent.traceparent.split("-")[1:3] == [TRACE_ID, span_id(span)]


async def test_a_lost_event_s_publish_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the error's class, but not its text, which quotes Kafka and the database."""
    spans = Spans()
    kafka, store = FakeProducer(), MemoryFallbackStore()
    kafka.refuse = lambda _: refusal()

    async def refuse(message: object) -> int:
        raise RuntimeError("secret text")

    monkeypatch.setattr(store, "save", refuse)
    with pytest.raises(PublishFailed):
        await Publisher(kafka, store, TOPIC, tracing=spans.tracing).publish(paid(1))
    (span,) = spans.named("publish")
    assert span.attributes["error.type"] == "order_relay.errors.PublishFailed"
    assert not span.status.is_ok
    assert not span.events
    assert "secret text" not in span.to_json()


async def test_the_caller_s_span_is_the_parent_without_a_traceparent() -> None:
    """Of a publish, and of headers for later; a given traceparent comes first."""
    spans = Spans()
    publisher = Publisher(FakeProducer(), MemoryFallbackStore(), TOPIC, tracing=spans.tracing)
    with spans.tracer.start_as_current_span("request") as request:
        await publisher.publish(paid(1))
        await publisher.publish(paid(2), headers=HEADERS)
        later = of_record(spans.tracing.with_caller_context([("mine", b"1")]))
        assert spans.tracing.with_caller_context(HEADERS) == tuple(HEADERS)
    assert spans.tracing.with_caller_context([("mine", b"1")]) == (("mine", b"1"),)
    own = f"{request.get_span_context().span_id:016x}"
    assert [parent_id(span) for span in spans.named("publish")] == [own, "00f067aa0ba902b7"]
    assert later is not None
    assert later.traceparent.split("-")[2] == own


async def test_what_reads_kafka_does_not_continue_a_span_that_is_current() -> None:
    """A record begins its own trace, and its dead letter continues that."""
    spans = Spans()
    consumer = spans.tracing.of_consumer("c", "g")
    with spans.tracer.start_as_current_span("other") as other:
        one = consumer.received(record(0, "a"))
        two = consumer.received(one)
        sink = spans.tracing.dead_letters(Bench().dead_letters, "letters")
        await sink.send(refused_letter(two, "rejected", answer(422), 1, datetime.now(UTC)))
    assert one is two
    assert get_current_span().get_span_context().is_valid is False
    (receive,) = spans.named("receive")
    (letter,) = spans.named("dead_letter letters")
    assert receive.parent is None
    assert receive.context.trace_id != other.get_span_context().trace_id
    assert parent_id(letter) == span_id(receive)


# Makes and uses all that can trace, with tracing off, and prints the loaded modules of it.
OFF = """
import asyncio, json, sys
import app
from order_relay.publishing.order_events import open_order_events
from order_relay.settings import load_settings

async def run():
    app.app.consumers[0]
    settings = load_settings(kafka_bootstrap_servers="127.0.0.1:1")
    async with open_order_events(settings, grace_seconds=0.1) as events:
        events.publisher.save_waiting()

asyncio.run(run())
print(json.dumps([name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]))
"""


def test_without_tracing_nothing_loads_opentelemetry(tmp_path: Path) -> None:
    """Neither the application nor an order service, from their imports to their end."""
    ended = run_python(OFF, tmp_path)
    assert json.loads(ended.stdout) == [], ended.stderr


MISSING = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.trace")


def test_a_start_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    """One line and status 1, whichever package of it is missing."""
    code = f"import os, sys, faust, aiokafka\nfor missing in {MISSING}:\n"
    # In a fork each: what it imports before it fails does not stay for the next one.
    code += " if os.fork() == 0: sys.modules[missing] = None; import app; app.app\n"
    code += " assert os.waitstatus_to_exitcode(os.wait()[1]) == 1"
    ended = run_python(code, tmp_path, TRACING="otlp")
    said = "TRACING=otlp needs: pip install 'order-relay[otel]'\n"
    assert (ended.returncode, ended.stderr) == (0, said * len(MISSING))


def test_a_variable_that_opentelemetry_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the text of OpenTelemetry's own error."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(InvalidSettings, match=r"^TRACING=otlp: OpenTelemetry cannot start: .*many"):
        make_tracing(load_settings(tracing="otlp"))
    monkeypatch.undo()
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")  # the default batch is larger
    tracing = make_tracing(load_settings(tracing="otlp"))
    assert tracing is not None
    with pytest.raises(InvalidSettings, match=r"^TRACING=otlp: OTEL_BSP_...: max_export_batch"):
        tracing.export.start()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key: hunter2", "HEADERS must be name=value, separ"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "key=hunter2é", "HEADERS must be name=value, separ"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "ENDPOINT must begin with http:// or h"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "Invalid timeout value 'soon'$"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli", "Unsupported compression type: brotli$"),
        ("OTEL_TRACES_SAMPLER", "half", "Couldn't recognize sampler half.$"),
        ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "nope", "load resource detector 'nope'$"),
        ("OTEL_RESOURCE_ATTRIBUTES", "shop", "Invalid key value resource attribute pair shop"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "parse value for OTEL_BSP_MAX_QUEUE_SIZE as integer$"),
    ],
)
def test_a_variable_that_opentelemetry_would_ignore(
    variable: str,
    value: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is one line, too, without a stack trace, and without the value of a header."""

    def start() -> None:
        tracing = make_tracing(load_settings(tracing="otlp"))
        assert tracing is not None
        tracing.export.start()

    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings, match=f"^TRACING=otlp: .*{said}") as raised:
        start()
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not caplog.text


def test_opentelemetry_s_own_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OTEL_SDK_DISABLED, trace contexts are forwarded unchanged."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = make_tracing(load_settings(tracing="otlp"))
    assert tracing is not None
    one = record(0, "a")
    assert tracing.of_consumer("c", "g").received(one) is one
    with tracing.sending("publish", TOPIC, HEADERS) as sent:
        assert of_record(sent.headers) == of_record(HEADERS)
