"""The demo's parts: its Kafka, its sample logger, its collector."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from confluent_kafka import Producer

from demo.collector import Collector
from demo.command_line import CannotRun, Options
from demo.kafka import PARTITIONS, EmbeddedCluster
from demo.logger import RETRY_AFTER_SECONDS, Kind, SampleLogger
from demo.scenario import outage_plan, run_outages
from demo.shop import Order, ShopDatabase, sample_orders
from demo.worker import demo_settings
from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.store import NewMessage
from order_relay.fallback.table import FallbackTable
from order_relay.model.headers import EVENT_ID_HEADER, Headers
from order_relay.settings import Settings
from tests.support.waiting import eventually

DLQ_TOPIC = "order-paid-events.DLQ"


@pytest.fixture
def cluster() -> Iterator[EmbeddedCluster]:
    """The demonstration's Kafka."""
    made = EmbeddedCluster()
    yield made
    made.stop()


def settings_at(servers: str, folder: Path) -> Settings:
    """The demonstration's settings, with its database in this folder."""
    return demo_settings(Options(), folder, servers)


def a_collector() -> Collector:
    """A collector without data."""
    return Collector(Options(), SampleLogger(1))


@asynccontextmanager
async def watching(
    collector: Collector, table: ShopDatabase
) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """Watch the table; yields a function that ends this after a last look."""
    task = asyncio.create_task(collector.watch_table(table))

    async def finish() -> None:
        collector.finish()
        await task

    try:
        yield finish
    finally:
        await finish()


class Answers(SampleLogger):
    """A script that answers as the key says."""

    def __init__(self) -> None:
        super().__init__(1)

    def answer(self, event_id: str) -> tuple[Kind, float]:
        """The kind named by the key."""
        self.requests += 1
        return Kind[event_id], 0.0


async def test_the_sample_logger_does_what_its_script_says() -> None:
    """Each kind is a real answer over HTTP, and only accepted keys are reported."""
    accepted: list[str] = []
    logger = Answers()
    logger.on_accepted = accepted.append
    short = aiohttp.ClientTimeout(total=0.3)
    async with logger.listening(0) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/logs"

        async def post(kind: Kind) -> aiohttp.ClientResponse:
            headers = {"Idempotency-Key": kind.name}
            async with session.post(url, data=b"{}", headers=headers, timeout=short) as answer:
                return answer

        assert (await post(Kind.ACCEPTED)).status == 201
        assert (await post(Kind.REFUSED)).status == 422
        assert (await post(Kind.UNAVAILABLE)).status == 503
        busy = await post(Kind.BUSY)
        assert busy.status == 429
        assert busy.headers["Retry-After"] == str(RETRY_AFTER_SECONDS)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await post(Kind.RESET)
        with pytest.raises(TimeoutError):
            await post(Kind.HANGING)
    assert accepted == ["ACCEPTED"]
    assert logger.requests == 6
    assert set(logger.answers) == set(Kind)


def test_a_cluster_that_does_not_start_is_one_line() -> None:
    """The line has librdkafka's message."""
    with pytest.raises(CannotRun, match=r"embedded Kafka cluster.*test\.mock\.num\.brokers"):
        EmbeddedCluster(brokers=-1)


async def test_every_dead_letter_is_read_to_the_very_end(
    tmp_path: Path, cluster: EmbeddedCluster
) -> None:
    """Letters from before the start, from while it runs, and from just before the end."""
    cluster.make_topic(DLQ_TOPIC, PARTITIONS)
    assert len(cluster.servers.split(",")) == 3
    settings = settings_at(cluster.servers, tmp_path)
    producer = Producer({"bootstrap.servers": cluster.servers, "log_level": 0})
    collector = a_collector()

    def found() -> int:
        return len(collector.ledger.wrong())

    def write(number: int) -> None:
        for letter in range(number, number + 10):
            event_id = f"event-{letter}".encode()
            headers: Headers = [("event-id", event_id), ("dlq-reason", b"rejected")]
            producer.produce(settings.dlq_topic, b"value", f"{letter}".encode(), headers=[*headers])
        assert producer.flush(10) == 0

    write(0)
    reading = asyncio.create_task(collector.read_dead_letters(settings))
    try:
        await eventually(lambda: found() == 10)
        write(10)
        await eventually(lambda: found() == 20)
        write(20)
        producer.produce(settings.dlq_topic, b"no headers", partition=0)
        assert producer.flush(10) == 0
    finally:
        collector.finish()
        await reading
    ledger = collector.ledger
    nameless = [event_id for event_id in ledger.wrong() if "without event-id" in event_id]
    assert len(nameless) == 1
    assert ledger.balance().dead_letter_reasons == {"rejected": 30, "no reason given": 1}
    assert {*ledger.wrong()} == {*nameless, *(f"event-{letter}" for letter in range(30))}


