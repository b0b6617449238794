"""Sweeps: every due row, in order, once; an outage uses up no retry."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.replay import Replay
from order_relay.fallback.store import FallbackRow, Status
from order_relay.fallback.sweep import Sweep
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import Clock, FakeProducer, Sent, acked, forgive, message, refusal

pytestmark = pytest.mark.virtual_time


class Bench:
    """A table in memory with the loop's clock, a fake producer, and a worker's replay."""

    def __init__(self) -> None:
        self.clock = Clock(asyncio.get_running_loop().time)
        self.store = MemoryFallbackStore(clock=self.clock)
        self.producer = FakeProducer()
        self.replay = self.worker()

    def worker(self, batch_size: int = 500) -> Replay:
        return Replay(self.store, self.producer, batch_size=batch_size)

    async def save(self, count: int, key: Callable[[int], bytes | None] = lambda _: b"1") -> None:
        """Save messages whose payloads are their numbers; of one key unless told."""
        for number in range(count):
            await self.store.save(message(b"%d" % number, key(number)))

    def row(self, row_id: int) -> FallbackRow:
        return self.store.rows[row_id]

    def statuses(self) -> list[str]:
        return [row.status.value for row in self.store.rows.values()]


def payloads(sent: list[Sent]) -> list[bytes | None]:
    """The values of records."""
    return [record.value for record in sent]


async def test_all_due_rows_in_one_sweep(caplog: pytest.LogCaptureFixture) -> None:
    """A sweep publishes batches side by side, and logs every row."""
    bench = Bench()
    bench.producer.latency_seconds = 0.01
    await bench.save(1250, lambda n: b"%d" % n)
    with caplog.at_level(logging.INFO):
        sweep = await bench.replay.run_once()
    assert sweep == Sweep(published=1250)
    assert set(bench.statuses()) == {"PUBLISHED"}
    assert sorted(payloads(bench.producer.sent)) == sorted(b"%d" % n for n in range(1250))  # type: ignore[type-var]
    assert bench.producer.most_at_once >= 1000
    assert caplog.text.count("Fallback message published successfully") == 1250
    assert bench.row(1).published_at is not None
    assert bench.row(1).lease_token is None


async def test_rows_in_flight_are_bounded() -> None:
    """A sweep claims no more rows than may be in flight, and goes on when some are settled."""
    bench = Bench()
    bench.producer.latency_seconds = 1
    await bench.save(250, lambda n: b"%d" % n)
    replay = Replay(bench.store, bench.producer, batch_size=20, max_in_flight=60)
    assert await replay.run_once() == Sweep(published=250)
    assert bench.producer.most_at_once == 60


async def test_rows_of_a_key_one_after_another() -> None:
    """Rows of one key are sent in order, each after the acknowledgement of the one before."""
    bench = Bench()
    bench.producer.latency_seconds = 1
    await bench.save(12, lambda n: b"same" if n % 2 else None)
    sweeping = asyncio.create_task(bench.worker(batch_size=3).run_once())
    await asyncio.sleep(1.2)
    assert "PUBLISHED" in bench.statuses(), "written only when all rows were answered"
    await sweeping
    odd = [value for value in payloads(bench.producer.acknowledged) if int(value or b"") % 2]
    assert odd == [b"1", b"3", b"5", b"7", b"9", b"11"]
    assert set(bench.statuses()) == {"PUBLISHED"}


async def test_a_refused_row_holds_back_its_key() -> None:
    """Later rows of a refused row's key wait, without using a retry; other keys go on."""
    bench = Bench()
    await bench.save(4, lambda n: b"other" if n == 2 else b"same")
    bench.producer.refuse = lambda sent: refusal() if sent.value == b"0" else None
    sweep = await bench.replay.run_once()
    assert sweep == Sweep(published=1, retried=1, released=2)
    assert payloads(bench.producer.sent) == [b"0", b"2"]
    assert bench.row(1).retry_count == 1
    assert bench.row(1).next_retry_at == bench.clock() + timedelta(minutes=1)
    assert [bench.row(n).retry_count for n in (2, 4)] == [0, 0]
    assert await bench.replay.run_once() == Sweep()
    bench.producer.refuse = lambda _: None
    bench.clock.advance(60)
    assert await bench.replay.run_once() == Sweep(published=3)
    assert payloads(bench.producer.acknowledged) == [b"2", b"0", b"1", b"3"]


