"""While no broker answers, events are saved at once; one answer ends that."""

from __future__ import annotations

import asyncio

from order_relay.publishing.publisher import Publisher, Saved
from tests.support.memory_store import MemoryFallbackStore
from tests.support.orders import order_value
from tests.support.publish_fakes import Clock, FakeProducer
from tests.support.virtual_time import virtual_time


def kept_publisher(producer: FakeProducer) -> Publisher:
    """A publisher over a store in memory."""
    return Publisher(producer, MemoryFallbackStore(clock=Clock()), "order-paid-events")


@virtual_time
async def test_two_questions_without_an_answer_make_an_outage_and_one_answer_ends_it() -> None:
    """One lost answer is no outage; a broker that answers again ends it at once."""
    brokers = FakeProducer()
    publisher = kept_publisher(brokers)
    asking = asyncio.create_task(publisher.watch())
    await asyncio.sleep(1)
    brokers.reachable = False
    await asyncio.sleep(2)
    assert (brokers.pings, publisher.outage) == (2, "")

    await asyncio.sleep(2)
    assert "no answer" in publisher.outage

    brokers.reachable = True
    await asyncio.sleep(2)
    assert publisher.outage == ""
    asking.cancel()


@virtual_time
async def test_a_producer_that_has_just_started_is_asked_at_once() -> None:
    """Before the start it was an outage; what is published right after it goes to Kafka."""
    brokers = FakeProducer(reachable=False)
    publisher = kept_publisher(brokers)
    asking = asyncio.create_task(publisher.watch())
    await asyncio.sleep(3)
    assert publisher.outage

    brokers.reachable = True
    publisher.ping_now()
    await asyncio.sleep(0.1)
    assert publisher.outage == ""
    asking.cancel()


@virtual_time
async def test_events_of_an_outage_are_saved_without_waiting_for_kafka() -> None:
    """No publish waits for the delivery time-out: not before, and not once Kafka is away."""
    producer = FakeProducer(reachable=False)
    producer.answers.clear()
    publisher = kept_publisher(producer)
    asking = asyncio.create_task(publisher.watch())
    for event_id in ("waits-when-it-begins", "comes-later"):
        outcome = await publisher.publish(order_value(1), event_id=event_id)
        assert isinstance(outcome, Saved)
        assert outcome.event_id == event_id
        assert "no answer" in outcome.reason
        assert len(producer.sent) == 1
        assert asyncio.get_running_loop().time() < 10
    asking.cancel()
