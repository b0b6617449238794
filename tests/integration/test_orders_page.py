"""``/orders/<orderId>`` over several workers' web servers."""

import gzip
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler
from yarl import URL

from order_relay.deliveries.entries import Entry
from order_relay.deliveries.lookup import OrderLookup
from order_relay.errors import DatabaseUnavailable, KafkaUnavailable
from order_relay.fallback.store import FallbackRow, NewMessage, RowFilter
from order_relay.model.order_paid import OrderId
from order_relay.model.record import Record
from order_relay.monitoring.metrics import Metrics
from order_relay.web.server import WebServer
from tests.support.deliveries_fakes import TableBench
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.memory_store import MemoryFallbackStore
from tests.support.standing_health import consumer_pages, standing_health
from tests.support.waiting import eventually


class Worker:
    """A worker with a deliveries table and a web server only.

    Attributes:
        owners: The URL of each partition's worker, as this one knows it.
        partitions: The number of partitions, as Kafka says.
        rows: Its fallback table.
        unread: Records of each of its partitions that are not in hand yet; negative: unknown.
        asked: How often it looked for an order.
    """

    def __init__(self, *, table: bool = True) -> None:
        self.bench = TableBench(max_entries=3)
        self.owners: dict[int, str] = {}
        self.partitions = 3
        self.rows = MemoryFallbackStore()
        self.unread = 0
        self.asked = 0
        self.port = free_ports(1)[0]
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.lookup = OrderLookup(
            self.bench.deliveries,
            self._in_hand,
            lambda: self.owners,
            self.url,
            partition_of=lambda key, partitions: (int(key) if key.isdigit() else 1) % partitions,
            retention_hours=24,
            partition_count=self._partition_count,
            saved=self._saved,
            unread=self._unread,
        )
        table_of = self.lookup if table else None
        self.server = WebServer(
            LOOPBACK,
            self.port,
            Metrics().registry,
            {"order_logging": consumer_pages(standing_health(), orders=table_of)},
        )

    async def _partition_count(self) -> int:
        if not self.partitions:
            raise KafkaUnavailable("kafka-1:9092", "no answer")
        return self.partitions

    async def _saved(self, key: bytes) -> FallbackRow | None:
        return next(iter(await self.rows.find(RowFilter(key=key))), None)

    async def _unread(self, partition: int) -> int:
        if self.unread < 0:
            raise TimeoutError
        return self.unread

    def _in_hand(self, wanted: Callable[[Record], bool]) -> None:
        self.asked += 1

    async def have(self, *entries: Entry) -> None:
        """Own the partitions of these entries."""
        for entry in entries:
            self.bench.recovery.known.setdefault(entry.partition, []).append(entry)
        await self.bench.arrive(*{entry.partition for entry in entries})

    async def get(self, order_id: OrderId) -> tuple[int, dict[str, object]]:
        """The worker's answer about an order."""
        page = URL(f"{self.url}/orders/{quote(str(order_id), safe='')}", encoded=True)
        async with aiohttp.ClientSession() as session, session.get(page) as response:
            return response.status, await response.json()

    async def take_over(self, *entries: Entry) -> None:
        """Own the partitions of these entries from now on."""
        await self.bench.deliveries.revoking()
        await self.have(*entries)

    async def error_of_503(self, order_id: OrderId = 77) -> str:
        """The error of a 503: why it may be known."""
        status, body = await self.get(order_id)
        assert status == 503
        return str(body["error"])


def entry(order_id: OrderId, partition: int) -> Entry:
    """A delivered order's entry."""
    return Entry(order_id, "delivered", f"e{order_id}", 1, "t", partition, 5, 1000)


@pytest.fixture
async def workers() -> AsyncIterator[list[Worker]]:
    """Three workers that know each other; order n belongs to partition n modulo 3."""
    three = [Worker() for _ in range(3)]
    async with AsyncExitStack() as everything:
        for worker in three:
            await worker.server.start()
            everything.push_async_callback(worker.server.stop)
            everything.push_async_callback(worker.lookup.close)
            everything.push_async_callback(worker.bench.deliveries.close)
            worker.owners = {number: one.url for number, one in enumerate(three)}
        for number, worker in enumerate(three):
            await worker.have(entry(30 + number, number))
        yield three


async def test_any_worker_answers_for_the_owner(workers: list[Worker]) -> None:
    """Only the key's owner is asked; the answer names the owner."""
    status, body = await workers[0].get(31)
    assert (status, body["orderId"], body["worker"]) == (200, 31, workers[1].url)
    assert [worker.asked for worker in workers] == [1, 1, 0]


async def test_an_order_in_another_partition_is_found(workers: list[Worker]) -> None:
    """Orders published with other keys are found, too."""
    await workers[2].take_over(entry(31_000, 2))
    status, body = await workers[0].get(31_000)
    assert (status, body["worker"]) == (200, workers[2].url)


