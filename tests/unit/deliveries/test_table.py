"""The deliveries table: what it keeps, and when a record's offset may be committed."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from order_relay.deliveries import stores
from order_relay.deliveries.entries import Entry
from order_relay.delivery.outcome import Outcome
from tests.support.deliveries_fakes import DELIVERED, TableBench
from tests.support.fakes import START_SECONDS, record
from tests.support.waiting import eventually

KNOWN = Entry(7, "delivered", "paid-7", 1, "order-paid-events", 0, 3, int(START_SECONDS * 1000))


async def test_a_record_is_finished_once_kafka_has_its_entry() -> None:
    """Its offset is not committed before: what is committed is in the table."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.holding = True
    one = record(3, "7")
    bench.deliveries.finished(one, DELIVERED)
    assert bench.finished == []
    bench.changelog.acknowledge()
    assert bench.finished == [one]


async def test_an_entry_is_known_before_kafka_has_it() -> None:
    """The same event again, right behind, is not sent again."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.holding = True
    again = record(4, "7", headers=[("event-id", b"paid-7")])
    assert not bench.deliveries.is_delivered(again, 7)
    bench.deliveries.finished(record(3, "7", headers=[("event-id", b"paid-7")]), DELIVERED)
    assert bench.deliveries.is_delivered(again, 7)
    assert not bench.deliveries.is_delivered(record(5, "7", headers=[("event-id", b"other")]), 7)


async def test_what_the_last_owner_knew_is_known() -> None:
    """Entries read from the changelog count as one's own."""
    bench = TableBench()
    bench.recovery.known = {0: [KNOWN]}
    await bench.arrive(0, 1)
    assert bench.deliveries.find(7) == KNOWN
    assert bench.deliveries.is_delivered(record(9, "7", headers=[("event-id", b"paid-7")]), 7)
    # The partition of a record is where its event was delivered, if anywhere.
    elsewhere = record(9, "7", partition=1, headers=[("event-id", b"paid-7")])
    assert not bench.deliveries.is_delivered(elsewhere, 7)


async def test_records_wait_until_the_table_is_read() -> None:
    """Nothing is delivered on a guess about what was delivered before."""
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


async def test_who_waits_is_let_go_when_the_partitions_leave() -> None:
    """A rebalance during recovery neither waits for it nor delivers anything."""
    bench = TableBench()
    bench.recovery.released.clear()
    bench.deliveries.assigned([0])
    waiting = asyncio.create_task(bench.deliveries.until_ready())
    await eventually(lambda: bench.recovery.reads)
    await bench.deliveries.revoking()
    assert not await waiting
    assert not bench.deliveries.ready


async def test_a_rebalance_during_recovery_begins_anew() -> None:
    """Only the newest assignment becomes ready."""
    bench = TableBench()
    bench.recovery.released.clear()
    bench.deliveries.assigned([0])
    await eventually(lambda: bench.recovery.reads)
    await bench.deliveries.revoking()
    bench.deliveries.assigned([1])
    bench.recovery.released.set()
    assert await bench.deliveries.until_ready()
    assert bench.recovery.reads == [(0,), (1,)]
    assert len(bench.recoveries) == 1


async def test_stores_of_partitions_that_stay_are_read_on() -> None:
    """A partition that comes back at once keeps its entries; others are dropped."""
    bench = TableBench()
    await bench.arrive(0, 1)
    bench.deliveries.finished(record(1, "7"), DELIVERED)
    kept = bench.stores[0]
    await bench.deliveries.revoking()
    await bench.arrive(0, 2)
    assert bench.stores[0] is kept
    assert bench.deliveries.find(7) is not None
    assert bench.recovery.reads[-1] == (0, 2)


async def test_leaving_waits_for_the_changelog() -> None:
    """The next owner finds what this one has delivered."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.holding = True
    one = record(3, "7")
    bench.deliveries.finished(one, DELIVERED)
    await bench.deliveries.revoking()
    assert bench.changelog.drains == 1
    assert bench.finished == [one]


async def test_leaving_does_not_keep_what_was_delivered_from_its_commit() -> None:
    """Whether Kafka has acknowledged the table's entries, or is late with that."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.holding = bench.changelog.away = True
    one = record(3, "7")
    bench.deliveries.finished(one, DELIVERED)
    assert bench.finished == []
    await bench.deliveries.revoking()
    assert bench.finished == [one]


async def test_a_changelog_that_cannot_be_read_does_not_stop_deliveries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The table goes on without its history, and says so in one line."""
    bench = TableBench()
    bench.recovery.unreadable = True
    await bench.arrive(0)
    (line,) = [one for one in caplog.messages if "cannot be read" in one]
    assert "not authorized" in line
    # Nor may a store on disk be taken for complete.
    bench.deliveries.finished(record(1, "7"), DELIVERED)
    await bench.deliveries.close()
    assert bench.stores[0].next_offset is None


async def test_a_store_that_is_still_open_elsewhere_is_waited_for() -> None:
    """Workers of one machine hand a partition's files over."""
    bench = TableBench()
    bench.open_refusals = [OSError("lock"), OSError("lock")]
    await bench.arrive(0)
    assert bench.open_refusals == []


