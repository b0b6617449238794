"""Lanes: order within a key, different keys side by side, bounded work."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from order_relay.delivery.lanes import Lane, Lanes
from order_relay.model.record import Record
from tests.support.fakes import record
from tests.support.lane_work import RECORDS, Arrivals, Work
from tests.support.virtual_time import run_virtual, virtual_time


@virtual_time
async def test_different_keys_go_side_by_side() -> None:
    """Keys do not wait for each other while there are slots."""
    work = Work(max_in_flight=3)
    for offset, key in enumerate("abc"):
        work.put(offset, key, 3.0 - offset)
    await asyncio.sleep(3)

    assert work.finished == [2, 1, 0]


@virtual_time
async def test_a_new_key_needs_a_slot_and_an_old_one_does_not() -> None:
    """With every slot taken there is room only behind a key that is being worked on."""
    work = Work(max_in_flight=2)
    work.put(0, "a", 1.0)
    work.put(1, "b", 2.0)

    assert not work.lanes.has_room(b"c")
    assert work.lanes.has_room(b"a")
    await work.put_when_there_is_room(2, "c", 1.0)
    assert asyncio.get_running_loop().time() == 1.0


@virtual_time
async def test_a_lane_that_wants_its_slot_back_comes_before_new_records() -> None:
    """After its pause a key gets the next slot that is free, whatever else waits for one."""
    work = Work(max_in_flight=1)
    work.put(0, "failing", 0.0, -1.0, 0.0)
    await work.put_when_there_is_room(1, "slow", 5.0)
    await asyncio.sleep(2)
    assert not work.lanes.has_room(b"new")
    await work.put_when_there_is_room(2, "new", 1.0)

    assert work.finished == [1, 0]
    assert asyncio.get_running_loop().time() == 5.0


@virtual_time
async def test_a_failing_key_with_many_records_holds_up_no_other() -> None:
    """Hundreds of records queued behind a key in backoff take no slot."""
    work = Work(max_in_flight=2)
    work.put(0, "failing", *[0.0, -10.0] * 50)
    for offset in range(1, 500):
        work.put(offset, "failing")
    for offset in range(500, 600):
        await work.put_when_there_is_room(offset, f"key-{offset}", 1.0)
    await asyncio.sleep(1.5)

    assert sorted(work.finished) == list(range(500, 600))
    assert asyncio.get_running_loop().time() <= 60


@virtual_time
async def test_a_fault_of_ours_neither_loses_nor_drops_a_record() -> None:
    """After an unexpected error a delivery is repeated, and its key waits for it."""
    faults = [ZeroDivisionError(), KeyError("x")]
    ends: list[int] = []

    async def deliver(one: Record, lane: Lane) -> None:
        if one.offset == 0 and faults:
            raise faults.pop()
        ends.append(one.offset)

    lanes = Lanes(deliver, max_in_flight=1)
    for offset, key in enumerate("aab"):
        while not lanes.has_room(key):
            await lanes.changed()
        lanes.put(key, record(offset))
    await lanes.drain(1000.0, lambda: False)

    assert ends == [2, 0, 1], "the faulty lane gave its slot to the other key"
    await asyncio.sleep(0)
    assert (lanes.queued, lanes.in_flight) == (0, 0)


@virtual_time
async def test_room_is_told_as_soon_as_a_record_ends() -> None:
    """When memory was full, the end of any record lets the next in, not the end of its lane."""
    work = Work(max_in_flight=2, max_queued=3)
    work.put(0, "busy", 1.0)
    work.put(1, "busy", 10.0)
    work.put(2, "busy", 10.0)

    await work.put_when_there_is_room(3, "other", 1.0)

    assert asyncio.get_running_loop().time() == 1.0


@virtual_time
async def test_a_pause_ends_with_its_time_or_its_future() -> None:
    """A pause ends with its time, or as soon as the future it waits for is done."""
    loop = asyncio.get_running_loop()
    ends: list[float] = []
    news: list[asyncio.Future[None]] = [loop.create_future(), loop.create_future()]
    news[1].set_result(None)

    async def deliver(one: Record, lane: Lane) -> None:
        await lane.pause_until(news[0])
        ends.append(loop.time())
        await lane.pause(2.0)
        ends.append(loop.time())
        await lane.pause_until(news[1])
        ends.append(loop.time())

    lanes = Lanes(deliver, max_in_flight=1)
    lanes.put("a", record(0))
    loop.call_later(3.0, news[0].set_result, None)
    await asyncio.sleep(10)

    assert ends == [3.0, 5.0, 5.0]
    assert (lanes.queued, lanes.in_flight) == (0, 0)


@given(RECORDS, st.integers(1, 3), st.integers(1, 8))
def test_any_interleaving_keeps_the_rules(
    arrivals: Arrivals, max_in_flight: int, max_queued: int
) -> None:
    """With any arrivals and durations: all records finish, in order within a key, within bounds."""

    async def main() -> None:
        work = Work(max_in_flight, max_queued)
        for offset, (key, script, gap) in enumerate(arrivals):
            await asyncio.sleep(gap)
            await work.put_when_there_is_room(offset, key, *script)
            assert work.lanes.queued <= max(max_queued, max_in_flight)
        await work.lanes.drain(10_000.0, lambda: False)

        assert sorted(work.finished) == list(range(len(arrivals)))
        for one_key in "abcd":
            of_key = [n for n, (key, _, _) in enumerate(arrivals) if key == one_key]
            assert [n for n in work.finished if n in of_key] == of_key
        await asyncio.sleep(0)
        assert (work.lanes.queued, work.lanes.in_flight) == (0, 0)

    run_virtual(main())