async def test_unknown_to_all_is_404(workers: list[Worker]) -> None:
    """Each worker was asked once."""
    status, body = await workers[0].get(77)
    assert (status, list(body)) == (404, ["error"])
    assert [worker.asked for worker in workers] == [1, 1, 1]


async def test_a_table_that_forgets_orders_early_is_named(workers: list[Worker]) -> None:
    """An unknown order may have been finished within the retention: its table was full."""
    for order_id in (61, 64, 67, 70):
        workers[1].bench.finish(order_id, partition=1)
    assert await workers[1].bench.deliveries.sweep() == 2  # 31 is of 1970
    for worker in workers:
        status, body = await worker.get(61)
        assert status == 404
        assert (
            f"the table of {workers[1].url} was full, and forgot the oldest orders early "
            "(DELIVERIES_MAX_ENTRIES)" in str(body["error"])
        )
        assert (await worker.get(64))[0] == 200


async def test_a_worker_that_does_not_answer_is_503(workers: list[Worker]) -> None:
    """If its owner does not answer, an order is not reported as unknown."""
    await workers[1].server.stop()
    assert workers[1].url in await workers[0].error_of_503(31)
    assert (await workers[0].get(32))[0] == 200


async def test_a_worker_that_reads_its_table_is_503(workers: list[Worker]) -> None:
    """The table may get the order, during recovery and between assignments."""
    await workers[1].bench.deliveries.revoking()
    for worker in workers:
        assert "reading its table" in await worker.error_of_503()
    workers[1].bench.recovery.released.clear()
    workers[1].bench.deliveries.assigned([4])
    await eventually(lambda: workers[1].bench.recovery.reads[-1] == (4,))
    for worker in workers[:2]:
        assert "reading its table" in await worker.error_of_503()
    workers[1].bench.recovery.released.set()


async def test_a_table_without_its_history_is_503(workers: list[Worker]) -> None:
    """Without the changelog only newer orders are known; a failed store knows none."""
    await workers[1].bench.deliveries.revoking()
    workers[1].bench.recovery.unreadable = True
    await workers[1].have(entry(31, 1))
    workers[2].bench.stores[2].fail()
    workers[1].bench.finish(34, partition=1)
    workers[2].bench.finish(35, partition=2)
    for worker in workers:
        for order_id in (77, 32, 35):
            assert "is incomplete" in await worker.error_of_503(order_id)
        assert [(await worker.get(known))[0] for known in (30, 34)] == [200] * 2


@pytest.mark.parametrize(
    ("owners", "partitions", "words"),
    [
        # Workers on different machines, each with the address 127.0.0.1.
        ({0: 0, 1: 0, 2: 0}, 3, r"partition 1, 2, tells the same address.*ADVERTISED_URL"),
        # The partition's worker may publish no address.
        ({0: 0, 2: 2}, 3, "partition 1 is not known"),
        ({0: 0, 1: 1, 2: 2}, 4, "partition 3 is not known"),
        ({0: 0, 1: 1, 2: 2}, 0, "kafka-1:9092"),
    ],
)
async def test_a_partition_whose_worker_cannot_be_asked_is_503(
    workers: list[Worker], owners: dict[int, int], partitions: int, words: str
) -> None:
    """The answer names the partition, or why the number of partitions is unknown."""
    for worker in workers:
        worker.owners = {number: workers[owner].url for number, owner in owners.items()}
        worker.partitions = partitions
    assert re.search(words, await workers[0].error_of_503())


async def test_an_address_of_another_worker_is_503(workers: list[Worker]) -> None:
    """The worker that answers there does not answer for the intended one."""
    meant, asking = workers[0], Worker()
    asking.owners = {0: f"http://localhost:{meant.port}"}
    asking.partitions = 1
    await asking.bench.arrive()
    found = await asking.lookup.find("77")
    await asking.lookup.close()
    assert (found.status, meant.asked) == (503, 1)
    assert "another worker's" in str(found.body["error"])


async def test_partitions_that_moved_are_503(workers: list[Worker]) -> None:
    """A worker with old assignments asks the wrong workers."""
    for worker in workers[1:]:
        worker.owners = worker.owners | {0: workers[1].url}
    assert "partitions have moved" in await workers[0].error_of_503()


async def test_a_worker_without_a_table_is_503(workers: list[Worker]) -> None:
    """It may have finished the order without an entry; only its own page answers 404."""
    without = Worker(table=False)
    await without.server.start()
    for worker in workers:
        worker.owners = worker.owners | {3: without.url}
        worker.partitions = 4
    assert "DELIVERIES_STORE=off" in await workers[0].error_of_503()
    assert (await without.get(77))[0] == 404
    assert (await workers[0].get(31))[0] == 200
    await without.server.stop()


