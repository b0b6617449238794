"""Events of committed transactions are published, others are not."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession

from order_relay.errors import DatabaseUnavailable, InvalidDatabaseUrl, InvalidEvent, PublishFailed
from order_relay.publishing.after_commit import AfterCommit, NotCommitted, PendingPublish
from order_relay.publishing.order_events import open_order_events, order_events_thread
from order_relay.publishing.publisher import Published, Publisher, Saved
from tests.support.child import run
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import FakeProducer
from tests.support.publish_orders import Order, make_orders, order_ids, sync_engine
from tests.support.publish_ways import TOPIC, paid, publish_settings, read_topic
from tests.support.waiting import eventually

FORK = """
import asyncio, os
from tests.integration.publishing.test_after_commit import Service

async def main():
    service = Service()
    if os.fork():
        os.wait()
        return
    try:
        service.pay()
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)

asyncio.run(main())
"""


class Service:
    """An order service in one process: a scripted Kafka, a store in memory."""

    def __init__(self) -> None:
        self.kafka = FakeProducer()
        self.store = MemoryFallbackStore()
        self.publisher = Publisher(self.kafka, self.store, TOPIC)
        self.after_commit = AfterCommit(self.publisher)

    def pay(self, number: int = 1, **options: Any) -> PendingPublish:
        """Publish an event after the commit of a session that has only that."""
        with orm.Session() as session:
            pending = self.after_commit.publish(session, paid(number), **options)
            session.commit()
        return pending

    @property
    def sent(self) -> list[int]:
        """The orders whose events were sent to Kafka, in order."""
        return [int(record.key or b"-1") for record in self.kafka.sent]


async def test_on_kafka_and_a_real_database(cluster: str, topic: str, database_url: str) -> None:
    """Orders that commit are in Kafka, in the order paid; one that rolls back is not."""
    settings = publish_settings(cluster, database_url, order_paid_topic=topic)
    engine = await make_orders(database_url)
    async with open_order_events(settings) as events:
        pending: list[PendingPublish] = []
        for first in range(0, 50, 5):
            async with AsyncSession(engine) as session:
                for number in range(first, first + 5):
                    session.add(Order(number))
                    pending.append(
                        events.after_commit.publish(session, paid(number), key=b"one-key")
                    )
                if first == 20:
                    await session.rollback()
                await session.commit()
        results = [await one for one in pending]
    for number, result in enumerate(results):
        assert isinstance(result, NotCommitted if 20 <= number < 25 else Published)
    assert len(await order_ids(engine)) == 45
    await engine.dispose()
    records = await asyncio.to_thread(read_topic, cluster, topic)
    committed = [one.event_id for number, one in enumerate(pending) if not 20 <= number < 25]
    assert [record.event_id for record in records] == committed


async def test_a_blocking_session_in_a_thread(tmp_path: Path) -> None:
    """A Session of another thread publishes through the loop, and can wait for the result."""
    service = Service()

    def pay() -> list[object]:
        with sync_engine(str(tmp_path / "orders.db")) as engine:
            pending = []
            with orm.Session(engine) as session:
                for number in range(20):
                    session.add(Order(number))
                    pending.append(service.after_commit.publish(session, paid(number)))
                session.commit()
                dropped = service.after_commit.publish(session, paid(99))
            return [one.result(timeout_seconds=30) for one in [*pending, dropped]]

    *published, dropped = await asyncio.to_thread(pay)
    assert all(isinstance(one, Published) for one in published)
    assert dropped == NotCommitted()
    assert service.sent == list(range(20))


async def test_a_blocking_session_in_the_loops_thread(tmp_path: Path) -> None:
    """A Session in the loop's own thread works, too; blocking there is an error, not a hang."""
    service = Service()
    with sync_engine(str(tmp_path / "orders.db")) as engine, orm.Session(engine) as session:
        pending = service.after_commit.publish(session, paid(1))
        session.commit()
    with pytest.raises(RuntimeError, match="await"):
        pending.result()
    assert isinstance(await pending, Published)
    assert isinstance(pending.result(), Published)


def test_a_service_without_asyncio(cluster: str, topic: str, tmp_path: Path) -> None:
    """``order_events_thread`` has its own loop, and ends its thread."""
    settings = publish_settings(cluster, tmp_path / "fallback.db", order_paid_topic=topic)
    with (
        order_events_thread(settings) as events,
        sync_engine(str(tmp_path / "orders.db")) as engine,
        orm.Session(engine) as session,
    ):
        session.add(Order(1))
        pending = events.after_commit.publish(session, paid(1))
        session.commit()
        assert isinstance(pending.result(30), Published)
        last = events.after_commit.publish(session, paid(2))
        session.commit()  # not awaited
    assert isinstance(last.result(0), Published)
    assert {record.key for record in read_topic(cluster, topic)} == {b"1", b"2"}
    assert "order-events" not in {thread.name for thread in threading.enumerate()}


async def test_a_publisher_in_another_loop() -> None:
    """It raises at once: Kafka's answer wakes only the publisher's own loop."""
    publisher = Service().publisher

    def publish() -> None:
        asyncio.run(publisher.publish(paid(1)))

    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        await asyncio.to_thread(publish)


async def test_a_wrong_event_is_refused_before_the_commit() -> None:
    """The order can still be rolled back."""
    service = Service()
    with orm.Session() as session:
        with pytest.raises(InvalidEvent, match="orderId"):
            service.after_commit.publish(session, paid(orderId=None))
        assert not session.in_transaction()


