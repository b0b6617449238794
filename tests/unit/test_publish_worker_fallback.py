"""The producing half in the worker: opened in the background, replayed, counted, closed."""

import asyncio
import logging
import math
from collections import deque
from pathlib import Path
from typing import cast

import pytest

from order_relay.errors import DatabaseTooNew, DatabaseUnavailable
from order_relay.fallback.sql.migrate import Revisions
from order_relay.fallback.store import NewMessage, Status
from order_relay.fallback.table import FallbackTable
from order_relay.monitoring.metrics import Metrics
from order_relay.publishing.publisher import Published, Saved
from order_relay.settings import load_settings
from order_relay.worker.fallback_service import Fallback
from tests.support.memory_store import MemoryFallbackStore
from tests.support.orders import order_value
from tests.support.publish_fakes import Clock, FakeProducer, forgive, message, refusal

pytestmark = pytest.mark.virtual_time

EVENT = order_value(1)


class OpenableMemory(MemoryFallbackStore):
    """A store in memory that opens after these errors."""

    location = "sqlite+aiosqlite:////srv/relay.db"

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.troubles: deque[Exception] = deque()
        self.read_only: Exception | None = None
        self.opened = False
        self.closed = False

    async def open(self) -> Revisions:
        if self.troubles:
            raise self.troubles.popleft().with_traceback(None)
        self.opened = True
        return Revisions(None, "0001")

    async def check_writes(self) -> None:
        self._check()
        if self.read_only is not None:
            raise self.read_only

    async def save(self, message: NewMessage) -> int:
        if not self.opened:
            raise DatabaseUnavailable("not open")
        return await super().save(message)

    async def close(self) -> None:
        self.closed = True


class Worker:
    """A worker's producing half over a store in memory and a fake producer."""

    def __init__(self) -> None:
        self.store = OpenableMemory(Clock(asyncio.get_running_loop().time))
        self.producer = FakeProducer()
        self.metrics = Metrics()
        self.fallback = Fallback(
            load_settings(fallback_replay_interval_seconds=60),
            cast(FallbackTable, self.store),
            self.producer,
            self.metrics,
        )

    def metric(self, name: str, **labels: str) -> float:
        """What the registry shows."""
        value = self.metrics.registry.get_sample_value(f"order_relay_{name}", labels)
        assert value is not None, name
        return value


@pytest.fixture(autouse=True)
def _no_dot_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def test_a_database_that_is_down_is_tried_on_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line per error, another when the error changes, and then it works."""
    worker = Worker()
    down = DatabaseUnavailable("Connection refused")
    worker.store.troubles.extend([down, down, down, DatabaseTooNew("0002", "0001"), OSError("?")])
    with caplog.at_level(logging.INFO):
        await worker.fallback.start()
        await asyncio.sleep(60)
    assert worker.store.opened
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 3
    assert "Connection refused" in errors[0]
    assert "revision 0002" in errors[1]
    assert all("DATABASE_URL=sqlite+aiosqlite:////srv/relay.db" in line for line in errors)
    assert "migrated from nothing to revision 0001" in caplog.text
    await worker.fallback.close()


async def test_nothing_is_replayed_before_the_table_is_open() -> None:
    """Rows are published as soon as the table opens, not before."""
    worker = Worker()
    worker.store.troubles.extend([DatabaseUnavailable("down")] * 10)
    await MemoryFallbackStore.save(worker.store, message())
    await worker.fallback.start()
    replay = asyncio.create_task(worker.fallback.replay_until_stopped())
    await asyncio.sleep(49)
    assert not worker.producer.sent
    await asyncio.sleep(2)
    assert len(worker.producer.acknowledged) == 1
    await worker.fallback.stop_replay(10)
    await replay
    await worker.fallback.close()
    assert worker.store.closed


async def test_rows_are_replayed_every_interval_and_counted() -> None:
    """A row saved now is published within the interval; the metrics say so."""
    worker = Worker()
    await worker.fallback.start()
    replay = asyncio.create_task(worker.fallback.replay_until_stopped())
    await asyncio.sleep(1)
    worker.producer.refuse = lambda _: refusal()
    saved = await worker.fallback.publisher.publish(EVENT)
    assert isinstance(saved, Saved)
    await asyncio.sleep(20)
    assert worker.metric("fallback_messages", status="pending") == 1
    assert worker.metric("fallback_oldest_pending_seconds") > 0
    await asyncio.sleep(50)
    assert worker.metric("fallback_replayed_total", result="retry") == 1
    worker.producer.refuse = lambda _: None
    await asyncio.sleep(150)
    assert worker.store.rows[saved.row_id].status is Status.PUBLISHED
    assert worker.metric("fallback_replayed_total", result="published") == 1
    assert worker.metric("fallback_messages", status="pending") == 0
    assert worker.metric("fallback_messages", status="published") == 1
    assert worker.metric("fallback_oldest_pending_seconds") == 0
    await worker.fallback.stop_replay(10)
    await replay
    await worker.fallback.close()


async def test_figures_are_unknown_while_the_database_does_not_answer() -> None:
    """NaN and 0 instead of old values; new values when it answers."""
    worker = Worker()
    assert math.isnan(worker.metric("fallback_messages", status="pending"))
    assert worker.metric("fallback_database_up") == 0
    await worker.fallback.start()
    await asyncio.sleep(1)
    assert worker.metric("fallback_messages", status="failed") == 0
    assert worker.metric("fallback_database_up") == 1
    worker.store.error = DatabaseUnavailable("gone")
    await asyncio.sleep(15)
    assert math.isnan(worker.metric("fallback_messages", status="failed"))
    assert math.isnan(worker.metric("fallback_oldest_pending_seconds"))
    assert worker.metric("fallback_database_up") == 0
    worker.store.error = RuntimeError("unexpected")
    await asyncio.sleep(15)
    worker.store.error = None
    await asyncio.sleep(15)
    assert worker.metric("fallback_database_up") == 1
    await worker.fallback.close()


async def test_a_database_that_takes_no_writes_counts_as_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its figures are shown, the metric is 0, and one line says why."""
    worker = Worker()
    worker.store.read_only = DatabaseUnavailable("disk is full")
    await worker.fallback.start()
    await asyncio.sleep(50)
    assert worker.metric("fallback_messages", status="failed") == 0
    assert worker.metric("fallback_database_up") == 0
    assert (
        caplog.text.count("Fallback table takes no rows: the database refused: disk is full") == 1
    )
    worker.store.read_only = None
    await asyncio.sleep(15)
    assert worker.metric("fallback_database_up") == 1
    await worker.fallback.close()


async def test_publishing_needs_no_database_while_kafka_answers() -> None:
    """Without the table, what Kafka accepts is published; a refusal is raised to the caller."""
    worker = Worker()
    worker.store.troubles.extend([DatabaseUnavailable("down")] * 100)
    await worker.fallback.start()
    assert isinstance(await worker.fallback.publisher.publish(EVENT), Published)
    worker.producer.refuse = lambda _: refusal()
    with pytest.raises(Exception, match=r"neither published nor saved: .*; .*not open"):
        await worker.fallback.publisher.publish(EVENT)
    forgive()
    assert worker.metric("published_total", result="published") == 1
    assert worker.metric("published_total", result="failed") == 1
    await worker.fallback.close()


async def test_closing_what_was_never_started() -> None:
    """It works also after a failed start, and twice."""
    worker = Worker()
    await worker.fallback.stop_replay(10)
    await worker.fallback.stop_publishing(10)
    await worker.fallback.close()
    await worker.fallback.close()
    assert worker.store.closed