async def test_failed_after_max_retry(caplog: pytest.LogCaptureFixture) -> None:
    """Refused three times, after one and two minutes, a row is FAILED and frees its key."""
    bench = Bench()
    await bench.store.save(message(b"bad"))
    await bench.store.save(message(b"good"))
    bench.producer.refuse = lambda sent: refusal() if sent.value == b"bad" else None
    for minutes in (1, 2):
        assert (await bench.replay.run_once()).retried == 1
        bench.clock.advance(60 * minutes - 1)
        assert await bench.replay.run_once() == Sweep()
        bench.clock.advance(1)
    assert await bench.replay.run_once() == Sweep(published=1, failed=1)
    row = bench.row(1)
    assert (row.status, row.retry_count, row.error_message) == (Status.FAILED, 3, str(refusal()))
    assert "waits for a person id=1" in caplog.text


async def test_no_broker_no_sweep() -> None:
    """While no broker answers nothing is claimed, sent or counted."""
    bench = Bench()
    await bench.store.save(message())
    bench.producer.reachable = False
    sweep = await bench.replay.run_once()
    assert "cannot be reached" in sweep.skipped
    assert bench.producer.sent == []
    assert bench.row(1).retry_count == 0
    assert bench.row(1).lease_token is None


async def test_brokers_vanish_in_the_middle() -> None:
    """Rows in flight when the brokers vanish use no retry, and are due again at once."""
    bench = Bench()
    bench.producer.latency_seconds = 120
    await bench.save(3, lambda n: b"same" if n else b"other")
    bench.producer.refuse = lambda _: refusal("_MSG_TIMED_OUT")
    sweeping = asyncio.create_task(bench.replay.run_once())
    await asyncio.sleep(30)
    bench.producer.reachable = False
    await asyncio.sleep(20)
    bench.producer.reachable = True  # back before anything has timed out
    sweep = await sweeping
    assert replace(sweep, skipped="") == Sweep(released=3)
    assert "cannot be reached" in sweep.skipped
    assert [row.retry_count for row in bench.store.rows.values()] == [0, 0, 0]
    bench.producer.refuse = lambda _: None
    assert (await bench.replay.run_once()).published == 3


@pytest.mark.parametrize(
    ("code", "sweep", "retries", "skipped"),
    [
        ("_MSG_TIMED_OUT", Sweep(retried=1), 1, ""),  # the leader is silent, others answer
        ("_QUEUE_FULL", Sweep(released=1), 0, "_QUEUE_FULL"),  # the client's own
        ("_UNKNOWN_TOPIC", Sweep(failed=1), 1, ""),
    ],
)
async def test_what_a_refusal_costs(code: str, sweep: Sweep, retries: int, skipped: str) -> None:
    """A retry if another may help, FAILED if none can, nothing if it is a local error."""
    bench = Bench()
    await bench.save(1)
    bench.producer.refuse = lambda _: refusal(code)
    found = await bench.replay.run_once()
    assert replace(found, skipped="") == sweep
    assert skipped in found.skipped
    assert bench.row(1).retry_count == retries


async def test_a_long_batch_keeps_its_lease() -> None:
    """A batch that outlasts its lease renews it: no other worker publishes its rows."""
    bench = Bench()
    bench.producer.latency_seconds = 100
    await bench.save(4)
    first = asyncio.create_task(bench.replay.run_once())
    await asyncio.sleep(1)
    for _ in range(7):
        await asyncio.sleep(50)
        assert await bench.worker().run_once() == Sweep()
    assert await first == Sweep(published=4)
    assert len(bench.producer.sent) == 4


async def test_a_lost_lease_stops_its_rows() -> None:
    """A worker that cannot renew sends no more rows of the batch, and settles none."""
    bench = Bench()
    bench.producer.latency_seconds = 100
    await bench.save(2)
    slow = asyncio.create_task(bench.replay.run_once())
    await asyncio.sleep(1)
    bench.store.error = DatabaseUnavailable("gone")
    await asyncio.sleep(70)
    bench.store.error = None
    claim = await bench.store.claim(limit=10, lease_seconds=1000)
    assert [row.id for row in claim.rows] == [1, 2]
    assert not (await slow).published
    assert payloads(bench.producer.sent) == [b"0"]
    assert await bench.store.settle(claim.token, [acked(1), acked(2)]) == {1, 2}


