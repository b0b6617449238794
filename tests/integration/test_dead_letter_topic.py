"""Dead letters on the embedded cluster, read back by another client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from confluent_kafka import KafkaError

from order_relay.delivery.dead_letters import DeadLetter, dead_letter_headers
from order_relay.fallback.dead_letters import DeadLetters
from order_relay.kafka.producer import KafkaProducer
from order_relay.model.record import Record
from tests.support.embedded import EmbeddedKafka
from tests.support.memory_store import MemoryFallbackStore
from tests.support.orders import order_value
from tests.support.producing import producing
from tests.support.stage import Stage

RECORD = Record(
    topic="order-paid-events",
    partition=2,
    offset=4_294_967_296,
    generation=1,
    key=b"17",
    value=order_value(17),
    headers=(("traceparent", b"00-aa-bb-01"), ("twice", b"1"), ("twice", b"2"), ("null", None)),
    timestamp_ms=1_700_000_000_123,
    timestamp_type=0,
)
LETTER = DeadLetter(
    record=RECORD,
    reason="rejected",
    message="HTTP 422: orderItems is empty",
    error_type="order_relay.Rejected",
    cause_type="builtins.ValueError",
    attempts=1,
    http_status=422,
    failed_at=datetime(2025, 12, 19, 10, 30, tzinfo=UTC),
)


def letters_of(
    stage: Stage, producer: KafkaProducer, store: MemoryFallbackStore, **options: Any
) -> DeadLetters:
    """The sink of a consumer's dead letters."""
    options |= {"group_id": stage.group_id, "consumer": "order_logging"}
    return DeadLetters(producer, store, stage.dlq_topic, **options)


@asynccontextmanager
async def dead_letter_topic(
    stage: Stage, store: MemoryFallbackStore | None = None
) -> AsyncIterator[DeadLetters]:
    """The dead-letter topic of a stage, and a producer with short limits."""
    kept = store or MemoryFallbackStore()
    async with producing(stage) as producer:
        yield letters_of(stage, producer, kept)
    assert store is not None or not kept.rows


async def test_a_letter_is_read_back_with_all_its_headers(stage: Stage) -> None:
    """The letter has the record's key, value and headers, and then Spring's and our headers."""
    async with dead_letter_topic(stage) as topic:
        await topic.send(LETTER)
    (row,) = await stage.dead_letters()
    assert (row.partition, row.key, row.value) == (RECORD.partition, RECORD.key, RECORD.value)
    assert row.headers[:4] == RECORD.headers
    # tests/unit/test_dead_letters.py checks their bytes.
    assert list(row.headers) == dead_letter_headers(LETTER, stage.group_id, "order_logging")


async def test_a_partition_that_the_topic_lacks(stage: Stage) -> None:
    """If the dead-letter topic lacks the record's partition, the key decides."""
    async with dead_letter_topic(stage) as topic:
        record = msgspec.structs.replace(RECORD, partition=7)
        await topic.send(replace(LETTER, record=record))
        await topic.send(replace(LETTER, record=record))
    first, second = await stage.dead_letters()
    assert first.source == second.source == (7, RECORD.offset)
    assert first.partition == second.partition


async def test_a_tombstone_and_a_record_without_a_key(stage: Stage) -> None:
    """Null stays null, in key and value."""
    async with dead_letter_topic(stage) as topic:
        record = msgspec.structs.replace(RECORD, key=None, value=None)
        await topic.send(replace(LETTER, record=record, reason="tombstone", http_status=None))
    (row,) = await stage.dead_letters()
    assert (row.key, row.value, row.header("dlq-reason")) == (None, None, b"tombstone")
    assert "dlq-http-status" not in dict(row.headers)


async def test_a_letter_over_the_limit_loses_its_long_texts(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """A letter that is too large is sent again without message and stack trace."""
    async with dead_letter_topic(stage) as topic:
        await topic.send(LETTER)
        embedded.refuse(KafkaError.MSG_SIZE_TOO_LARGE, 2)  # in a batch, and alone
        await topic.send(LETTER)
    whole, short = await stage.dead_letters()
    missing = dict(whole.headers).keys() - dict(short.headers).keys()
    assert missing == {"kafka_dlt-exception-message", "kafka_dlt-exception-stacktrace"}
    assert (short.key, short.value) == (RECORD.key, RECORD.value)


async def test_a_letter_that_cannot_be_made_smaller(embedded: EmbeddedKafka, stage: Stage) -> None:
    """If the short letter is also too large, the fallback table saves the whole one."""
    store = MemoryFallbackStore()
    async with dead_letter_topic(stage, store) as topic:
        await topic.send(LETTER)
        embedded.refuse(KafkaError.MSG_SIZE_TOO_LARGE, 4)  # each letter in a batch, and alone
        await topic.send(LETTER)
        await topic.send(LETTER)
    assert len(await stage.dead_letters()) == 2
    (row,) = store.rows.values()
    assert (row.key, row.payload, row.partition) == (RECORD.key, RECORD.value, RECORD.partition)
    assert "kafka_dlt-exception-message" in dict(row.headers)


async def test_in_an_outage_a_letter_does_not_wait_for_kafka(stage: Stage) -> None:
    """In a known outage, letters are saved at once, with the outage's reason."""
    store = MemoryFallbackStore()
    # The producer was not started: a call would fail with another reason.
    producer = KafkaProducer(stage.settings())
    await letters_of(stage, producer, store, outage=lambda: "no broker answers").send(LETTER)
    (row,) = store.rows.values()
    assert "no broker answers" in (row.error_message or "")