async def test_a_time_beyond_all_years_is_left_out(workers: list[Worker]) -> None:
    """Records with timestamps in microseconds are shown, without the time."""
    odd = msgspec.structs.replace(entry(33, 0), published_ms=1_766_140_200_000_000)
    await workers[0].take_over(odd)
    for worker in workers:
        status, body = await worker.get(33)
        assert (status, body["state"], body["publishedAt"]) == (200, "delivered", None)


@pytest.mark.parametrize(
    "order_id", ["7f3a5c1e-0d7e-4b57-9a53-0c1d6a2b9e01", "a/b?c #%2F", "주문", int("9" * 4300)]
)
async def test_an_id_may_be_text_or_a_long_number(workers: list[Worker], order_id: OrderId) -> None:
    """For any valid id, the owner is asked for exactly this order."""
    await workers[0].take_over(entry(order_id, 0))
    for worker in workers:
        status, body = await worker.get(order_id)
        assert (status, body["orderId"]) == (200, order_id)


async def test_an_order_that_may_come_is_not_unknown(workers: list[Worker]) -> None:
    """The error has the number of unread records of its partition; others do not count."""
    workers[1].unread = 1200
    for worker in workers:
        status, body = await worker.get(34)
        assert (status, body["unread"], body["partition"]) == (503, 1200, 1)
        assert body["error"] == (
            "order 34 is not seen yet, 1,200 records of its partition 1 are not read"
        )
        assert body["worker"] == workers[1].url
        assert (await worker.get(31))[0] == 200
        assert (await worker.get(35))[0] == 404
    workers[1].unread = -1
    for worker in workers:
        assert "of partition 1 is not read" in await worker.error_of_503(34)


async def test_an_order_that_is_saved_is_not_unknown(workers: list[Worker]) -> None:
    """A pending row is found in any worker's fallback table, also with a backlog."""
    row_id = await workers[2].rows.save(NewMessage("t", b"34", b"{}", error_message="down"))
    workers[1].unread = 7
    for worker in workers:
        status, body = await worker.get(34)
        assert (status, body["state"], body["fallbackId"]) == (200, "saved", row_id)
        assert (body["fallbackStatus"], body["lastError"]) == ("PENDING", "down")
        assert body["worker"] == workers[2].url
    workers[2].rows.error = DatabaseUnavailable("gone")
    workers[1].unread = 0
    assert "the fallback table does not answer" in await workers[2].error_of_503(34)


async def _redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def _elsewhere(request: web.Request) -> web.StreamResponse:
    return web.json_response({"state": "delivered"})


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def _bomb(request: web.Request) -> web.StreamResponse:
    packed = gzip.compress(b'{"state":"' + b"0" * 50_000_000 + b'"}', 1)[:65000]
    return web.Response(body=packed, headers={"Content-Encoding": "gzip"})


def _says(body: bytes, content_type: str = "application/json") -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": content_type})

    return answer


@pytest.mark.parametrize(
    "page",
    [
        _redirect,
        _endless,
        _bomb,
        _says(b"[" * 50_000),
        _says(b'{"state":NaN}'),
        _says(b'{"state":"delivered"', "application/json; charset=no-such"),
        _says(b"\xff"),
        _says(b"[]"),
        _says(b""),
    ],
)
async def test_a_foreign_answer_at_a_workers_address_is_503(
    workers: list[Worker], page: Handler
) -> None:
    """Redirects are not followed, and the size is limited."""
    foreign = web.Application()
    foreign.router.add_get("/orders/{order_id}", page)
    foreign.router.add_get("/elsewhere", _elsewhere)
    async with TestServer(foreign) as server:
        workers[0].owners = workers[0].owners | {1: str(server.make_url("/"))}
        assert "does not say" in await workers[0].error_of_503(31)


@pytest.mark.parametrize("url", ["http://[::1", "file:///etc/passwd", "no url", ""])
async def test_an_invalid_address_is_503(workers: list[Worker], url: str) -> None:
    """A group member may publish any address."""
    workers[0].owners = workers[0].owners | {1: url}
    assert "does not say" in await workers[0].error_of_503(31)


async def test_before_the_first_assignment_an_order_is_503(workers: list[Worker]) -> None:
    """A worker that has just started cannot say that an order is unknown."""
    workers[0].owners = {}
    assert "not known yet" in await workers[0].error_of_503()


@pytest.mark.parametrize("order_id", ["", "\n", "a\0b", "x" * 256], ids=ascii)
async def test_an_id_that_no_order_has_is_400(workers: list[Worker], order_id: str) -> None:
    """The answer says what an id is."""
    status, body = await workers[0].get(order_id)
    assert status == 400
    assert "1 to 255 printable characters" in str(body["error"])
