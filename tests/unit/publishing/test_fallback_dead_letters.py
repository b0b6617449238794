"""Dead letters: to their topic, to the table, or not finished."""

from datetime import UTC, datetime

import pytest

from order_relay.delivery.dead_letters import DeadLetter
from order_relay.errors import DatabaseUnavailable, KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.dead_letters import DeadLetters
from order_relay.model.record import Record
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import FakeProducer

LETTER = DeadLetter(
    Record("orders", 1, 5, 1, b"k", b"\xff", (("h", b"v"),)), "invalid_utf8", "not UTF-8", "E", 1,
    datetime(2025, 12, 19, tzinfo=UTC),
)  # fmt: skip


def made_sink(error: Exception) -> tuple[DeadLetters, MemoryFallbackStore]:
    """A sink on a fake producer and store."""
    kafka, store = FakeProducer(refuse=lambda _: error), MemoryFallbackStore()
    letters = DeadLetters(
        kafka, store, "orders.DLQ", group_id="group", consumer="order_logging", max_retry=4
    )
    return letters, store


@pytest.mark.parametrize(
    "error",
    [
        PublishRefused("orders.DLQ", "timed out", "_MSG_TIMED_OUT"),
        KafkaUnavailable("broker:1", "gone"),
        RecordTooLarge("orders.DLQ", 9),
    ],
)
async def test_what_kafka_refuses_is_saved(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The row has the letter's bytes, its partition, all its headers and the reason."""
    sink, store = made_sink(error)
    await sink.send(LETTER)
    (row,) = store.rows.values()
    assert (row.topic, row.key, row.payload, row.partition) == ("orders.DLQ", b"k", b"\xff", 1)
    assert (row.max_retry, row.error_message) == (4, str(error))
    headers = dict(row.headers)
    assert headers["h"] == b"v"
    assert headers["event-id"] == b"orders-1-5"
    assert headers["dlq-reason"] == b"invalid_utf8"
    assert "Saved fallback message id=1 topic=orders.DLQ record=orders[1]@5" in caplog.text


async def test_neither_takes_it() -> None:
    """When the database refuses too, the letter's record is not finished."""
    sink, store = made_sink(KafkaUnavailable("broker:1", "gone"))
    store.error = DatabaseUnavailable("disk full")
    with pytest.raises(DatabaseUnavailable):
        await sink.send(LETTER)
