"""Lanes: draining, closing at any moment, and beginning anew."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from order_relay.delivery.lanes import Lane, Lanes
from order_relay.model.record import Record
from tests.support.fakes import record
from tests.support.lane_work import FOR_EVER, RECORDS, Arrivals, Work
from tests.support.virtual_time import run_virtual, virtual_time


@virtual_time
async def test_draining_waits_for_all_and_no_longer() -> None:
    """Draining ends when everything is finished, pauses and queued records included."""
    work = Work(max_in_flight=2)
    work.put(0, "a", 1.0, -2.0, 1.0)
    work.put(1, "a", 1.0)
    await work.lanes.drain(30.0, lambda: False)

    assert asyncio.get_running_loop().time() == 5.0
    assert work.finished == [0, 1]


@virtual_time
async def test_draining_ends_with_its_time_or_when_there_is_no_hope() -> None:
    """Draining ends at its deadline, and soon after the caller says that nothing can finish."""
    loop = asyncio.get_running_loop()
    work = Work(max_in_flight=2)
    work.put(0, "a", FOR_EVER)

    await work.lanes.drain(3.0, lambda: False)
    assert loop.time() == 3.0
    await work.lanes.drain(30.0, lambda: loop.time() >= 10.0)
    assert loop.time() == pytest.approx(10.0, abs=0.25)
    await work.lanes.drain(30.0, lambda: True)
    assert loop.time() == pytest.approx(10.0, abs=0.25)


@virtual_time
async def test_closing_lets_attempts_end_and_gives_up_the_rest() -> None:
    """At the close an attempt may end; pauses end at once; queued records never begin."""
    work = Work(max_in_flight=3)
    work.put(0, "running", 2.0)
    work.put(1, "running", 0.0)
    work.put(2, "waiting", -100.0)
    work.put(3, "pauses next", 1.0, -100.0, 0.0)
    await asyncio.sleep(0.5)

    closing = asyncio.create_task(work.lanes.close(5.0))
    await asyncio.sleep(0.25)
    assert work.lanes.in_flight == len(work.at_attempt) == 2
    assert await closing == 3
    assert asyncio.get_running_loop().time() == 2.0
    assert work.finished == [0]
    assert work.begun == [0, 2, 3]


@virtual_time
async def test_what_has_not_begun_does_not_begin_any_more() -> None:
    """A record that was put a moment before the close is given up before its first attempt."""
    work = Work(max_in_flight=2)
    work.put(0, "a", 1.0)

    assert await work.lanes.close(10.0) == 1
    assert work.begun == []
    assert asyncio.get_running_loop().time() == 0.0


@virtual_time
async def test_a_lane_that_gets_its_slot_at_the_close_is_given_up() -> None:
    """A slot that is handed on in the moment of the close leads to no further attempt."""
    ends: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    attempts: list[int] = []

    async def deliver(one: Record, lane: Lane) -> None:
        if one.offset == 0:
            await lane.pause(1.0)
        else:
            await ends
        attempts.append(one.offset)

    lanes = Lanes(deliver, max_in_flight=1)
    lanes.put("waits", record(0))
    await asyncio.sleep(0.5)
    lanes.put("works", record(1))
    await asyncio.sleep(1.0)  # now the first waits for the slot of the second
    ends.set_result(None)
    await asyncio.sleep(0)  # the second ends, and the first has not yet woken up

    assert await lanes.close(10.0) == 1
    assert attempts == [1]


@virtual_time
async def test_a_lane_that_is_cancelled_before_its_first_step_leaves_nothing() -> None:
    """A task that never ran cannot tidy up after itself: the close does."""
    work = Work(max_in_flight=1)
    before = asyncio.all_tasks()
    work.put(0, "a", 1.0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await asyncio.sleep(0)

    assert await work.lanes.close(1.0) == 1
    work.lanes.open()
    work.put(1, "a", 1.0)
    await asyncio.sleep(2)
    assert work.finished == [1]
    assert (work.lanes.queued, work.lanes.in_flight) == (0, 0)


@virtual_time
async def test_waiting_for_room_ends_at_close_and_open() -> None:
    """Closing and opening wake those who wait for room, so that they can look again."""
    work = Work(max_in_flight=1)
    work.put(0, "a", FOR_EVER)
    heard: list[str] = []

    async def listen() -> None:
        while True:
            await work.lanes.changed()
            heard.append("changed")

    listener = asyncio.create_task(listen())
    await asyncio.sleep(1)
    await work.lanes.close(0.0)
    await asyncio.sleep(0)
    closing = len(heard)
    work.lanes.open()
    await asyncio.sleep(0)
    listener.cancel()

    assert closing >= 1
    assert len(heard) > closing


@virtual_time
async def test_a_paused_lane_that_is_closed_is_abandoned() -> None:
    """A delivery is cancelled in its pause, and at the next one."""
    heard: list[str] = []

    async def deliver(one: Record, lane: Lane) -> None:
        try:
            await lane.pause_until(asyncio.get_running_loop().create_future())
        except asyncio.CancelledError:
            heard.append("in its pause")
        try:
            await lane.pause(0.0)
        except asyncio.CancelledError:
            heard.append("at the next one")
            raise

    lanes = Lanes(deliver, max_in_flight=1)
    lanes.put("a", record(0))
    await asyncio.sleep(1)

    assert await lanes.close(1.0) == 1
    assert heard == ["in its pause", "at the next one"]


@given(
    RECORDS,
    st.integers(1, 3),
    st.integers(0, 80).map(lambda quarters: quarters / 4),
    st.sampled_from([0.0, 1.0, 1.5, 100.0]),
)
@settings(max_examples=200)
def test_a_close_at_any_moment_is_clean(
    arrivals: Arrivals,
    max_in_flight: int,
    close_at: float,
    seconds: float,
) -> None:
    """Whenever it comes: the count is right, nothing runs on, what was given up can come again."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        work = Work(max_in_flight)
        taken: list[tuple[int, str, tuple[float, ...]]] = []

        async def arrive() -> None:
            for offset, (key, script, gap) in enumerate(arrivals):
                await asyncio.sleep(gap)
                await work.put_when_there_is_room(offset, key, *script)
                taken.append((offset, key, script))

        assigned = asyncio.create_task(arrive())
        await asyncio.sleep(close_at)
        assigned.cancel()
        before = loop.time()
        held_before = len(taken) - len(work.finished)
        finished_before = len(work.finished)
        given_up = await work.lanes.close(seconds)

        assert loop.time() - before <= seconds
        assert given_up == held_before - (len(work.finished) - finished_before)
        assert (work.lanes.queued, work.lanes.in_flight) == (0, 0)
        assert work.at_attempt == []
        finished = list(work.finished)
        await asyncio.sleep(100)
        assert work.finished == finished

        work.lanes.open()
        again = [one for one in taken if one[0] not in finished]
        for offset, key, script in again:
            await work.put_when_there_is_room(offset, key, *script)
        await work.lanes.drain(10_000.0, lambda: False)
        assert sorted(work.finished) == [offset for offset, _, _ in taken]

    run_virtual(main())
