"""Lanes with any records, at any moment; the dispatcher's tests show each rule alone."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from order_relay.delivery.lanes import Lane, Lanes
from order_relay.model.record import Record
from tests.support.fakes import must, record
from tests.support.virtual_time import run_virtual

pytestmark = pytest.mark.virtual_time

# Seconds of an attempt, or of a pause if negative; a record's key, its steps, the gap before it.
STEPS = st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, -1.0, -2.0, -7.0]), max_size=4).map(tuple)
RECORDS = st.lists(st.tuples(st.sampled_from("abcd"), STEPS, st.sampled_from([0.0, 0.5, 3.0])))
Arrivals = list[tuple[str, tuple[float, ...], float]]


class Work:
    """Lanes, and the results of their records.

    A step of a script is the seconds of an attempt; a negative one pauses for that long, after a
    failed attempt unless it is one second. Attempts of 5 s time out while everything hangs.
    """

    def __init__(self, max_in_flight: int, max_queued: int = 1000) -> None:
        self.scripts: dict[int, tuple[float, ...]] = {}
        self.lanes = Lanes(self._deliver, max_in_flight=max_in_flight, max_queued=max_queued)
        self.max_in_flight = max_in_flight
        self.finished: list[int] = []
        self.keys_at_work: list[bytes | None] = []
        self.at_attempt: list[int] = []
        self.retries = 0
        self.on_finished: Callable[[], object] = lambda: None

    def put(self, offset: int, key: str, *script: float) -> None:
        self.scripts[offset] = script
        one = record(offset, key)
        assert self.lanes.has_room(one.key)
        self.lanes.put(one.key, one)

    async def put_when_there_is_room(self, offset: int, key: str, *script: float) -> None:
        while not self.lanes.has_room(key.encode()):
            await self.lanes.changed()
        self.put(offset, key, *script)

    async def until_empty(self) -> None:
        while self.lanes.queued:
            await self.lanes.changed()

    async def _deliver(self, one: Record, lane: Lane) -> None:
        must(one.key not in self.keys_at_work, "two of one key at a time")
        self.keys_at_work.append(one.key)
        try:
            for seconds in self.scripts[one.offset]:
                if seconds < 0:
                    lane.failing = lane.failing or seconds < -1.0
                    await lane.pause(-seconds)
                    must(not self.lanes.closed, "it went on after the close")
                else:
                    await self._attempt(one.offset, seconds, retries=lane.failing)
        finally:
            self.keys_at_work.remove(one.key)
        self.finished.append(one.offset)
        self.on_finished()

    async def _attempt(self, offset: int, seconds: float, *, retries: bool) -> None:
        self.at_attempt.append(offset)
        self.retries += retries
        must(self.retries <= max(self.max_in_flight // 2, 1), "too many retries")
        must(len(self.at_attempt) <= self.lanes.in_flight <= self.max_in_flight, "too many")
        try:
            await asyncio.sleep(seconds)
            if seconds == 5.0:
                self.lanes.start_slowly(seconds)
            elif self.lanes.starts_slowly:
                self.lanes.succeeded()
        finally:
            self.at_attempt.remove(offset)
            self.retries -= retries


async def test_closing_lets_attempts_end_and_gives_up_the_rest() -> None:
    """At the close an attempt may end; pauses end at once; queued records never begin."""
    work = Work(max_in_flight=3)
    work.put(0, "running", 2.0)
    work.put(1, "running", 0.0)
    work.put(2, "waiting", -100.0)
    work.put(3, "pauses next", 1.0, -100.0, 0.0)
    work.put(4, "running", 0.0)  # every slot is in use; it needs none
    await asyncio.sleep(0.5)

    assert await work.lanes.close(5.0) == 4
    assert asyncio.get_running_loop().time() == 2.0
    assert work.finished == [0]


async def test_a_slot_that_comes_with_the_close_is_not_used() -> None:
    """The lane that waited for it sends nothing."""
    work = Work(max_in_flight=1)
    work.put(0, "waits", -0.5, 9.0)
    await asyncio.sleep(0.0)
    work.put(1, "running", 1.0)
    closing: list[asyncio.Task[int]] = []
    work.on_finished = lambda: closing.append(asyncio.create_task(work.lanes.close(5.0)))
    await asyncio.sleep(2.0)

    assert work.finished == [1]
    assert closing[0].result() == 1


async def test_how_much_is_kept_of_keys_that_stand_still() -> None:
    """1,000 of a key up to half of the memory, then 50 a key up to three quarters."""

    async def never(one: Record, lane: Lane) -> None:
        await asyncio.sleep(10_000_000.0)

    def fill(*keys: int) -> int:
        """Put a record of each in turn, until each lane is full; return how many."""
        before = lanes.queued
        open_keys = set(keys)
        while open_keys:
            for key in sorted(open_keys):
                one = record(lanes.queued, f"key-{key}")
                if lanes.is_full(one.key):
                    open_keys.discard(key)
                else:
                    assert lanes.has_room(one.key)
                    lanes.put(one.key, one)
        return lanes.queued - before

    lanes = Lanes(never, max_in_flight=256)
    assert fill(0) == 1000
    assert fill(*range(1, 21)) == 5000 + 21 - 1000
    assert fill(*range(100, 120)) == 20 * 50
    assert fill(*range(200, 300)) == 7500 + 21 + 20 + 100 - 5000 - 21 - 20 * 50
    assert fill(0, *range(300, 310)) == 10
    assert not lanes.has_room_for_more(999)
    assert lanes.has_room_for_more(0)
    await lanes.close(0.0)


async def test_a_slow_start_hands_out_slot_by_slot() -> None:
    """After a time-out of 5 s each of ten slots waits half a second; a success allows two more.

    A second time-out then changes nothing; the next slow start is the same.
    """
    loop = asyncio.get_running_loop()
    work = Work(max_in_flight=10)
    for first in (0, 20):
        begin = loop.time()
        work.put(first, "hangs", 5.0)
        work.put(first + 1, "hangs, too", 0.2, 5.0)
        await work.until_empty()
        started: list[float] = []
        for offset in range(2, 11):
            await work.put_when_there_is_room(
                first + offset, f"key-{offset}", *([0.2] if offset == 4 else [9.0])
            )
            started.append(loop.time() - begin - 5.0)
        assert started == pytest.approx([0.5, 1.0, 1.5, 1.7, 1.7, 2.0, 2.5, 3.0, 3.5])
        await work.until_empty()
        await asyncio.sleep(100.0)
        assert not work.lanes.starts_slowly


async def test_after_a_close_in_a_slow_start_all_slots_are_free() -> None:
    """What waited for a slot when everything hung does not delay the next records."""
    work = Work(max_in_flight=4)
    work.put(0, "hangs", 5.0)
    for offset in range(1, 4):
        work.put(offset, f"key-{offset}", 4.9, -0.2, 9.0)
    await asyncio.sleep(5.2)
    assert work.lanes.starts_slowly
    assert work.at_attempt == []
    waits_for_room = work.lanes.changed()
    assert await work.lanes.close(0.0) == 3
    assert waits_for_room.done()

    work.lanes.open()
    for offset in range(4, 8):
        work.put(offset, f"key-{offset}", 1.0)
    await work.until_empty()
    assert sorted(work.finished) == [0, 4, 5, 6, 7]


async def test_a_time_out_while_closing_begins_no_slow_start() -> None:
    """It does not slow down deliveries after the close."""
    work = Work(max_in_flight=4)
    work.put(0, "hangs", 5.0)
    await asyncio.sleep(1.0)
    assert await work.lanes.close(10.0) == 0
    work.lanes.open()
    assert not work.lanes.starts_slowly


@given(RECORDS, st.integers(1, 3), st.integers(1, 8))
def test_any_interleaving_keeps_the_rules(
    arrivals: Arrivals, max_in_flight: int, max_queued: int
) -> None:
    """With any arrivals and durations all records finish, in order within a key, within bounds."""

    async def main() -> None:
        work = Work(max_in_flight, max_queued)
        for offset, (key, script, gap) in enumerate(arrivals):
            await asyncio.sleep(gap)
            await work.put_when_there_is_room(offset, key, *script)
            assert work.lanes.queued <= max(max_queued, max_in_flight)
        await work.until_empty()

        assert sorted(work.finished) == list(range(len(arrivals)))
        for one_key in "abcd":
            of_key = [n for n, (key, _, _) in enumerate(arrivals) if key == one_key]
            assert [n for n in work.finished if n in of_key] == of_key
        await asyncio.sleep(0)
        assert (work.lanes.queued, work.lanes.in_flight) == (0, 0)

    run_virtual(main())


@given(
    RECORDS,
    st.integers(1, 3),
    st.integers(0, 80).map(lambda quarters: quarters / 4),
    st.sampled_from([0.0, 1.0, 1.5, 100.0]),
)
@settings(max_examples=200)
def test_a_close_at_any_moment_is_clean(
    arrivals: Arrivals, max_in_flight: int, close_at: float, seconds: float
) -> None:
    """The count is right, nothing runs on, and what was given back can come again."""

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
        await work.until_empty()
        assert sorted(work.finished) == [offset for offset, _, _ in taken]

    run_virtual(main())
