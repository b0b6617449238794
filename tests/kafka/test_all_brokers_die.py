"""All three brokers are killed under load and come back; delivering and publishing continue.

All stories wait for the same outage.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from order_relay.fallback.sql.migrate import migrate
from order_relay.fallback.store import Status
from order_relay.worker.relay_app import SHUTDOWN_TAIL_SECONDS
from tests.kafka.publish_scene import (
    DELIVERY_TIMEOUT_SECONDS,
    Place,
    PublishScene,
    Records,
    Saved,
    Service,
)
from tests.kafka.scene import MAX_IN_FLIGHT, SESSION_SECONDS, Scene
from tests.kafka.stories import Outage, Part, Stories, Story, told
from tests.support.kafka.cluster import RealKafka
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import order_value
from tests.support.publish_postgres import PostgresServer
from tests.support.publish_service import AFTER_COMMIT, OUTBOX, PLAIN_SQL, order_event_id
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = [pytest.mark.harms_brokers, pytest.mark.asyncio(loop_scope="module")]

# Several times longer than a group waits for a silent member.
OUTAGE_SECONDS = 4 * SESSION_SECONDS
GRACE_SECONDS = 5.0
# Extra time for the process to end on a busy machine.
ENDING_SECONDS = 10.0
# The first broker that is back refuses records until there are replicas. A row may be refused three
# times: its waits must be longer than the brokers' start.
BACKOFF_BASE_SECONDS = 10
ORDERS = 2_000
# Orders paid when the brokers die, and when they come back; the rest is paid afterwards.
HIT, PAID_IN_OUTAGE = 400, 1_400


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stories(
    module_kafka: RealKafka,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Stories]:
    """Start all stories, and the outage that they wait for."""
    outage = Outage(module_kafka, stories=len(STORIES), seconds=OUTAGE_SECONDS)

    databases = {}
    for story in PUBLISHING:
        url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('database') / 'orders.db'}"
        if story in ON_POSTGRESQL:
            url = postgres_server.url(postgres_server.create_database())
        await migrate(url)
        databases[story] = url

    async def tell(story: Story, part: Part) -> None:
        directory = tmp_path_factory.mktemp("story")
        try:
            if story in DELIVERING:
                await story(module_kafka, directory, part)
            else:
                async with PublishScene(
                    module_kafka,
                    directory,
                    databases[story],
                    fallback_backoff_base_seconds=BACKOFF_BASE_SECONDS,
                ) as scene:
                    await story(scene, part)
        finally:
            part.leave()

    parts = dict(zip(STORIES, outage.parts, strict=True))
    async with told(
        {story: tell(story, part) for story, part in parts.items()} | {Outage.run: outage.run()}
    ) as begun:
        yield begun


async def under_load(kafka: RealKafka, directory: Path, outage: Part) -> None:
    """A worker under constant load goes on afterwards.

    Orders published before, during and after the outage are delivered. Only records that finished
    while commits failed may be repeated.
    """
    async with Scene(kafka, directory) as scene:
        scene.latency_seconds = 0.2
        worker = await scene.ready_worker("a")
        scene.load.flow(100)
        await scene.until_accepted(500)
        scene.all_brokers_died = True
        await outage.begun()
        await outage.over()
        assert await worker.live()
        await scene.until_orders_accepted(scene.load.produced + 100)
        await scene.settle_and_check()
        scene.assert_repeats_are_recent(outage.outage.since)
        assert worker.running


async def told_to_stop(kafka: RealKafka, directory: Path, outage: Part) -> None:
    """SIGTERM with 256 records in flight and no broker ends a worker within its deadlines."""
    async with Scene(kafka, directory) as scene:
        scene.hold(after=MAX_IN_FLIGHT)
        worker = await scene.ready_worker("b", shutdown_grace_seconds=GRACE_SECONDS)
        scene.load.publish(3000)
        await scene.until_accepted(MAX_IN_FLIGHT)
        await scene.until_full()
        scene.all_brokers_died = True
        await outage.begun()
        worker.sigterm()
        scene.let_go()
        await worker.wait(GRACE_SECONDS + SHUTDOWN_TAIL_SECONDS + ENDING_SECONDS)
        await outage.over()
        scene.latency_seconds = 0.1
        scene.worker("b2")
        await scene.settle_and_check()
        scene.assert_repeats_are_recent(outage.outage.since)


async def started(kafka: RealKafka, directory: Path, outage: Part) -> None:
    """A worker starts without brokers: one line says so, and it declares its topics later."""
    async with Scene(kafka, directory, declared=False) as scene:
        await outage.begun()
        worker = scene.worker("c")
        await worker.wait_log("Kafka cannot be reached")
        await outage.over()
        await worker.wait_ready()
        scene.load.publish(500)
        await scene.settle_and_check()
        before, _, _ = worker.log_text().partition("Kafka works at")
        before, _, _ = before.rpartition("\n")
        complaints = re.findall(r"\[(?:WARNING|ERROR|CRITICAL)\](.*)$", before, re.MULTILINE)
        assert [line for line in complaints if "Kafka cannot be reached" not in line] == []
        # Once for each reason, which may change as brokers come back.
        assert 0 < len(complaints) == len(set(complaints))
        assert "Traceback" not in before


class Buyers:
    """Clients of a worker that pay side by side, and keep its answers.

    Attributes:
        published: Partition and offset in a client's answer, by event id.
        saved: Event ids that were answered as saved.
        unanswered: Posts on connections that the worker had closed.
    """

    def __init__(self, worker: WorkerProcess, count: int = 1_000) -> None:
        self.published: dict[str, Place] = {}
        self.saved: set[str] = set()
        self.unanswered = 0
        self._posted: dict[str, tuple[float, float]] = {}
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
        """Wait until ``count`` orders are paid."""

        def paid() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return len(self.published) + len(self.saved) >= count

        await eventually(paid, 120, lambda: (len(self.published), len(self.saved)))

    def most_copies(self, event_id: str) -> int:
        """The most copies of an event: one, and one for each other saved while it was in flight."""
        begin, end = self._posted[event_id]
        others = (self._posted[one] for one in self.saved)
        return 1 + sum(
            # In an outage an event is saved at once, but refused only at its time-out.
            its_begin <= end and begin <= its_end + DELIVERY_TIMEOUT_SECONDS
            for its_begin, its_end in others
        )

    async def _post(self, value: bytes, headers: dict[str, str]) -> dict[str, Any]:
        while True:
            try:
                async with self._http.post(self._url, data=value, headers=headers) as response:
                    answer: dict[str, Any] = await response.json()
                    assert response.status == 202, answer
                    return answer
            except aiohttp.ServerDisconnectedError:
                pass
            except aiohttp.ClientOSError as error:
                closed = aiohttp.ClientConnectionResetError
                if not isinstance(error, closed) and not isinstance(error.__cause__, closed):
                    raise
            # On a busy machine the worker may close a connection that was silent for too long.
            self.unanswered += 1

    async def _pay(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            event_id = order_event_id(number)
            headers = {"Content-Type": "application/json", "event-id": event_id}
            posted_at = time.monotonic()
            answer = await self._post(order_value(number), headers)
            assert answer["eventId"] == event_id
            self._posted[event_id] = posted_at, time.monotonic()
            if answer["status"] == "published":
                self.published[event_id] = answer["partition"], answer["offset"]
            else:
                assert answer["status"] == "saved"
                self.saved.add(event_id)


async def through_an_outage(scene: PublishScene, buyers: Buyers | Service, outage: Part) -> None:
    """Have all orders paid: brokers die meanwhile, and are back before the last orders."""
    buyers.allow(HIT * 2)
    await buyers.until_paid(HIT)
    await outage.begun()
    buyers.allow(PAID_IN_OUTAGE)
    await buyers.until_paid(PAID_IN_OUTAGE)
    await scene.until_counted(Status.PENDING, HIT + 1)  # the outage had an effect
    buyers.allow(ORDERS)
    await outage.over()
    await buyers.until_paid(ORDERS)


def check_copies(records: Records, service: Service) -> None:
    """No event has more copies than its sends explain."""
    most = service.most_copies()
    assert {one: n for one, n in records.copies.items() if n > most[one]} == {}


def check_replayed(
    scene: PublishScene, records: Records, worker: WorkerProcess, saved: list[Saved]
) -> None:
    """Each row was acknowledged once, and is in Kafka."""
    replayed = scene.replayed(worker)
    assert replayed.keys() == {row.id for row in saved}
    for row in saved:
        records.check_place(row.event_id, replayed[row.id])


async def over_http(scene: PublishScene, outage: Part) -> None:
    """Clients post orders to a worker: each is in Kafka as answered, and all are logged."""
    worker = await scene.ready_worker("a")
    async with Buyers(worker) as buyers:
        await through_an_outage(scene, buyers, outage)
    # Only posts on connections that were silent for too long stay unanswered.
    silent = (await worker.metrics())['order_relay_web_connections_closed_total{reason="silent"}']
    assert buyers.unanswered <= silent
    await scene.until_settled()
    records = await scene.records()
    records.check_orders(ORDERS)
    records.check_acknowledged(buyers.published, buyers.most_copies)
    saved = await scene.saved()
    assert {row.event_id for row in saved} == buyers.saved
    assert len(saved) == len(buyers.saved)
    check_replayed(scene, records, worker, saved)
    assert set(buyers.published) | buyers.saved == records.by_id.keys()
    await eventually(
        lambda: set(scene.sink.accepted_keys) == records.by_id.keys(), 120, "all to be logged"
    )


async def after_commit(scene: PublishScene, outage: Part) -> None:
    """Published after the commit, each event is in Kafka as reported; saved ones in order."""
    service = scene.service(AFTER_COMMIT)
    await through_an_outage(scene, service, outage)
    await scene.until_settled()
    await service.end()
    published = service.published()
    records = await scene.records()
    records.check_orders(ORDERS)
    records.check_acknowledged(published, service.most_copies().__getitem__)
    assert service.said("refused")
    check_copies(records, service)
    saved = await scene.saved()
    assert len(saved) == ORDERS - len(published)
    assert {row.event_id for row in saved} == records.by_id.keys() - published.keys()
    records.check_order(saved, first=False)


async def with_an_outbox(scene: PublishScene, outage: Part) -> None:
    """A service publishes the rows of its outbox: all, and each key in the order of payment."""
    service = scene.service(OUTBOX)
    await through_an_outage(scene, service, outage)
    await scene.until_settled()
    await service.end()
    records = await scene.records()
    records.check_orders(ORDERS)
    check_copies(records, service)
    # Only rows in flight when the brokers died are refused; later ones wait.
    assert "Fallback replay skipped, no retry was spent" in service.log.read_text()
    saved = await scene.saved()
    assert len(saved) == ORDERS
    records.check_order(saved, first=True)


async def by_plain_sql(scene: PublishScene, outage: Part) -> None:
    """A service without Kafka only inserts rows; a worker on its database publishes them."""
    worker = await scene.ready_worker("a")
    service = scene.service(PLAIN_SQL)
    await through_an_outage(scene, service, outage)
    await service.end()
    await scene.until_settled()
    records = await scene.records()
    records.check_orders(ORDERS)
    saved = await scene.saved()
    assert len(saved) == ORDERS
    records.check_order(saved, first=True)
    check_replayed(scene, records, worker, saved)
    assert worker.log_lines("Fallback replay skipped, no retry was spent")


DELIVERING: tuple[Story, ...] = (under_load, told_to_stop, started)
PUBLISHING: tuple[Story, ...] = (over_http, after_commit, with_an_outbox, by_plain_sql)
ON_POSTGRESQL: tuple[Story, ...] = (after_commit, by_plain_sql)
STORIES: tuple[Story, ...] = (*DELIVERING, *PUBLISHING)


@pytest.mark.parametrize("story", [*STORIES, Outage.run], ids=lambda story: story.__name__)
async def test_delivering_and_publishing_go_on(stories: Stories, story: Story) -> None:
    """Each story keeps its promises, and all brokers came back."""
    await stories[story]