async def test_a_store_that_fails_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk neither stops a delivery nor has it sent twice: memory takes over."""
    bench = TableBench()
    await bench.arrive(0)
    bench.stores[0].broken = True
    one = record(3, "7", headers=[("event-id", b"paid-7")])
    assert not bench.deliveries.is_delivered(one, 7)
    bench.deliveries.finished(one, DELIVERED)
    assert bench.finished == [one]
    assert bench.deliveries.is_delivered(one, 7)
    assert len([line for line in caplog.messages if "kept in memory" in line]) == 1


@pytest.mark.parametrize("swept", [False, True])
async def test_a_disk_that_fills_up_between_two_writes_stops_nothing(swept: bool) -> None:
    """Neither the next rebalance nor the end: partitions are ready, and know what is in Kafka."""
    bench = TableBench()
    await bench.arrive(0)
    bench.deliveries.finished(record(1, "8"), Outcome(delivered=True, attempts=1, order_id=8))
    bench.stores[0].full = True
    bench.recovery.known = {0: [KNOWN]}
    if swept:
        await bench.deliveries.retention.sweep()
    await bench.deliveries.revoking()
    bench.deliveries.assigned([0])
    assert await asyncio.wait_for(bench.deliveries.until_ready(), 10)
    assert bench.deliveries.find(7) == KNOWN
    assert bench.deliveries.complete
    await bench.deliveries.revoking()
    await bench.arrive(0)
    await bench.deliveries.close()


async def test_a_disk_that_is_full_at_the_end_does_not_hold_it_up() -> None:
    """What comes after it in the worker's end is done: the last commit."""
    bench = TableBench()
    await bench.arrive(0)
    bench.deliveries.finished(record(3, "7"), DELIVERED)
    bench.stores[0].full = True
    await bench.deliveries.close()


async def test_a_store_that_fails_while_it_is_read_is_read_into_memory() -> None:
    """No partition is without its history, neither its own nor another."""
    bench = TableBench()
    other = msgspec.structs.replace(KNOWN, order_id=8, partition=1)
    bench.recovery.known = {0: [KNOWN], 1: [other]}
    bench.break_stores = {0}
    await bench.arrive(0, 1)
    assert (bench.deliveries.find(7), bench.deliveries.find(8)) == (KNOWN, other)
    assert bench.deliveries.complete
    assert bench.stores[1].next_offset == 100


async def test_old_entries_of_a_store_that_fails_are_no_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sweep replaces it as a delivery does."""
    bench = TableBench()
    await bench.arrive(0)
    bench.stores[0].broken = True
    assert await bench.deliveries.retention.sweep() == 0
    assert await bench.deliveries.retention.sweep() == 0
    assert len([line for line in caplog.messages if "kept in memory" in line]) == 1
    assert not bench.deliveries.complete


async def test_recovery_that_fails_in_any_way_does_not_stop_deliveries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records that wait for the table go on all the same."""
    bench = TableBench()

    async def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(stores.Stores, "assign", fail)
    await asyncio.wait_for(bench.arrive(0), 10)
    one = record(3, "7")
    bench.deliveries.finished(one, DELIVERED)
    assert bench.finished == [one]


