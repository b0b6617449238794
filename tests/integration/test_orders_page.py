"""``/orders/<orderId>`` over several workers' web servers."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from yarl import URL

from app.delivery.record import Record
from app.operations.health import Health
from app.operations.metrics import Metrics
from app.operations.web import WebServer
from app.order_status.entry import Entry
from app.order_status.lookup import OrderLookup
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.order_status_fakes import BookBench
from tests.support.waiting import eventually


class IdleDeliveries:
    """Nothing is in hand."""

    held = 0
    last_activity = 0.0


class Worker:
    """A worker as far as ``/orders`` goes: a book, and a web server.

    Attributes:
        owners: The URL of each partition's worker, as this one knows it.
        asked: How often it looked for an order.
    """

    def __init__(self) -> None:
        self.bench = BookBench()
        self.owners: dict[int, str] = {}
        self.asked = 0
        self.port = free_ports(1)[0]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.lookup = OrderLookup(
            self.bench.book,
            self._in_hand,
            lambda: self.owners,
            URL(self.url),
            partition_of=lambda key, partitions: int(key) % partitions,
            retention_hours=24,
        )
        metrics = Metrics()
        health = Health(
            IdleDeliveries(),
            breaker_closed=lambda: True,
            dead_lettering=lambda: 0,
            attempt_timeout_seconds=1,
            clock=time.monotonic,
        )
        self.server = WebServer(LOOPBACK, self.port, metrics.registry, health, orders=self.lookup)

    def _in_hand(self, wanted: Callable[[Record], bool]) -> None:
        self.asked += 1

    async def have(self, *entries: Entry) -> None:
        """Own the partitions of these entries."""
        for entry in entries:
            self.bench.recovery.known.setdefault(entry.partition, []).append(entry)
        await self.bench.arrive(*{entry.partition for entry in entries})

    async def get(self, order_id: int) -> tuple[int, dict[str, object]]:
        """What it answers about an order."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/orders/{order_id}") as response,
        ):
            return response.status, await response.json()


def entry(order_id: int, partition: int) -> Entry:
    """A delivered order's."""
    return Entry(order_id, "delivered", f"e{order_id}", 1, "t", partition, 5, 1000)


@pytest.fixture
async def workers() -> AsyncIterator[list[Worker]]:
    """Three workers that know of each other; order n should be in partition n modulo 3."""
    three = [Worker() for _ in range(3)]
    async with AsyncExitStack() as everything:
        for worker in three:
            await worker.server.start()
            everything.push_async_callback(worker.server.stop)
            everything.push_async_callback(worker.lookup.close)
            everything.push_async_callback(worker.bench.book.close)
            worker.owners = {number: one.url for number, one in enumerate(three)}
        for number, worker in enumerate(three):
            await worker.have(entry(30 + number, number))
        yield three


async def test_any_worker_answers_for_the_owner(workers: list[Worker]) -> None:
    """The owner by the key is asked alone; the answer says who gave it."""
    status, body = await workers[0].get(31)
    assert (status, body["orderId"], body["worker"]) == (200, 31, workers[1].url)
    assert [worker.asked for worker in workers] == [1, 1, 0]


async def test_an_order_in_another_partition_is_found(workers: list[Worker]) -> None:
    """Whoever publishes with keys of their own finds their orders, too."""
    await workers[2].bench.book.leaving()
    await workers[2].have(entry(31_000, 2))
    status, body = await workers[0].get(31_000)
    assert (status, body["worker"]) == (200, workers[2].url)


async def test_unknown_to_all_is_404(workers: list[Worker]) -> None:
    """Everybody was asked, once."""
    status, body = await workers[0].get(77)
    assert (status, list(body)) == (404, ["error"])
    assert [worker.asked for worker in workers] == [1, 1, 1]


async def test_a_worker_that_does_not_answer_leaves_a_doubt(workers: list[Worker]) -> None:
    """Nobody says that an order is unknown when its owner cannot be asked."""
    await workers[1].server.stop()
    status, body = await workers[0].get(31)
    assert status == 503
    assert workers[1].url in str(body["error"])
    assert (await workers[0].get(32))[0] == 200


async def test_a_worker_that_reads_its_table_leaves_a_doubt(workers: list[Worker]) -> None:
    """During recovery an order may be there and not be found yet."""
    workers[1].bench.recovery.released.clear()
    workers[1].bench.book.arriving([4])
    await eventually(lambda: workers[1].bench.recovery.reads[-1] == (4,))
    for worker in workers[:2]:
        status, body = await worker.get(77)
        assert (status, "reading its table" in str(body) or "503" in str(body)) == (503, True)
    workers[1].bench.recovery.released.set()


async def test_before_the_first_assignment_nobody_is_known(workers: list[Worker]) -> None:
    """A worker that has just started cannot say that an order is unknown."""
    workers[0].owners = {}
    status, body = await workers[0].get(77)
    assert status == 503
    assert "not known yet" in str(body["error"])
