"""PostgreSQL: rows that other sessions have locked, sessions that vanish, and standbys."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.replay import Replay
from order_relay.fallback.sql import engine, migrate
from order_relay.fallback.store import Claim, Outcome, RowFilter, Status
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from tests.integration.publishing.conftest import ON_POSTGRESQL
from tests.support.publish_fakes import FakeProducer, acked, message
from tests.support.waiting import eventually

pytestmark = ON_POSTGRESQL


async def save(store: FallbackTable, *keys: bytes) -> None:
    """Save a message of each key."""
    for key in keys:
        await store.save(message(b"value", key))


async def claim(store: FallbackTable) -> Claim:
    """Claim all rows."""
    return await store.claim(limit=100, lease_seconds=60)


def ids(claimed: Claim) -> set[int]:
    """The rows of a claim."""
    return {row.id for row in claimed.rows}


@asynccontextmanager
async def locked(store: FallbackTable, row_id: int) -> AsyncIterator[AsyncConnection]:
    """A person's session with an open transaction that has locked a row."""
    async with store.engine.connect() as connection, connection.begin():
        await connection.execute(
            sa.text("SELECT 1 FROM kafka_fallback_message WHERE id = :id FOR UPDATE"),
            {"id": row_id},
        )
        yield connection


@pytest.mark.parametrize(
    ("row_id", "claimed"), [(1, {4, 5}), (2, {1, 4, 5}), (3, {1, 2, 4, 5}), (4, {1, 2, 3, 5})]
)
async def test_a_locked_row_delays_its_key_from_there_on(
    store: FallbackTable, row_id: int, claimed: set[int]
) -> None:
    """Rows before it in its key, and all other keys, are claimed at once."""
    await save(store, b"a", b"a", b"a", b"b", b"c")
    async with locked(store, row_id):
        first = await claim(store)
        assert ids(first) == claimed
    await store.settle(first.token, [acked(one) for one in claimed])
    assert ids(await claim(store)) == {1, 2, 3, 4, 5} - claimed


async def test_a_locked_row_is_settled_and_renewed_later(store: FallbackTable) -> None:
    """The others are at once; it stays leased."""
    await save(store, b"a", b"b", b"c")
    token = (await claim(store)).token
    outcomes = [acked(1), acked(2), Outcome(3)]
    async with locked(store, 2):
        assert await store.renew(token, [1, 2, 3], 60) == {1, 3}
        assert await store.settle(token, outcomes) == {1, 3}
        assert await store.leased(token, [1, 2, 3]) == {2}
    assert await store.renew(token, [1, 2, 3], 60) == {2}
    assert await store.settle(token, outcomes) == {2}
    assert await store.leased(token, [1, 2, 3]) == set()


async def test_a_sweep_settles_a_row_that_was_locked_in_flight(store: FallbackTable) -> None:
    """It publishes the row once, and writes its outcome when the lock is released."""
    await save(store, b"a", b"b", b"c")
    producer = FakeProducer()
    producer.answers.clear()
    sweeping = asyncio.create_task(Replay(store, producer).run_once())
    await eventually(lambda: len(producer.sent) == 3)
    async with locked(store, 2):
        producer.answers.set()

        async def others_are_settled() -> bool:
            return await store.count(RowFilter(status=Status.PUBLISHED)) == 2

        await eventually(others_are_settled)
        assert await Replay(store, producer).run_once() == Sweep()
    assert await sweeping == Sweep(published=3)
    assert len(producer.sent) == 3


async def test_a_row_that_stays_locked_is_told(
    store: FallbackTable, caplog: pytest.LogCaptureFixture
) -> None:
    """The sweep ends with the lease; the row is due again, and published a second time."""
    await save(store, b"a", b"b")
    producer = FakeProducer()
    producer.answers.clear()
    sweeping = asyncio.create_task(Replay(store, producer, lease_seconds=2).run_once())
    await eventually(lambda: len(producer.sent) == 2)
    async with locked(store, 2):
        producer.answers.set()
        with caplog.at_level(logging.WARNING):
            assert await sweeping == Sweep(published=1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "Fallback rows are locked by another session, they may be published again ids=2 rows=1"
    )


async def test_a_worker_that_vanishes_in_a_claim_keeps_no_row(
    store: FallbackTable, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """Without a word from its host, the server ends its transaction."""
    await save(store, b"a", b"b")
    monkeypatch.setattr(engine, "IDLE_TRANSACTION_SECONDS", 1)
    vanished = FallbackTable(database_url)
    async with vanished.engine.connect() as connection:
        await vanished._now(connection)
        await connection.execute(sa.text("SELECT 1 FROM kafka_fallback_message FOR UPDATE"))
        assert ids(await claim(store)) == set()

        async def rows_are_claimed() -> bool:
            return ids(await claim(store)) == {1, 2}

        await eventually(rows_are_claimed)
        await connection.invalidate()
    await vanished.close()


async def test_after_a_failover_no_connection_stays_read_only(
    store: FallbackTable, database_url: str
) -> None:
    """Connections that were opened to a standby are dropped at the first refusal."""
    name = database_url.rpartition("/")[2]
    alter = f'ALTER DATABASE "{name}" SET default_transaction_read_only = '
    writer = FallbackTable(database_url)
    try:
        async with writer.engine.connect() as connection:
            await connection.execute(sa.text(f"{alter} on"))
            await connection.commit()
        await store.engine.dispose()
        with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
            await store.save(message())
    finally:
        async with writer.engine.connect() as connection:
            await connection.execute(sa.text("SET default_transaction_read_only = off"))
            await connection.execute(sa.text(f"{alter} off"))
            await connection.commit()
        await writer.close()
    assert await store.save(message()) == 1


async def test_a_start_waits_for_no_lock_that_it_does_not_need(
    store: FallbackTable, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is up to date needs no migration lock; one that is locked is an error."""
    async with store.engine.connect() as connection, connection.begin():
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(migrate.ADVISORY_LOCK)))
        assert (await migrate.migrate(database_url)).found == "0001"
        await connection.execute(sa.text("LOCK TABLE kafka_fallback_version"))
        monkeypatch.setattr(migrate, "LOCK_SECONDS", 1)
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            await migrate.migrate(database_url)
