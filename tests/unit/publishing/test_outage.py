"""While no broker answers, events are saved at once; one answer ends that."""

from __future__ import annotations

import asyncio

from order_relay.errors import KafkaUnavailable
from order_relay.publishing.outage_watch import OutageWatch
from order_relay.publishing.publisher import Publisher, Saved
from tests.support.memory_store import MemoryFallbackStore
from tests.support.orders import order_value
from tests.support.publish_fakes import Clock, FakeProducer
from tests.support.virtual_time import virtual_time


class Pings:
    """Brokers that answer or do not."""

    def __init__(self) -> None:
        self.answer = True
        self.asked = 0

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        """Answer as told."""
        self.asked += 1
        if not self.answer:
            raise KafkaUnavailable("a:1", "nobody there")


@virtual_time
async def test_two_questions_without_an_answer_make_an_outage_and_one_answer_ends_it() -> None:
    """One lost answer is no outage; a broker that answers again ends it at once."""
    brokers = Pings()
    watch = OutageWatch(brokers, interval_seconds=2.0)
    asking = asyncio.create_task(watch.run())
    await asyncio.sleep(1)
    brokers.answer = False
    await asyncio.sleep(2)
    assert (brokers.asked, watch.reason) == (2, "")

    await asyncio.sleep(2)
    assert "nobody there" in watch.reason

    brokers.answer = True
    await asyncio.sleep(2)
    assert watch.reason == ""
    asking.cancel()


@virtual_time
async def test_a_producer_that_has_just_started_is_asked_at_once() -> None:
    """Before the start it was an outage; what is published right after it goes to Kafka."""
    brokers = Pings()
    brokers.answer = False
    watch = OutageWatch(brokers, interval_seconds=2.0)
    asking = asyncio.create_task(watch.run())
    await asyncio.sleep(3)
    assert watch.reason

    brokers.answer = True
    watch.ask_now()
    await asyncio.sleep(0.1)
    assert watch.reason == ""
    asking.cancel()


@virtual_time
async def test_events_of_an_outage_are_saved_without_waiting_for_kafka() -> None:
    """No publish waits for the delivery time-out while Kafka is known to be away."""
    producer = FakeProducer()
    publisher = Publisher(
        producer,
        MemoryFallbackStore(clock=Clock()),
        "order-paid-events",
        outage=lambda: "nobody there",
    )

    outcome = await publisher.publish(order_value(1))

    assert isinstance(outcome, Saved)
    assert "nobody there" in outcome.reason
    assert producer.sent == []
    assert asyncio.get_running_loop().time() < 1


@virtual_time
async def test_who_waits_when_the_outage_begins_is_saved() -> None:
    """Once Kafka is known to be away, a publish under way does not wait for its time-out."""
    brokers, producer = Pings(), FakeProducer(hold=asyncio.Event())
    publisher = Publisher(
        producer,
        MemoryFallbackStore(clock=Clock()),
        "order-paid-events",
        outage=lambda: watch.reason,
    )
    watch = OutageWatch(brokers, interval_seconds=2.0)
    brokers.answer = False
    asking = asyncio.create_task(watch.run(on_outage=publisher.save_waiting))

    outcome = await publisher.publish(order_value(1), event_id="order-1")

    assert isinstance(outcome, Saved)
    assert (outcome.event_id, len(producer.sent)) == ("order-1", 1)
    assert "nobody there" in outcome.reason
    assert asyncio.get_running_loop().time() < 10
    asking.cancel()