def orders(number: int) -> list[Order]:
    """The first orders of a seed, the first broken one among them."""
    return list(islice(sample_orders(1), number))


@asynccontextmanager
async def shop_at(settings: Settings) -> AsyncIterator[ShopDatabase]:
    """The shop's database, open."""
    database = ShopDatabase(settings)
    try:
        async with database.publishing():
            yield database
    finally:
        await database.close()


async def test_the_last_look_finds_every_order_and_every_row(tmp_path: Path) -> None:
    """The ledger reads orders and rows of any age from the database."""
    settings = settings_at("127.0.0.1:1", tmp_path)
    collector = a_collector()
    made = orders(3)
    async with shop_at(settings) as database, watching(collector, database) as finish:
        for order in made:
            await database.pay(order)
        await finish()
        assert collector.pending == 3
    balance = collector.ledger.balance()
    assert (balance.paid, balance.saved) == (3, 3)
    assert balance.closes


async def test_dead_letters_of_other_consumers_do_not_count_as_orders(tmp_path: Path) -> None:
    """Their rows are pending, but their orders do not count as saved."""
    settings = settings_at("127.0.0.1:1", tmp_path)
    store = FallbackTable(settings.database_url.get_secret_value())
    await store.open()
    async with shop_at(settings) as database:
        for topic in (settings.dlq_topic, f"{settings.order_paid_topic}.coupons.DLQ"):
            await store.save(NewMessage(topic, b"1", b"{}", ((EVENT_ID_HEADER, topic.encode()),)))
        assert await database.waiting() == ({settings.dlq_topic}, 2)
    await store.close()


async def test_an_order_that_the_database_refuses_leaves_nothing(tmp_path: Path) -> None:
    """Neither order nor event is stored; the error is DatabaseUnavailable."""
    settings = settings_at("127.0.0.1:1", tmp_path)
    first, second = orders(2)
    async with shop_at(settings) as database:
        await database.pay(first)
        await asyncio.to_thread(_rename, tmp_path, "kafka_fallback_message", "hidden")
        with pytest.raises(DatabaseUnavailable, match="kafka_fallback_message"):
            await database.pay(second)
        await asyncio.to_thread(_rename, tmp_path, "hidden", "kafka_fallback_message")
        assert await database.orders() == [first.event_id]
        assert (await database.waiting())[0] == {first.event_id}


async def test_a_database_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """The line says what could not be made."""
    settings = settings_at("127.0.0.1:1", tmp_path / "no such folder")
    with pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        async with shop_at(settings):
            pass


async def test_kafka_is_down_as_planned_and_up_at_the_end() -> None:
    """An outage begins after a number of orders, and ends by itself or with the demo."""
    collector = a_collector()
    calls: list[str] = []

    def pay(first: int, last: int) -> None:
        for number in range(first, last + 1):
            collector.ledger.paid(f"event-{number}")

    pay(1, 10)
    cluster = Mock(down=partial(calls.append, "down"), up=partial(calls.append, "up"))
    outages = asyncio.create_task(run_outages(cluster, collector, (10, 5), seconds=0.01))
    await asyncio.sleep(0)
    assert collector.kafka_outages == 0
    pay(11, 11)
    await eventually(lambda: calls == ["down", "up"])
    pay(12, 20)
    await eventually(lambda: collector.kafka_outages == 2)
    outages.cancel()
    await asyncio.wait([outages])
    assert calls == ["down", "up"] * 2
    assert not collector.kafka_is_down


@pytest.mark.parametrize(("orders", "first"), [(1, 0), (60, 40), (500, 333), (100_000, 99_500)])
def test_a_counted_run_meets_one_outage(orders: int, first: int) -> None:
    """One outage begins before the last orders are paid."""
    first_after, every = outage_plan(orders)
    assert first_after == first < orders <= first_after + every


def _rename(folder: Path, before: str, after: str) -> None:
    connection = sqlite3.connect(folder / "shop.db")
    connection.execute(f"ALTER TABLE {before} RENAME TO {after}")
    connection.close()
