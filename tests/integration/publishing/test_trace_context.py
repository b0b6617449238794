"""A trace context on every way to Kafka: by request, after commit, and by row."""

import asyncio

import pytest
from multidict import CIMultiDict
from sqlalchemy.ext.asyncio import AsyncSession

from order_relay.model.trace_context import trace_headers
from order_relay.publishing.order_events import open_order_events
from order_relay.publishing.publisher import Publisher
from tests.support.http_request import ask
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import FakeProducer
from tests.support.publish_orders import Order, make_orders
from tests.support.publish_ways import (
    TOPIC,
    body,
    paid,
    publish_settings,
    read_topic,
    serving,
)
from tests.support.waiting import eventually

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
RECORDED = (("traceparent", TRACEPARENT.encode()), ("tracestate", b"rojo=1,congo=2"))


async def posted(*headers: tuple[str, str]) -> tuple[tuple[str, bytes | None], ...]:
    """Post an order with these headers; returns its record's headers without the event id."""
    kafka = FakeProducer()
    publisher = Publisher(kafka, MemoryFallbackStore(), TOPIC)
    names = CIMultiDict([("Content-Type", "application/json"), *headers])
    async with serving(publisher) as url:
        assert (await ask(f"{url}/order-paid", "POST", data=body(), headers=names)).status == 202
        await publisher.close()
    (sent,) = kafka.sent
    return tuple(header for header in sent.headers if header[0] != "event-id")


async def test_a_posted_order_takes_its_request_s_trace_along() -> None:
    """The record gets both headers; names ignore case, and several tracestates are joined."""
    assert await posted(("Traceparent", TRACEPARENT), ("TraceState", "rojo=1,congo=2")) == RECORDED
    assert (
        await posted(
            ("tracestate", "rojo=1"), ("traceparent", TRACEPARENT), ("tracestate", "congo=2")
        )
        == RECORDED
    )
    assert await posted(("traceparent", TRACEPARENT)) == RECORDED[:1]
    assert await posted(("X-Other", "1")) == ()


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "00-xyz")],
        [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)],
        [("tracestate", "rojo=1")],
        [("traceparent", TRACEPARENT.upper()), ("tracestate", "rojo=1")],
    ],
)
async def test_a_request_s_malformed_trace_is_left_behind(headers: list[tuple[str, str]]) -> None:
    """The order is published without the trace context."""
    assert await posted(*headers) == ()


async def test_an_order_service_hands_its_trace_in(
    cluster: str, topic: str, database_url: str
) -> None:
    """Published at once, after commit, or by the outbox, records have the request's trace."""
    given = trace_headers({"Traceparent": TRACEPARENT, "tracestate": "rojo=1,congo=2"})
    settings = publish_settings(cluster, database_url, order_paid_topic=topic)
    engine = await make_orders(database_url)
    async with open_order_events(settings) as events:
        await events.publisher.publish(paid(1), headers=given)
        async with AsyncSession(engine) as session:
            session.add(Order(2))
            pending = events.after_commit.publish(session, paid(2), headers=given)
            events.outbox.add(session, paid(3), headers=given)
            await session.commit()
        await pending

        async def all_in_kafka() -> bool:
            return len(await asyncio.to_thread(read_topic, cluster, topic)) == 3

        await eventually(all_in_kafka)
    await engine.dispose()
    records = await asyncio.to_thread(read_topic, cluster, topic)
    assert {record.headers[:2] for record in records} == {RECORDED}
    assert {record.key for record in records} == {b"1", b"2", b"3"}
