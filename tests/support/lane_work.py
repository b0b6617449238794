"""Lanes over a script: what the delivery of each record does, step by step."""

import asyncio

from hypothesis import strategies as st

from order_relay.delivery.lanes import Lane, Lanes
from order_relay.model.record import Record
from tests.support.fakes import must, record

FOR_EVER = float("inf")
# An attempt, or a pause where negative, in seconds; a record's key, its steps, the gap before it.
STEPS = st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, -1.0, -2.0, -7.0]), max_size=4).map(tuple)
RECORDS = st.lists(st.tuples(st.sampled_from("abcd"), STEPS, st.sampled_from([0.0, 0.5, 3.0])))
Arrivals = list[tuple[str, tuple[float, ...], float]]


class Work:
    """Lanes, and what became of the records that were put in.

    A step of a script is the seconds of an attempt; a negative one pauses for that long.
    """

    def __init__(self, max_in_flight: int, max_queued: int = 1000) -> None:
        self.scripts: dict[int, tuple[float, ...]] = {}
        self.lanes = Lanes(self._deliver, max_in_flight=max_in_flight, max_queued=max_queued)
        self.max_in_flight = max_in_flight
        self.begun: list[int] = []
        self.finished: list[int] = []
        self.finished_at: dict[int, float] = {}
        self.keys_at_work: list[bytes | None] = []
        self.at_attempt: list[int] = []

    def put(self, offset: int, key: str, *script: float) -> None:
        self.scripts[offset] = script
        one = record(offset, key)
        assert self.lanes.has_room(one.key)
        self.lanes.put(one.key, one)

    async def put_when_there_is_room(self, offset: int, key: str, *script: float) -> None:
        while not self.lanes.has_room(key.encode()):
            await self.lanes.changed()
        self.put(offset, key, *script)

    async def _deliver(self, one: Record, lane: Lane) -> None:
        must(one.key not in self.keys_at_work, "two of one key at a time")
        self.keys_at_work.append(one.key)
        self.begun.append(one.offset)
        try:
            for seconds in self.scripts[one.offset]:
                if seconds < 0:
                    await lane.pause(-seconds)
                else:
                    await self._attempt(one.offset, seconds)
        finally:
            self.keys_at_work.remove(one.key)
        self.finished.append(one.offset)
        self.finished_at[one.offset] = asyncio.get_running_loop().time()

    async def _attempt(self, offset: int, seconds: float) -> None:
        self.at_attempt.append(offset)
        must(len(self.at_attempt) <= self.lanes.in_flight <= self.max_in_flight, "too many")
        try:
            if seconds == FOR_EVER:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(seconds)
        finally:
            self.at_attempt.remove(offset)