def test_a_fork_is_refused_before_its_commit() -> None:
    """A fork has no thread that publishes; its event would be lost silently."""
    assert run("-c", FORK).stdout == "a fork cannot publish: open the order events after the fork\n"


async def test_what_was_given_is_published() -> None:
    """Changing the event after ``publish`` has no effect."""
    service = Service()
    event = paid(1)
    with orm.Session() as session:
        pending = service.after_commit.publish(session, event, event_id="e", headers=[("h", b"v")])
        event["orderId"] = 2
        session.commit()
    await pending
    (record,) = service.kafka.sent
    assert (record.key, record.headers) == (b"1", (("h", b"v"), ("event-id", b"e")))


async def test_the_commit_does_not_wait_for_kafka() -> None:
    """Without Kafka's answers commits continue; events keep the order of commits."""
    service = Service()
    service.kafka.answers.clear()
    pending = []
    for number in range(5):
        async with AsyncSession() as session:
            pending.append(service.after_commit.publish(session, paid(number)))
            await session.commit()
    assert not any(one.done() for one in pending)
    service.kafka.answers.set()
    assert all([isinstance(await one, Published) for one in pending])
    assert service.sent == list(range(5))


async def test_cancelling_a_wait_does_not_cancel_the_publish() -> None:
    """Cancelling a wait before the commit does not cancel the publish."""
    service = Service()
    with orm.Session() as session:
        pending = service.after_commit.publish(session, paid(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pending
        session.commit()
    assert isinstance(await pending, Published)


async def test_saved_and_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Events that Kafka refuses are saved; a refusal of the database is raised and logged."""
    service = Service()
    service.kafka.refuse_all()
    assert isinstance(await service.pay(), Saved)
    service.store.error = DatabaseUnavailable("disk full")
    pending = service.pay(2, event_id="lost-one")
    with pytest.raises(PublishFailed, match="disk full"):
        await pending
    (line,) = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert line.startswith("Event of a committed order was lost event_id=lost-one key=2 ")


@pytest.mark.parametrize("from_thread", [False, True], ids=["loop", "thread"])
async def test_closing_right_after_a_commit(from_thread: bool) -> None:
    """An event committed before the close is not lost."""
    service = Service()
    service.kafka.answers.clear()
    pending = await asyncio.to_thread(service.pay) if from_thread else service.pay()
    await service.after_commit.close(grace_seconds=0)
    await service.publisher.close(grace_seconds=0)
    assert isinstance(await pending, Saved)
    assert len(service.store.rows) == 1


async def test_the_end_comes_after_all_commits_before_it(caplog: pytest.LogCaptureFixture) -> None:
    """Events of earlier commits are safe when ``end`` returns; a later one is lost and logged."""
    service = Service()
    service.kafka.answers.clear()
    await service.publisher.close(grace_seconds=0)
    pending = await asyncio.to_thread(service.pay)
    await service.after_commit.end()
    assert isinstance(pending.result(0), Saved)
    assert "lost" not in caplog.text
    late = await asyncio.to_thread(service.pay, 2, event_id="late")
    with pytest.raises(RuntimeError, match="ended"):
        late.result(0)
    assert "Event of a committed order was lost event_id=late" in caplog.text


async def test_an_answer_within_the_grace() -> None:
    """Closing waits for Kafka's answer within the grace."""
    service = Service()
    service.kafka.answers.clear()
    pending = service.pay()
    closing = asyncio.create_task(service.after_commit.close(grace_seconds=30))
    await eventually(lambda: service.kafka.sent)
    service.kafka.answers.set()
    await closing
    assert pending.done()
    assert isinstance(pending.result(), Published)


def test_a_commit_after_the_loop_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """The commit stands, and the event's loss is in the log and in the result."""

    async def make() -> Service:
        return Service()

    pending = asyncio.run(make()).pay()
    with pytest.raises(RuntimeError, match="closed"):
        pending.result(0)
    assert "Event of a committed order was lost" in caplog.text


def test_leaving_while_threads_commit(
    cluster: str, topic: str, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each event is published, saved or logged as lost; leaving does not wait for threads."""
    settings = publish_settings(cluster, sqlite_url, order_paid_topic=topic)
    left = threading.Event()
    pending: list[PendingPublish] = []

    def sell(first: int) -> None:
        for number in range(first, first + 1_000_000):
            if left.wait(0.001):
                return
            with orm.Session() as session:
                pending.append(events.after_commit.publish(session, paid(number)))
                session.commit()

    with order_events_thread(settings, grace_seconds=0.2) as events:
        threads = [
            threading.Thread(target=sell, args=(n * 1_000_000,), daemon=True) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        while len(pending) < 50:
            threads[0].join(0.01)
    left.set()
    for thread in threads:
        thread.join()
    for one in pending:
        assert one.done(), one.event_id
        try:
            assert isinstance(one.result(), Published | Saved)
        except RuntimeError:
            assert f"was lost event_id={one.event_id} " in caplog.text


def test_a_service_without_asyncio_and_a_wrong_database() -> None:
    """The caller gets the error, and no thread is left."""
    settings = publish_settings("localhost:1", "sqlite+aiosqlite:///:memory:")
    with pytest.raises(InvalidDatabaseUrl), order_events_thread(settings):
        pass
    assert "order-events" not in {thread.name for thread in threading.enumerate()}