async def test_a_database_that_stays_away(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is sent or awaited once the lease may have expired."""
    bench = Bench()
    bench.producer.latency_seconds = 100
    await bench.save(2)
    sweeping = asyncio.create_task(bench.replay.run_once())
    await asyncio.sleep(1)
    bench.store.error = DatabaseUnavailable("gone")
    assert not (await sweeping).published
    assert payloads(bench.producer.sent) == [b"0"]
    assert "were not written: " in caplog.text


async def test_outcomes_wait_for_the_database() -> None:
    """A database that is away for seconds causes no second publish."""
    bench = Bench()
    bench.producer.latency_seconds = 5
    await bench.store.save(message())
    sweeping = asyncio.create_task(bench.replay.run_once())
    await asyncio.sleep(1)
    bench.store.error = DatabaseUnavailable("restarting")
    await asyncio.sleep(10)
    bench.store.error = None
    assert (await sweeping).published == 1
    assert len(bench.producer.sent) == 1
    assert bench.statuses() == ["PUBLISHED"]


async def test_stop_releases_what_was_not_sent() -> None:
    """After the grace unsent rows are released; those in flight keep their lease."""
    bench = Bench()
    bench.producer.answers.clear()
    await bench.save(2)
    running = asyncio.create_task(bench.replay.run())
    await asyncio.sleep(1)
    await bench.replay.stop(grace_seconds=5)
    await running
    assert asyncio.get_running_loop().time() == pytest.approx(6)
    assert bench.row(1).lease_token is not None
    assert bench.row(2).lease_token is None
    assert payloads(bench.producer.sent) == [b"0"]


async def test_stop_does_not_wait_for_a_database_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if a call ignores its cancellation, as on a locked SQLite file for 30 s."""
    bench = Bench()
    asked, answers = asyncio.Event(), asyncio.Event()

    async def hang(*_: object) -> set[int]:
        asked.set()
        while not answers.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await answers.wait()
        return set()

    monkeypatch.setattr(bench.store, "settle", hang)
    await bench.save(1)
    running = asyncio.create_task(bench.replay.run())
    await asked.wait()
    await asyncio.wait_for(bench.replay.stop(), 20)
    assert not running.done()
    answers.set()
    await running


async def test_it_runs_until_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """A sweep at the start and each minute, figures each hour, a purge of old rows."""
    bench = Bench()
    await bench.store.save(message(b"0"))
    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(bench.replay.run())
        await asyncio.sleep(1)
        assert bench.statuses() == ["PUBLISHED"]
        await bench.store.save(message(b"1"))
        await asyncio.sleep(58)
        assert bench.statuses() == ["PUBLISHED", "PENDING"]
        await asyncio.sleep(2)
        assert bench.statuses() == ["PUBLISHED", "PUBLISHED"]
        await asyncio.sleep(3600)
        assert "Fallback message stats - pending: 0, published: 2, failed: 0" in caplog.text
        bench.clock.advance(7 * 24 * 3600)
        await asyncio.sleep(61)
        assert bench.store.rows == {}
        await bench.replay.stop()
        await running


async def test_outages_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """An outage of Kafka or the database neither ends the worker nor fills the log."""
    bench = Bench()
    await bench.store.save(message())
    bench.producer.reachable = False
    running = asyncio.create_task(bench.replay.run())
    await asyncio.sleep(600)
    assert caplog.text.count("Fallback replay skipped") == 1
    bench.producer.reachable = True
    bench.store.error = DatabaseUnavailable("gone")
    await asyncio.sleep(600)
    assert caplog.text.count("Fallback replay skipped") == 2
    bench.store.error = None
    await asyncio.sleep(60)
    assert bench.statuses() == ["PUBLISHED"]
    assert bench.row(1).retry_count == 0
    await bench.replay.stop()
    await running
    forgive()
