"""The deliveries table: what it keeps, and when a record's offset may be committed."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from order_relay.deliveries import table
from order_relay.deliveries.entries import Entry
from order_relay.delivery.outcome import Outcome
from tests.support.deliveries_fakes import TableBench
from tests.support.fakes import START_SECONDS, record
from tests.support.waiting import eventually

KNOWN = Entry(7, "delivered", "paid-7", 1, "order-paid-events", 0, 3, int(START_SECONDS * 1000))
PAID_7 = [("event-id", b"paid-7")]
LOCKED = OSError("IO error: While lock file: /data/0/LOCK: Resource temporarily unavailable")
DELIVERED = Outcome(delivered=True, attempts=1, order_id=7)


def known(bench: TableBench, upto: int) -> list[int]:
    """The orders below this number that the table has."""
    return [number for number in range(upto) if bench.deliveries.find(number) is not None]


def lines(caplog: pytest.LogCaptureFixture, phrase: str) -> list[str]:
    """The log lines with this phrase."""
    return [line for line in caplog.messages if phrase in line]


async def test_a_record_is_finished_once_kafka_has_its_entry() -> None:
    """Its offset is not committed earlier; its event is known at once, and not sent again."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.holding = True
    again = record(4, "7", headers=PAID_7)
    assert not bench.deliveries.is_delivered(again, 7)
    one = record(3, "7", headers=PAID_7)
    bench.deliveries.finished(one, DELIVERED)
    assert bench.deliveries.is_delivered(again, 7)
    assert not bench.deliveries.is_delivered(record(5, "7", headers=[("event-id", b"other")]), 7)
    assert bench.finished == []
    assert bench.deliveries.is_finished(again, 7)
    assert not bench.deliveries.is_finished(record(5, "7", headers=[("event-id", b"other")]), 7)
    bench.changelog.acknowledge()
    assert bench.finished == [one]


async def test_what_the_last_owner_knew_is_known() -> None:
    """Entries of the changelog count as the worker's own."""
    bench = TableBench()
    bench.recovery.known = {0: [KNOWN]}
    await bench.arrive(0, 1)
    assert bench.deliveries.find(7) == KNOWN
    assert bench.deliveries.is_delivered(record(9, "7", headers=PAID_7), 7)
    # An event is only looked up in the partition of its record.
    assert not bench.deliveries.is_delivered(record(9, "7", partition=1, headers=PAID_7), 7)


async def test_records_wait_until_the_table_is_read() -> None:
    """Nothing is delivered before it is known what was delivered."""
    bench = TableBench()
    bench.recovery.released.clear()
    bench.deliveries.assigned([0])
    waiting = asyncio.create_task(bench.deliveries.until_ready())
    await eventually(lambda: bench.recovery.reads == [(0,)])
    assert not waiting.done()
    assert bench.deliveries.recovering
    bench.recovery.released.set()
    assert await waiting
    assert not bench.deliveries.recovering


async def test_a_rebalance_during_recovery_begins_anew() -> None:
    """It does not wait, nothing is delivered, and only the last assignment becomes ready."""
    bench = TableBench()
    bench.recovery.released.clear()
    bench.deliveries.assigned([0])
    waiting = asyncio.create_task(bench.deliveries.until_ready())
    await eventually(lambda: bench.recovery.reads)
    await bench.deliveries.revoking()
    assert not await waiting
    assert not bench.deliveries.ready
    bench.deliveries.assigned([1])
    bench.recovery.released.set()
    assert await bench.deliveries.until_ready()
    assert bench.recovery.reads == [(0,), (1,)]
    assert len(bench.recoveries) == 1


async def test_stores_of_partitions_that_stay_are_read_on() -> None:
    """A partition that comes back at once keeps its entries; others are dropped."""
    bench = TableBench()
    await bench.arrive(0, 1)
    bench.finish(7)
    bench.finish(8, partition=1)
    kept = bench.stores[0]
    await bench.deliveries.revoking()
    await bench.arrive(0, 2)
    assert bench.stores[0] is kept
    assert known(bench, 10) == [7]
    assert bench.recovery.reads[-1] == (0, 2)


@pytest.mark.parametrize("away", [False, True])
async def test_what_was_delivered_is_committed_on_leaving(away: bool) -> None:
    """The commit waits for the changelog, but not longer than the drain."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.holding, bench.changelog.away = True, away
    one = bench.finish(7)
    assert bench.finished == []
    await bench.deliveries.revoking()
    assert bench.changelog.drains == 1
    assert bench.finished == [one]


async def test_a_changelog_that_cannot_be_read_does_not_stop_deliveries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The table works without its history, and logs it in one line."""
    bench = TableBench()
    await bench.arrive(0)
    await bench.deliveries.revoking()
    bench.recovery.unreadable = True
    await bench.arrive(0)
    (line,) = lines(caplog, "cannot be read")
    assert "not authorized" in line
    assert bench.finished == [bench.finish(7)]
    await bench.deliveries.close()
    assert not bench.deliveries.complete
    # Nor does a store on disk count as complete.
    assert bench.stores[0].next_offset == 100


