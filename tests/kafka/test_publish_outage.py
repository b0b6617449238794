"""Brokers die while 10,000 orders are paid in each way: every order is in Kafka in the end."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import aiohttp

from tests.kafka.publish_scene import PublishScene, Records, Saved, Service
from tests.kafka.publish_service import (
    AFTER_COMMIT,
    OUTBOX,
    PLAIN_SQL,
    order_event_id,
)
from tests.support.kafka.ports import LOOPBACK
from tests.support.kafka_cluster import RealKafka
from tests.support.orders import order_value
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

ORDERS = 10_000
# Orders paid when brokers die; when all of the outage's are paid; and the rest as they come back.
HIT, OUTAGE = 2_000, 7_000


async def test_orders_paid_over_http(kafka: RealKafka, tmp_path: Path, sqlite_url: str) -> None:
    """Each answer comes true: published once, or saved and then in Kafka; and all are logged."""
    async with PublishScene(kafka, tmp_path, sqlite_url) as scene:
        worker = await scene.ready_worker("a")
        async with Buyers(worker) as buyers:
            await through_an_outage(scene, buyers)
        await scene.until_settled()
        records = await scene.records()
        records.check_orders(ORDERS)
        records.check_acknowledged(buyers.published)
        saved = await scene.saved()
        assert {row.event_id for row in saved} == buyers.saved
        assert len(saved) == len(buyers.saved)
        assert records.copies.keys() <= buyers.saved
        check_replayed(scene, records, worker, saved)
        assert set(buyers.published) | buyers.saved == records.by_id.keys()
        await eventually(
            lambda: set(scene.sink.accepted_keys) == records.by_id.keys(), 120, "all to be logged"
        )


async def test_orders_paid_and_published_after_commit(
    kafka: RealKafka, tmp_path: Path, postgres_url: str
) -> None:
    """Each event ends as its sender is told; saved ones of a key go out in the table's order."""
    async with PublishScene(kafka, tmp_path, postgres_url) as scene:
        service = scene.service(AFTER_COMMIT)
        await through_an_outage(scene, service)
        await scene.until_settled()
        await service.end()
        published = {
            order_event_id(int(number)): (int(partition), int(offset))
            for number, partition, offset in service.said("published")
        }
        records = await scene.records()
        records.check_orders(ORDERS)
        records.check_acknowledged(published)
        check_copies(records.copies, service)
        saved = await scene.saved()
        assert len(saved) == ORDERS - len(published)
        assert {row.event_id for row in saved} == records.by_id.keys() - published.keys()
        records.check_order(saved, first=False)


async def test_orders_paid_with_an_outbox(
    kafka: RealKafka, tmp_path: Path, sqlite_url: str
) -> None:
    """All go out in the order in which they were paid, key by key, whatever Kafka does."""
    async with PublishScene(kafka, tmp_path, sqlite_url) as scene:
        service = scene.service(OUTBOX)
        await through_an_outage(scene, service)
        await scene.until_settled()
        await service.end()
        records = await scene.records()
        records.check_orders(ORDERS)
        check_copies(records.copies, service)
        saved = await scene.saved()
        assert len(saved) == ORDERS
        records.check_order(saved, first=True)


async def test_orders_paid_with_an_outbox_by_plain_sql(
    kafka: RealKafka, tmp_path: Path, postgres_url: str
) -> None:
    """A service that knows no Kafka only inserts rows; a worker on its database publishes them."""
    async with PublishScene(kafka, tmp_path, postgres_url) as scene:
        worker = await scene.ready_worker("a")
        service = scene.service(PLAIN_SQL)
        await through_an_outage(scene, service)
        await service.end()
        await scene.until_settled()
        records = await scene.records()
        records.check_orders(ORDERS)
        saved = await scene.saved()
        assert len(saved) == ORDERS
        records.check_order(saved, first=True)
        check_replayed(scene, records, worker, saved)
        assert worker.log_lines("Fallback replay skipped, no retry was spent")


class Buyers:
    """Clients of a worker that pay side by side, and keep its answers.

    Attributes:
        published: Partition and offset that a client was told, by event id.
        saved: Event ids of which a client was told that they are saved.
    """

    def __init__(self, worker: WorkerProcess, count: int = 1_000) -> None:
        self.published: dict[str, tuple[int, int]] = {}
        self.saved: set[str] = set()
        self._url = f"http://{LOOPBACK}:{worker.web_port}/order-paid"
        self._count = count
        self._last = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Buyers":
        connector = aiohttp.TCPConnector(limit=0)
        self._http = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    def allow(self, last: int) -> None:
        """Pay up to this order."""
        numbers = iter(range(self._last + 1, last + 1))
        self._last = last
        self._tasks += [asyncio.create_task(self._pay(numbers)) for _ in range(self._count)]

    async def until_paid(self, count: int) -> None:
        """Wait until so many orders are paid."""

        def paid() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return len(self.published) + len(self.saved) >= count

        await eventually(paid, 120, lambda: (len(self.published), len(self.saved)))

    async def _pay(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            event_id = order_event_id(number)
            headers = {"Content-Type": "application/json", "event-id": event_id}
            async with self._http.post(
                self._url, data=order_value(number), headers=headers
            ) as response:
                answer = await response.json()
                assert response.status == 202, answer
            assert answer["eventId"] == event_id
            if answer["status"] == "published":
                self.published[event_id] = answer["partition"], answer["offset"]
            else:
                assert answer["status"] == "saved"
                self.saved.add(event_id)


async def through_an_outage(scene: PublishScene, buyers: Buyers | Service) -> None:
    """Have all orders paid: brokers die while they come in, and are back before the last ones."""
    buyers.allow(HIT * 2)
    await buyers.until_paid(HIT)
    await scene.kill_brokers()
    buyers.allow(OUTAGE)
    await buyers.until_paid(OUTAGE)
    assert (await scene.counts()).get("PENDING", 0) > HIT  # the outage was one
    buyers.allow(ORDERS)
    await scene.revive_brokers()
    await buyers.until_paid(ORDERS)


def check_copies(copies: Counter[str], service: Service) -> None:
    """Nothing is there more often than it was sent: once, and again for each refusal."""
    refused = Counter(event_id for (event_id,) in service.said("refused"))
    assert refused
    assert {one: n for one, n in copies.items() if n > 1 + refused[one]} == {}


def check_replayed(
    scene: PublishScene, records: Records, worker: WorkerProcess, saved: list[Saved]
) -> None:
    """Each row was published once, whatever attempts before were not acknowledged; it is there."""
    replayed = scene.replayed(worker)
    assert replayed.keys() == {row.id for row in saved}
    for row in saved:
        last = records.by_id[row.event_id][-1]
        assert replayed[row.id] == (last.partition, last.offset)
