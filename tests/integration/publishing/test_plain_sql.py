"""Rows that an order service writes with plain SQL, in any language."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.replay import Replay
from order_relay.fallback.store import RowFilter, Status
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from tests.integration.publishing.conftest import ON_SQLITE
from tests.support.publish_fakes import FakeProducer, message


async def insert(store: FallbackTable, columns: str, values: str) -> None:
    """Insert a row as a person would."""
    async with store.engine.begin() as connection:
        await connection.execute(
            text(f"INSERT INTO kafka_fallback_message ({columns}) VALUES ({values})")  # noqa: S608
        )


async def test_three_columns_are_enough(store: FallbackTable) -> None:
    """Topic, key and payload as text: the row is due at once, and gets an event id."""
    producer = FakeProducer()
    payload = '{"note":"a \\\\ \\"quoted\\" \\n größe 😀"}'
    await insert(store, "topic, message_key, payload", f"'orders', '42', '{payload}'")
    (row,) = await store.find(RowFilter())
    assert (row.status, row.retry_count, row.max_retry) == (Status.PENDING, 0, 3)
    assert abs(datetime.now(UTC) - row.created_at) < timedelta(minutes=1)
    assert await Replay(store, producer).run_once() == Sweep(published=1)
    (sent,) = producer.sent
    assert (sent.topic, sent.key, sent.value) == ("orders", b"42", payload.encode())
    assert len(sent.event_id) == 36


async def test_headers_and_bytes_by_hand(store: FallbackTable) -> None:
    """Headers may be an object, and bytes hexadecimal; the key is optional."""
    producer = FakeProducer()
    await insert(
        store, "topic, payload, headers", "'orders', '\\x00ff', '{\"event-id\"\\:\"e-1\"}'"
    )
    assert (await Replay(store, producer).run_once()).published == 1
    assert producer.sent[0].value == b"\x00\xff"
    assert producer.sent[0].event_id == "e-1"


async def test_unreadable_headers_fail_the_row(store: FallbackTable) -> None:
    """A row with unreadable headers is FAILED; others are published."""
    await insert(store, "topic, message_key, headers", "'orders', '1', '{oops'")
    await insert(store, "topic, message_key", "'orders', '1'")
    assert await Replay(store, FakeProducer()).run_once() == Sweep(published=1, failed=1)
    (row,) = await store.find(RowFilter(status=Status.FAILED))
    assert "headers" in (row.error_message or "")


@pytest.mark.parametrize(
    ("columns", "values"),
    [("topic, status", "'orders', 'DONE'"), ("topic", "''"), ("payload", "'{}'")],
)
async def test_nonsense_is_refused_when_written(
    store: FallbackTable, columns: str, values: str
) -> None:
    """A wrong status, an empty topic or none is refused by the database."""
    with pytest.raises(IntegrityError):
        await insert(store, columns, values)


@ON_SQLITE
@pytest.mark.parametrize("moment", ["2025-12-19T10:30:00Z", "tomorrow", "1766140200"])
async def test_sqlite_refuses_other_times(store: FallbackTable, moment: str) -> None:
    """Times are text in SQLite: a format that would sort wrongly is refused."""
    with pytest.raises(IntegrityError):
        await insert(
            store, "topic, next_retry_at", f"'orders', '{moment.replace(':', chr(92) + ':')}'"
        )
    await insert(store, "topic, next_retry_at", "'orders', CURRENT_TIMESTAMP")
    assert (await Replay(store, FakeProducer()).run_once()).published == 1


async def test_a_database_that_is_gone(postgres_url: str) -> None:
    """A missing database is DatabaseUnavailable, with the driver's message."""
    store = FallbackTable(postgres_url + "_gone")
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        await store.open()
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        await store.save(message())
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        await store.claim(limit=1, lease_seconds=1)
    await store.close()


async def test_one_bad_message_does_not_spoil_the_others(store: FallbackTable) -> None:
    """Messages share a commit; one that the database refuses fails alone."""
    bad = message(topic="")
    results = await asyncio.gather(
        *(store.save(message(key=b"%d" % n)) for n in range(5)),
        store.save(bad),
        *(store.save(message(key=b"%d" % n)) for n in range(5)),
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(DatabaseUnavailable) == 1
    assert await store.count(RowFilter()) == 10