async def test_recovery_that_fails_in_any_way_does_not_stop_deliveries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Records that wait for the table are delivered."""
    bench = TableBench()
    monkeypatch.setattr(bench.recovery, "read", lambda *_: 1 // 0)
    await asyncio.wait_for(bench.arrive(0), 10)
    assert bench.finished == [bench.finish(7)]
    assert len(lines(caplog, "unexpected error")) == 1
    assert not bench.deliveries.complete


@pytest.mark.parametrize("when", ["opened", "read", "written"])
async def test_a_store_that_fails_switches_its_partition_off(
    when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Deliveries go on; other partitions keep their table. The next rebalance rebuilds it."""
    monkeypatch.setattr(table, "OPEN_SECONDS", -1.0)
    bench = TableBench()
    bench.recovery.known = {
        0: [KNOWN],
        1: [msgspec.structs.replace(KNOWN, order_id=8, partition=1)],
    }
    bench.open_refusals = [OSError("no space left")] if when == "opened" else []
    bench.broken = {0} if when == "read" else set()
    await bench.arrive(0, 1)
    if when == "written":
        bench.stores[0].fail()
    again = record(9, "7", headers=PAID_7)
    assert not bench.deliveries.is_delivered(again, 7)
    bench.deliveries.finished(again, DELIVERED)
    assert bench.finished == [again]
    assert bench.deliveries.find(7) is None
    assert bench.deliveries.find(8) is not None
    assert (bench.deliveries.off, bench.deliveries.complete) == (1, False)
    assert set(bench.deliveries.partitions) == {0, 1}
    assert len(lines(caplog, "table is off until the next rebalance")) == (when == "opened")
    assert await bench.deliveries.sweep() == 0
    # What was finished meanwhile is in the changelog.
    assert [entry.offset for entry in bench.changelog.entries()] == [9]
    bench.broken = set()
    await bench.deliveries.revoking()
    await bench.arrive(0, 1)
    assert bench.deliveries.is_delivered(again, 7)
    assert (bench.deliveries.off, bench.deliveries.complete) == (0, True)
    await bench.deliveries.close()


async def test_a_store_that_is_still_open_elsewhere_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers of one machine hand a partition's files over; logged once."""
    monkeypatch.setattr(table, "OPEN_AGAIN_SECONDS", 0.0)
    bench = TableBench()
    bench.open_refusals = [LOCKED, LOCKED]
    await bench.arrive(0)
    assert bench.deliveries.complete
    assert len(lines(caplog, "retrying")) == 1


