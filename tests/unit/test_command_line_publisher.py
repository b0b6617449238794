"""Publishing many lines: all accounted for, in order within a key, bounded."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.cli.publish.bulk_publisher import BulkPublisher, LineResult, LineStatus
from order_relay.cli.publish.line_reader import Line
from order_relay.errors import DatabaseUnavailable
from order_relay.publishing.publisher import Publisher
from tests.support.memory_store import MemoryFallbackStore
from tests.support.orders import order_value
from tests.support.publish_fakes import FakeProducer, Sent, forgive, refusal
from tests.support.virtual_time import run_virtual

pytestmark = pytest.mark.virtual_time


def line(number: int, order_id: int | None = None, **fields: object) -> Line:
    """A line with a valid order, of the line's number unless told."""
    return Line(number, order_value(number if order_id is None else order_id, n=number, **fields))


class Run:
    """A run over a store in memory and a fake producer."""

    def __init__(self) -> None:
        self.producer = FakeProducer()
        self.store = MemoryFallbackStore()
        self.results: list[LineResult] = []
        self.publisher = Publisher(self.producer, self.store, "orders", max_retry=5)
        self.bulk = BulkPublisher(self.publisher, self.results.append)

    async def publish(self, *lines: Line, batch_size: int = 100) -> dict[LineStatus, list[int]]:
        """Publish lines, and watch for outages; return line numbers by result."""
        watching = asyncio.create_task(self.publisher.watch())
        await self.bulk.publish(in_batches(lines, batch_size))
        watching.cancel()
        return {
            result: sorted(one.number for one in self.results if one.result is result)
            for result in {one.result for one in self.results}
        }


async def in_batches(lines: Sequence[Line], size: int) -> AsyncIterator[list[Line]]:
    """The lines as a reader hands them out."""
    for begin in range(0, len(lines), size):
        yield list(lines[begin : begin + size])


async def test_a_line_that_is_too_long() -> None:
    """It is refused with its reason; the lines around it are published byte for byte."""
    run = Run()
    ended = await run.publish(line(1), Line(2, b"", too_long=True), line(3))
    assert ended == {LineStatus.PUBLISHED: [1, 3], LineStatus.REFUSED: [2]}
    assert [one.value for one in run.producer.sent] == [line(1).value, line(3).value]
    assert "longer than" in run.results[0].reason


async def test_what_kafka_refuses_is_saved() -> None:
    """The row has the event with its id and the retries of the settings."""
    run = Run()
    run.producer.refuse = lambda sent: refusal() if sent.key == b"2" else None
    ended = await run.publish(line(1), line(2), line(3))
    assert ended == {LineStatus.PUBLISHED: [1, 3], LineStatus.SAVED: [2]}
    (row,) = run.store.rows.values()
    assert row.max_retry == 5
    assert row.payload == line(2).value
    (saved,) = [one for one in run.results if one.result is LineStatus.SAVED]
    assert saved.row_id == row.id
    assert dict(row.headers)["event-id"] == (saved.event_id or "").encode()


@given(
    keys=st.lists(st.integers(0, 3), max_size=40),
    slow=st.sets(st.integers(0, 40)),
    refused=st.sets(st.integers(0, 40), max_size=5),
)
def test_order_within_a_key(keys: list[int], slow: set[int], refused: set[int]) -> None:
    """Kafka, then the table, have each key's events in the order of the lines, none missing."""

    async def scenario() -> None:
        run = Run()

        def refuse(sent: Sent) -> Exception | None:
            number = int((sent.value or b"").rpartition(b":")[2].rstrip(b"}"))
            return refusal() if number in refused else None

        run.producer.refuse = refuse
        run.producer.latency_seconds = 0.01 * len(slow)
        await run.publish(*[line(n, key) for n, key in enumerate(keys)], batch_size=8)
        assert run.producer.most_at_once <= 8
        for key in set(keys):
            mine = [line(n, k).value for n, k in enumerate(keys) if k == key]
            kafka = [one.value for one in run.producer.acknowledged if one.key == b"%d" % key]
            table = [row.payload for row in run.store.rows.values() if row.key == b"%d" % key]
            assert kafka + table == mine

    run_virtual(scenario())


async def test_never_more_in_flight_than_a_batch() -> None:
    """The next batch begins when every line of the one before has ended."""
    run = Run()
    run.producer.latency_seconds = 1
    await run.publish(*[line(n) for n in range(35)], batch_size=10)
    assert run.producer.most_at_once == 10


async def test_without_kafka_nothing_waits_for_it() -> None:
    """When no broker answers at the start, events are saved without being sent."""
    run = Run()
    run.producer.reachable = False
    await run.publisher.check_kafka()
    assert run.publisher.outage != ""
    ended = await run.publish(*[line(n) for n in range(20)])
    assert ended == {LineStatus.SAVED: list(range(20))}
    assert not run.producer.sent
    assert "cannot be reached" in run.results[0].reason


async def test_no_event_overtakes_one_of_its_key_that_failed() -> None:
    """Later lines of its key fail too, even if Kafka is back; the file is sent again."""
    run = Run()
    run.producer.refuse = lambda _: None if run.results else refusal()
    run.store.error = DatabaseUnavailable("the disk is full")
    ended = await run.publish(line(1, 7), line(2, 7), line(3, 7))
    assert ended == {LineStatus.FAILED: [1, 2, 3]}
    assert not run.producer.acknowledged
    forgive()


async def test_when_kafka_and_the_database_refuse_nothing_more_is_begun() -> None:
    """The batch of the first lost event is the last; its lines are accounted for."""
    run = Run()
    run.producer.refuse = lambda _: refusal()
    run.store.error = DatabaseUnavailable("the disk is full")
    ended = await run.publish(*[line(n) for n in range(1, 50)], batch_size=3)
    assert ended == {LineStatus.FAILED: [1, 2, 3]}
    assert run.bulk.stopped_at == 1
    assert "NOT_ENOUGH_REPLICAS" in run.results[0].reason
    assert "the disk is full" in run.results[0].reason
    forgive()


async def test_closing_saves_what_kafka_does_not_answer() -> None:
    """After a signal, events that Kafka does not acknowledge are saved."""
    run = Run()
    run.producer.answers.clear()
    publishing = asyncio.create_task(run.publish(line(1), line(2)))
    await asyncio.sleep(1)
    run.bulk.close_soon()
    assert await publishing == {LineStatus.SAVED: [1, 2]}
