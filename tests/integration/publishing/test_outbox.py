"""Outbox rows are committed with the order, and published at once if possible."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from order_relay.errors import DatabaseUnavailable, InvalidEvent
from order_relay.fallback.replay import Replay
from order_relay.fallback.store import FallbackRow, RowFilter, Status
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from order_relay.publishing.order_events import open_order_events
from order_relay.publishing.outbox import Outbox
from tests.support.publish_fakes import FakeProducer
from tests.support.publish_orders import Order, make_orders, order_ids, statuses, sync_engine
from tests.support.publish_ways import TOPIC, body, paid, publish_settings, read_topic
from tests.support.waiting import eventually


class Sweeps(Replay):
    """A replay that counts its sweeps.

    Attributes:
        begun: How many have begun.
        error: Raised, while it is set.
        goes_on: While it is cleared, sweeps do not end.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.error: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def run_once(self) -> Sweep:
        """See ``Replay.run_once``."""
        self.begun += 1
        await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        return Sweep()


@pytest.fixture
async def shop(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    """A shop's database, with the table of its outbox."""
    engine = await make_orders(sqlite_url)
    yield engine
    await engine.dispose()


async def stored(url: str) -> list[FallbackRow]:
    """All rows as the store reads them."""
    store = FallbackTable(url)
    rows = await store.find(RowFilter(), limit=10_000)
    await store.close()
    return rows


async def test_on_kafka_and_a_real_database(cluster: str, topic: str, database_url: str) -> None:
    """Rows are PUBLISHED right after their commit, in order; rolled back rows are not."""
    # Only one regular sweep, at the start: later rows are published by the outbox.
    settings = publish_settings(cluster, database_url, order_paid_topic=topic)
    engine = await make_orders(database_url)
    ids = []
    async with open_order_events(settings) as events:
        for first in range(0, 50, 5):
            async with AsyncSession(engine) as session:
                for number in range(first, first + 5):
                    session.add(Order(number))
                    event_id = events.outbox.add(session, paid(number), key=b"one-key")
                    if first != 20:
                        ids.append(event_id)
                if first == 20:
                    await session.rollback()
                await session.commit()

        async def all_published() -> bool:
            return await statuses(engine) == [Status.PUBLISHED] * 45

        await eventually(all_published)
    assert len(await order_ids(engine)) == 45
    await engine.dispose()
    records = await asyncio.to_thread(read_topic, cluster, topic)
    assert [record.event_id for record in records] == ids
    assert {record.key for record in records} == {b"one-key"}


async def test_the_row(database_url: str) -> None:
    """The row is due at once, and the headers have the event id."""
    engine = await make_orders(database_url)
    outbox = Outbox(TOPIC, max_retry=7)
    async with AsyncSession(engine) as session, session.begin():
        event_id = outbox.add(session, body(5), headers=[("h", b"\xff")])
    await engine.dispose()
    (row,) = await stored(database_url)
    assert (row.topic, row.key, row.payload) == (TOPIC, b"5", body(5))
    assert row.headers == (("h", b"\xff"), ("event-id", event_id.encode()))
    assert (row.status, row.retry_count, row.max_retry) == (Status.PENDING, 0, 7)
    assert row.error_message is None
    store = FallbackTable(database_url)
    assert (await store.claim(limit=1, lease_seconds=1)).rows[0].id == row.id
    await store.close()


async def test_a_wrong_event_adds_nothing() -> None:
    """The order can still be rolled back."""
    with orm.Session() as session, pytest.raises(InvalidEvent, match="orderId"):
        Outbox(TOPIC).add(session, paid(orderId=None))
    assert not session.new


async def test_rolled_back_savepoints(shop: AsyncEngine, sqlite_url: str) -> None:
    """Only rows of savepoints that were kept are written."""
    outbox = Outbox(TOPIC)
    async with AsyncSession(shop) as session:
        outbox.add(session, paid(1))
        async with session.begin_nested():
            outbox.add(session, paid(2))
        undone = await session.begin_nested()
        outbox.add(session, paid(3))
        await undone.rollback()
        outbox.add(session, paid(4))
        await session.commit()
    assert [row.key for row in await stored(sqlite_url)] == [b"1", b"2", b"4"]


async def commit_one(shop: AsyncEngine, outbox: Outbox, number: int) -> None:
    """Commit an event."""
    async with AsyncSession(shop) as session, session.begin():
        outbox.add(session, paid(number))


async def test_commits_share_a_sweep(shop: AsyncEngine) -> None:
    """Rows committed during a sweep share the next one; a rollback starts none."""
    sweeps = Sweeps()
    sweeps.goes_on.clear()
    outbox = Outbox(TOPIC, replay=sweeps)
    async with AsyncSession(shop) as session:
        outbox.add(session, paid(0))
        await session.rollback()
    await asyncio.sleep(0)
    assert sweeps.begun == 0
    await commit_one(shop, outbox, 1)
    await eventually(lambda: sweeps.begun)
    for number in range(2, 6):
        await commit_one(shop, outbox, number)
    sweeps.goes_on.set()
    await eventually(lambda: sweeps.begun == 2)
    await outbox.close()
    assert sweeps.begun == 2


async def test_a_commit_in_a_fork(
    shop: AsyncEngine, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork has no event loop: its rows wait for the next replay."""
    sweeps = Sweeps()
    outbox = Outbox(TOPIC, replay=sweeps)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        await commit_one(shop, outbox, 1)
        await asyncio.sleep(0)
    await outbox.close()
    assert sweeps.begun == 0
    assert len(await stored(sqlite_url)) == 1


async def test_the_database_away_after_the_commit(
    shop: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that cannot be claimed wait for replay; the next commit starts a new sweep."""
    sweeps = Sweeps()
    sweeps.error = DatabaseUnavailable("gone")
    outbox = Outbox(TOPIC, replay=sweeps)
    await commit_one(shop, outbox, 1)
    await eventually(lambda: "wait for replay" in caplog.text)
    sweeps.error = ZeroDivisionError()
    await commit_one(shop, outbox, 2)
    await eventually(lambda: "unexpected error" in caplog.text)
    sweeps.error = None
    await commit_one(shop, outbox, 3)
    await eventually(lambda: sweeps.begun == 3)


async def test_closed(shop: AsyncEngine, sqlite_url: str) -> None:
    """After the close, rows are still written for replay; a sweep that hangs is cancelled."""
    sweeps = Sweeps()
    sweeps.goes_on.clear()
    outbox = Outbox(TOPIC, replay=sweeps)
    await commit_one(shop, outbox, 1)
    await eventually(lambda: sweeps.begun)
    await outbox.close(grace_seconds=0)
    await commit_one(shop, outbox, 2)
    assert sweeps.begun == 1
    assert [row.status for row in await stored(sqlite_url)] == [Status.PENDING] * 2


def commit_blocking(url: str, outbox: Outbox) -> None:
    """Commit an event by a blocking session."""
    path = sa.make_url(url).database or ""
    with sync_engine(path) as engine, orm.Session(engine) as session:
        outbox.add(session, paid(1))
        session.commit()


async def test_closing_right_after_a_commit(sqlite_url: str) -> None:
    """A row committed before the close is swept within the grace."""
    sweeps = Sweeps()
    outbox = Outbox(TOPIC, replay=sweeps)
    commit_blocking(sqlite_url, outbox)
    await outbox.close()
    assert sweeps.begun == 1


async def test_kafka_away(shop: AsyncEngine, sqlite_url: str) -> None:
    """A refused row stays PENDING, and the next sweep after its wait publishes it."""
    store = FallbackTable(sqlite_url)
    kafka = FakeProducer()
    kafka.refuse_all()
    replay = Replay(store, kafka)
    outbox = Outbox(TOPIC, replay=replay)
    await commit_one(shop, outbox, 1)
    await eventually(lambda: kafka.sent)
    await outbox.close()
    (row,) = await stored(sqlite_url)
    assert (row.status, row.retry_count) == (Status.PENDING, 1)
    kafka.refuse = lambda _: None
    async with shop.begin() as connection:
        await connection.execute(
            sa.text("UPDATE kafka_fallback_message SET next_retry_at = created_at")
        )
    assert (await replay.run_once()).published == 1
    assert len({record.event_id for record in kafka.sent}) == 1
    await store.close()


async def test_an_outage_does_not_flood_the_service_s_log(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Librdkafka's line for each failed connection is rate-limited, as in a worker."""
    log = logging.getLogger("order_relay.kafka.producer")
    async with open_order_events(publish_settings("127.0.0.1:1", sqlite_url)):
        for broker in range(10):
            log.error("%s [%s] %s", "FAIL", f"broker {broker}", "Connection refused")
    assert len([one for one in caplog.records if one.name == log.name]) == 1
    assert not log.filters


def test_a_commit_after_the_loop_has_ended(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is committed and waits for replay."""
    caplog.set_level(logging.WARNING)

    async def make() -> Outbox:
        return Outbox(TOPIC, replay=Sweeps())

    commit_blocking(sqlite_url, asyncio.run(make()))
    assert "outbox rows wait for replay" in caplog.text
    assert len(asyncio.run(stored(sqlite_url))) == 1