async def test_stores_that_cannot_be_opened_are_waited_for_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Many partitions take no longer than one; each is logged as off."""
    clock = iter(range(10_000))
    monkeypatch.setattr(table, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(table, "OPEN_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(table, "OPEN_SECONDS", 10.0)
    bench = TableBench()
    bench.open_refusals = [LOCKED] * 1000
    await bench.arrive(*range(20))
    # Every look at the clock is a try.
    assert 1000 - len(bench.open_refusals) <= 12 + 20
    assert len(lines(caplog, "retrying")) == 1
    assert len(lines(caplog, "is off until")) == bench.deliveries.off == 20


async def test_a_damaged_store_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """It would not open later, either."""
    bench = TableBench()
    bench.open_refusals = [OSError("Corruption: checksum mismatch in a block of /data/MANIFEST-5")]
    await asyncio.wait_for(bench.arrive(0), 10)
    assert lines(caplog, "retrying") == []
    assert bench.deliveries.off == 1


async def test_a_rebalance_while_a_store_is_opened_begins_anew() -> None:
    """The partition is on disk as soon as its files are free."""
    bench = TableBench()
    bench.open_refusals = [LOCKED] * 2
    bench.deliveries.assigned([0])
    await eventually(lambda: len(bench.open_refusals) == 1)
    await bench.deliveries.revoking()
    await bench.arrive(0)
    assert bench.deliveries.complete


async def test_a_duplicate_leaves_the_entry_alone() -> None:
    """It is finished, and nothing is written."""
    bench = TableBench()
    await bench.arrive(0)
    bench.finish(7)
    again = record(8, "7")
    bench.deliveries.finished(again, Outcome(delivered=True, attempts=0, duplicate=True))
    assert bench.finished[-1] == again
    assert [entry.offset for entry in bench.changelog.entries()] == [7]


async def test_a_broken_record_is_kept_under_the_order_of_its_key() -> None:
    """The outcome of order 7 is known even if its event was not JSON."""
    bench = TableBench()
    await bench.arrive(0)
    broken = Outcome(delivered=False, attempts=0, reason="invalid_json")
    for offset, key in enumerate(("7", "no\torder", None, "SKU-9")):
        bench.deliveries.finished(record(offset, key, value=b"{"), broken)
    for order_id in (7, "7", "SKU-9"):
        found = bench.deliveries.find(order_id)
        assert found is not None
        assert (found.state, found.dead_letter_reason) == ("dead_lettered", "invalid_json")
    assert len(bench.finished) == 4
    assert len(bench.changelog.changes) == 2


async def test_old_entries_go_with_a_tombstone() -> None:
    """After the retention an order is forgotten, here and in the changelog."""
    bench = TableBench(retention_seconds=60)
    await bench.arrive(1)
    bench.finish(7, partition=1)
    bench.now += 30
    bench.finish(8, partition=1)
    bench.now += 31
    assert await bench.deliveries.sweep() == 1
    assert bench.changelog.tombstones() == [(1, b"7")]
    assert known(bench, 10) == [8]


async def test_many_old_entries_go_in_chunks() -> None:
    """A sweep of a large table lets Kafka answer between chunks."""
    bench = TableBench(retention_seconds=60)
    await bench.arrive(0)
    for number in range(1200):
        bench.finish(number)
    bench.now += 61
    assert await bench.deliveries.sweep() == 1200
    assert bench.changelog.drains == 3
    assert bench.deliveries.entries == 0


async def test_too_many_entries_go_the_oldest_first(caplog: pytest.LogCaptureFixture) -> None:
    """Memory is bounded also if orders come faster than they expire; logged once."""
    bench = TableBench(max_entries=10)
    await bench.arrive(0, 1)
    for number in range(20):
        bench.now += 1
        bench.finish(number, partition=number // 15)
    assert await bench.deliveries.sweep() == 10
    assert known(bench, 20) == list(range(10, 20))
    assert len(bench.changelog.tombstones()) == 10
    assert await bench.deliveries.sweep() == 0
    bench.finish(20)
    assert await bench.deliveries.sweep() == 1
    assert len(lines(caplog, "forgotten early")) == 1


async def test_a_partition_may_have_the_room_that_another_leaves() -> None:
    """Only the excess in all of them is forgotten."""
    bench = TableBench(max_entries=10)
    await bench.arrive(0, 1, 2)
    for number in range(20):
        bench.finish(number, partition=number // 10)
    assert await bench.deliveries.sweep() == 10


async def test_memory_is_bounded_while_the_table_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that recovers more than it may keep has the newest; Kafka keeps the others."""
    bench = TableBench(max_entries=10)
    bench.recovery.known = {
        partition: [
            msgspec.structs.replace(KNOWN, order_id=n, partition=partition) for n in numbers
        ]
        for partition, numbers in ((0, range(100)), (1, range(100, 103)))
    }
    await bench.arrive(0, 1)
    assert bench.recovery.most_entries <= 10
    assert known(bench, 103) == list(range(93, 103))
    assert bench.changelog.tombstones() == []
    assert len(lines(caplog, "forgotten early")) == 1


async def test_a_changelog_with_fewer_partitions_is_shared() -> None:
    """A source topic that grew keeps its table: partition 4 writes to 4 modulo 3."""
    bench = TableBench()
    await bench.arrive(4)
    bench.finish(7, partition=4)
    assert bench.changelog.changes[0][0] == 1


async def test_a_store_notes_where_the_changelog_ends() -> None:
    """Reading resumes there after a restart; it is not noted while another may have it."""
    bench = TableBench()
    await bench.arrive(0)
    for end in (200, 300):
        bench.changelog.next_offsets[0] = end
        bench.finish(7)
        if end == 200:
            await bench.deliveries.sweep()
            assert bench.stores[0].next_offset == 201
    await bench.deliveries.revoking()
    await bench.deliveries.sweep()
    assert bench.stores[0].next_offset == 201
    await bench.deliveries.close()
    assert bench.stores[0].next_offset == 301


async def test_a_worker_without_partitions_is_ready() -> None:
    """It has nothing to read, and nothing waits."""
    bench = TableBench(max_entries=1)
    await bench.arrive()
    assert bench.deliveries.entries == 0
    assert await bench.deliveries.sweep() == 0
    await bench.deliveries.close()
    await bench.deliveries.close()