async def test_stores_that_cannot_be_opened_are_waited_for_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Many partitions take no longer than one; each is said once."""
    clock = iter(range(10_000))
    monkeypatch.setattr(stores, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(stores, "OPEN_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(stores, "OPEN_SECONDS", 10.0)
    bench = TableBench()
    bench.open_refusals = [OSError("permission denied")] * 1000
    await bench.arrive(*range(20))
    # Every look at the clock is a try of all.
    assert 1000 - len(bench.open_refusals) <= 12 * 20
    assert len([line for line in caplog.messages if "retrying" in line]) == 20
    assert len([line for line in caplog.messages if "kept in memory" in line]) == 20


async def test_a_rebalance_while_a_store_is_opened_leaves_no_memory() -> None:
    """The partition is on disk as soon as its files are free."""
    bench = TableBench()
    bench.open_refusals = [OSError("lock")] * 2
    bench.deliveries.assigned([0])
    await eventually(lambda: len(bench.open_refusals) == 1)
    await bench.deliveries.revoking()
    await bench.arrive(0)
    assert list(bench.stores) == [0]


async def test_a_duplicate_leaves_the_entry_alone() -> None:
    """It is finished, and nothing is written."""
    bench = TableBench()
    await bench.arrive(0)
    bench.deliveries.finished(record(3, "7"), DELIVERED)
    again = record(4, "7")
    bench.deliveries.finished(again, Outcome(delivered=True, attempts=0, duplicate=True))
    assert bench.finished[-1] == again
    assert [entry.offset for entry in bench.changelog.entries()] == [3]


async def test_a_broken_record_is_kept_under_the_order_of_its_key() -> None:
    """What became of order 7 is known even when its event was no JSON."""
    bench = TableBench()
    await bench.arrive(0)
    broken = Outcome(delivered=False, attempts=0, reason="invalid_json")
    bench.deliveries.finished(record(3, "7", value=b"{"), broken)
    bench.deliveries.finished(record(4, "no\torder", value=b"{"), broken)
    bench.deliveries.finished(record(5, None, value=b"{"), broken)
    bench.deliveries.finished(record(6, "SKU-9", value=b"{"), broken)
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
    bench.deliveries.finished(record(3, "7", partition=1), DELIVERED)
    bench.now += 30
    young = Outcome(delivered=True, attempts=1, order_id=8)
    bench.deliveries.finished(record(4, "8", partition=1), young)
    bench.now += 31
    assert await bench.deliveries.retention.sweep() == 1
    assert bench.changelog.tombstones() == [(1, b"7")]
    assert bench.deliveries.find(7) is None
    assert bench.deliveries.find(8) is not None


async def test_many_old_entries_go_in_chunks() -> None:
    """A sweep of a large table lets Kafka answer between chunks."""
    bench = TableBench(retention_seconds=60)
    await bench.arrive(0)
    for number in range(1200):
        outcome = Outcome(delivered=True, attempts=1, order_id=number)
        bench.deliveries.finished(record(number, str(number)), outcome)
    bench.now += 61
    assert await bench.deliveries.retention.sweep() == 1200
    assert bench.changelog.drains == 2
    assert bench.deliveries.entries == 0


async def test_too_many_entries_go_the_oldest_first(caplog: pytest.LogCaptureFixture) -> None:
    """Memory is bounded also where orders come faster than they age; it is said once."""
    bench = TableBench(max_entries=10)
    await bench.arrive(0, 1)
    for number in range(20):
        bench.now += 1
        outcome = Outcome(delivered=True, attempts=1, order_id=number)
        bench.deliveries.finished(record(number, str(number), partition=number // 15), outcome)
    assert await bench.deliveries.retention.sweep() == 10
    assert [n for n in range(20) if bench.deliveries.find(n) is not None] == list(range(10, 20))
    assert len(bench.changelog.tombstones()) == 10
    assert await bench.deliveries.retention.sweep() == 0
    assert len([line for line in caplog.messages if "forgotten early" in line]) == 1


async def test_memory_is_bounded_while_the_table_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that takes over more than it may keep has the newest; Kafka keeps the others."""
    bench = TableBench(max_entries=10)
    bench.recovery.known = {
        partition: [
            msgspec.structs.replace(KNOWN, order_id=n, partition=partition) for n in numbers
        ]
        for partition, numbers in ((0, range(100)), (1, range(100, 103)))
    }
    await bench.arrive(0, 1)
    assert bench.recovery.most_entries <= 10
    assert sorted(n for n in range(103) if bench.deliveries.find(n)) == list(range(93, 103))
    assert bench.changelog.tombstones() == []
    assert len([line for line in caplog.messages if "forgotten early" in line]) == 1


async def test_a_changelog_with_fewer_partitions_is_shared() -> None:
    """A source topic that grew keeps its table: partition 4 writes to 4 modulo 3."""
    bench = TableBench()
    await bench.arrive(4)
    bench.deliveries.finished(record(1, "7", partition=4), DELIVERED)
    assert bench.changelog.changes[0][0] == 1


async def test_closing_notes_where_the_changelog_ends() -> None:
    """A store on disk is read on from there after a restart."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.next_offsets[0] = 200
    bench.deliveries.finished(record(1, "7"), DELIVERED)
    await bench.deliveries.close()
    assert bench.stores[0].next_offset == 201


async def test_a_sweep_notes_where_the_changelog_ends() -> None:
    """A store on disk is read on from there after a kill, too; not while another may have it."""
    bench = TableBench()
    await bench.arrive(0)
    bench.changelog.next_offsets[0] = 200
    bench.deliveries.finished(record(1, "7"), DELIVERED)
    assert bench.stores[0].next_offset == 100
    await bench.deliveries.retention.sweep()
    assert bench.stores[0].next_offset == 201
    await bench.deliveries.revoking()
    bench.changelog.next_offsets[0] = 300
    await bench.deliveries.retention.sweep()
    assert bench.stores[0].next_offset == 201


async def test_a_worker_without_partitions_is_ready() -> None:
    """It has nothing to read, and nothing waits."""
    bench = TableBench()
    await bench.arrive()
    assert bench.deliveries.entries == 0
    await bench.deliveries.close()
    await bench.deliveries.close()
