"""Publishing through librdkafka to brokers that are down, refuse, and come back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from order_relay.delivery.dead_letters import DeadLetter
from order_relay.fallback.dead_letters import DeadLetters
from order_relay.fallback.replay import Replay
from order_relay.fallback.store import NewMessage, RowFilter, Status
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer, producer_config
from order_relay.model.record import Record
from order_relay.publishing.publisher import Published, Publisher, Saved
from tests.support.embedded import EmbeddedKafka
from tests.support.orders import order_value
from tests.support.publish_fakes import SHORT_SECONDS, ImpatientProducer
from tests.support.stage import Stage
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[3]
QUICK = {"producer_delivery_timeout_ms": 1500, "producer_request_timeout_ms": 1000}


class Shop:
    """A publisher and a replay on an embedded cluster that can be taken down."""

    def __init__(self, kafka: EmbeddedKafka, url: str) -> None:
        self.kafka = kafka
        self.stage: Stage = kafka.stage()
        self.settings = self.stage.settings(**QUICK)
        self.producer = ImpatientProducer(self.settings)
        self.store = FallbackTable(url)
        self.publisher = Publisher(self.producer, self.store, self.stage.topic)
        self.replay = Replay(self.store, self.producer)
        self.dead_letters = DeadLetters(
            self.producer, self.store, self.stage.dlq_topic, group_id="g", consumer="order_logging"
        )

    def kafka_down(self) -> None:
        """Take the brokers down; the producer notices soon."""
        self.kafka.down()
        self.producer.patience_seconds = SHORT_SECONDS

    def kafka_up(self) -> None:
        """Let the brokers be reached again."""
        self.kafka.up()
        self.producer.patience_seconds = ImpatientProducer.patience_seconds

    async def event_ids(self) -> Counter[bytes]:
        """The event ids in the topic."""
        return Counter(
            value or b""
            for row in await self.stage.records()
            for name, value in row.headers
            if name == "event-id"
        )


@pytest.fixture
async def shop(fragile: EmbeddedKafka, sqlite_url: str) -> AsyncIterator[Shop]:
    """A shop that runs."""
    running = Shop(fragile, sqlite_url)
    await running.store.open()
    await running.producer.start()
    yield running
    await running.replay.stop(0)
    await running.publisher.close(0)
    await running.producer.stop(0)
    await running.store.close()


async def test_an_outage_from_end_to_end(shop: Shop) -> None:
    """Events are acknowledged, saved while the brokers are down, and published afterwards."""
    first = await shop.publisher.publish(order_value(1), event_id="e-1")
    assert isinstance(first, Published)
    shop.kafka_down()
    outcomes = await asyncio.gather(
        *(shop.publisher.publish(order_value(n), event_id=f"e-{n}") for n in range(2, 52))
    )
    assert {type(outcome) for outcome in outcomes} == {Saved}
    assert "cannot be reached" in (await shop.replay.run_once()).skipped
    assert await shop.store.count(RowFilter(status=Status.PENDING)) == 50
    shop.kafka_up()
    await eventually(_published(shop, 50))
    assert await shop.event_ids() == Counter(f"e-{n}".encode() for n in range(1, 52))
    rows = await shop.store.find(RowFilter(), limit=100)
    assert {(row.status, row.retry_count) for row in rows} == {(Status.PUBLISHED, 0)}


async def test_brokers_vanish_in_the_middle_of_a_sweep(shop: Shop) -> None:
    """Unanswered rows are released without a retry, and published when brokers are back."""
    for number in range(200):
        await shop.store.save(NewMessage(shop.stage.topic, b"%d" % number, order_value(number)))
    shop.kafka.freeze()
    pinged = asyncio.Event()
    ping = shop.producer.ping

    async def answered_once(timeout_seconds: float = 5.0) -> None:
        # The first ping succeeds, so that the sweep begins.
        if pinged.is_set():
            await ping(0.2)
        pinged.set()

    shop.producer.ping = answered_once  # type: ignore[method-assign]
    sweep = await shop.replay.run_once()
    assert replace(sweep, skipped="") == Sweep(released=200)
    shop.kafka.thaw()
    await eventually(_published(shop, 200))
    rows = await shop.store.find(RowFilter(), limit=1000)
    assert {row.retry_count for row in rows} == {0}


async def test_an_unknown_topic_fails_at_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for an unknown topic is FAILED with Kafka's message; others are published."""
    # librdkafka waits 30 s until all brokers know a new topic; shortened here.
    monkeypatch.setattr(
        "order_relay.kafka.producer.producer_config",
        lambda settings: producer_config(settings) | {"topic.metadata.propagation.max.ms": 100},
    )
    producer = KafkaProducer(shop.stage.settings())
    await producer.start()
    shop.kafka.set_topic_error("gone", KafkaError.UNKNOWN_TOPIC_OR_PART)
    await shop.store.save(NewMessage("gone", b"1", b"{}"))
    await shop.store.save(NewMessage("gone", b"1", b"{}"))
    await shop.store.save(NewMessage(shop.stage.topic, b"1", order_value(1)))
    sweep = await Replay(shop.store, producer).run_once()
    await producer.stop(0)
    assert (sweep.published, sweep.failed) == (1, 2)
    rows = await shop.store.find(RowFilter(status=Status.FAILED))
    assert [row.topic for row in rows] == ["gone", "gone"]
    assert "nknown topic" in (rows[0].error_message or "")


async def test_refused_dead_letters_come_back(shop: Shop) -> None:
    """A refused dead letter is saved, and later published with its bytes, partition and headers."""
    record = Record(shop.stage.topic, 2, 7, 1, b"\xff\x00", None, (("h", b"\xfe"),), 5)
    letter = DeadLetter(record, "tombstone", "no value", "T", 1, datetime.now(UTC))
    shop.kafka_down()
    await shop.dead_letters.send(letter)
    assert await shop.store.count(RowFilter(topic=shop.stage.dlq_topic)) == 1
    shop.kafka_up()
    await eventually(_published(shop, 1))
    (row,) = await shop.stage.dead_letters()
    assert (row.partition, row.key, row.value) == (2, b"\xff\x00", None)
    headers = dict(row.headers)
    assert headers["h"] == b"\xfe"
    assert headers["dlq-reason"] == b"tombstone"
    assert headers["event-id"] == f"{shop.stage.topic}-2-7".encode()
    await shop.dead_letters.send(letter)  # straight to the topic now
    assert await shop.store.count(RowFilter()) == 1


def _published(shop: Shop, count: int) -> Callable[[], Coroutine[None, None, bool]]:
    """Sweep until ``count`` rows are PUBLISHED: a cluster takes a moment to recover."""

    async def sweep() -> bool:
        await shop.replay.run_once()
        return await shop.store.count(RowFilter(status=Status.PUBLISHED)) == count

    return sweep
