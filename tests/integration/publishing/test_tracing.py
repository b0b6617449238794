"""An order service with TRACING=otlp: its own spans, its rows, and a collector that hangs."""

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.ext.asyncio import AsyncSession

from order_relay.publishing.order_events import open_order_events
from order_relay.publishing.publisher import Published
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.publish_orders import Order, make_orders
from tests.support.publish_ways import paid, publish_settings, read_topic
from tests.support.waiting import eventually

# Far above the two seconds that closing may take, and below the time-out of an export.
LIMIT_SECONDS = 30.0


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> OtlpReceiver:
    """A collector, not started, that the order service sends to."""
    collector = OtlpReceiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    return collector


async def test_rows_and_late_publishes_continue_the_caller_s_span(
    cluster: str, topic: str, sqlite_url: str, receiver: OtlpReceiver
) -> None:
    """The caller's span is the parent, although it has ended when the event is published."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("shop")
    settings = publish_settings(cluster, sqlite_url, order_paid_topic=topic, tracing="otlp")
    engine = await make_orders(sqlite_url)
    async with receiver, open_order_events(settings) as events:
        async with AsyncSession(engine) as session:
            with tracer.start_as_current_span("request") as request:
                session.add_all([Order(id=1), Order(id=2)])
                events.outbox.add(session, paid(1))
                pending = events.after_commit.publish(session, paid(2))
            await session.commit()
        assert isinstance(await pending, Published)
        await receiver.wait_for(lambda spans: len(spans) == 2)
    await engine.dispose()
    caller = request.get_span_context()
    by_name = {span.name: span for span in receiver.spans}
    assert set(by_name) == {f"publish {topic}", f"replay {topic}"}
    for span in receiver.spans:
        assert (span.trace_id, span.parent_id) == (
            f"{caller.trace_id:032x}",
            f"{caller.span_id:016x}",
        )
        assert span.service == "order-relay"
    for record in await asyncio.to_thread(read_topic, cluster, topic):
        name = "replay" if record.key == b"1" else "publish"
        traceparent = dict(record.headers)["traceparent"] or b""
        assert by_name[f"{name} {topic}"].is_parent_in(traceparent.decode())


async def test_the_end_does_not_wait_for_a_collector_that_hangs(
    cluster: str, topic: str, sqlite_url: str, receiver: OtlpReceiver
) -> None:
    """The service closes while the collector's answer is missing; the event is in Kafka."""
    receiver.gate.clear()
    settings = publish_settings(cluster, sqlite_url, order_paid_topic=topic, tracing="otlp")
    async with receiver:
        async with asyncio.timeout(2 * LIMIT_SECONDS):
            async with open_order_events(settings) as events:
                assert isinstance(await events.publisher.publish(paid(1)), Published)
                await eventually(lambda: receiver.requests, LIMIT_SECONDS, "spans are sent")
        assert not receiver.spans
