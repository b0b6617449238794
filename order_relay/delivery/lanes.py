"""Lanes: records of one key one after another, different keys concurrently.

A lane holds the queued records of one key in offset order and works on the first one. It has a
*slot* while it makes an attempt; at most ``max_in_flight`` lanes have one. A lane that waits for
its backoff or at the gate frees its slot, so a failing key delays only itself. A lane that wants
its slot back comes before new records; but records that have failed before get half of the slots at
most. Else those that hang, time and again, would leave none for the others. While everything hangs,
slots that time-outs free are handed out one after another, see ``start_slowly``: else all records
would be sent at once, and hang at once, whenever the target hangs for as long as it works between.

Three bounds limit the records in memory: for all of them, for each key, and for all that wait
behind the first one of their key. So neither one key nor several can take the room of the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from order_relay.model.record import Record

# Maximum records in memory. It bounds memory when a key with many records is stuck, and is far
# above what MAX_IN_FLIGHT keys can work on.
MAX_QUEUED_RECORDS = 10_000
# One key may have a tenth of them; half of them may wait behind the first one of their key. Beyond
# that half, each key may still have a few.
KEY_SHARE = 10
BEHIND_SHARE = 2
# At most half of the slots are for records that have failed before.
RETRY_SHARE = 2
MIN_QUEUE_OF_KEY = 50
# The half does not bind a key that finishes its records this soon: reading them again later would
# cost more than waiting. It may then have as many as all lanes on average when memory is full, so
# that there is always room for a lane that runs empty.
SOON_SECONDS = 2.0
# While everything hangs, one more slot is handed out in this time, or sooner. Each success allows
# so many more, as in the slow start of TCP (RFC 5681).
SLOW_START_SECONDS = 1.0
SLOW_START_GROWTH = 2
# Wait after an unexpected error.
ERROR_PAUSE_SECONDS = 10.0

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Lane:
    """One key's records, and the task that works on them.

    Attributes:
        failing: Whether the first record has failed before; ``deliver`` sets it.
        refusals: Refusals since a record was taken at its first attempt; ``deliver`` counts them.
        refused_at: When the last one came.
        cuts: How many of them may have lowered the rate for all.
    """

    _lanes: Lanes
    key: Hashable
    queue: deque[Record]
    # When the current record began, and how long the last one took.
    since: float
    seconds: float = math.inf
    has_slot: bool = True
    # Whether its slot is one of those for retries.
    retries: bool = False
    failing: bool = False
    refusals: int = 0
    refused_at: float = math.inf
    cuts: int = 0
    task: asyncio.Task[None] = field(init=False)

    def finishes_soon(self) -> bool:
        """Whether its records finish soon if each takes as long as the last one."""
        each = max(self.seconds, self._lanes.clock() - self.since)
        return len(self.queue) * each <= SOON_SECONDS

    async def pause(self, seconds: float) -> None:
        """Free the slot for ``seconds``, then wait for one again."""
        await self.pause_until(asyncio.sleep(seconds))

    async def pause_until(self, done: Awaitable[object]) -> None:
        """Free the slot until something is done, then wait for one again.

        Raises:
            CancelledError: The lanes are closed, or close meanwhile.
        """
        self._lanes.free_slot(self)
        if self._lanes.closed:
            self.task.cancel()
        await done
        await self._lanes.take_slot(self)


class Lanes:
    """Runs ``deliver`` for every queued record: in order within a key, keys concurrently."""

    def __init__(
        self,
        deliver: Callable[[Record, Lane], Awaitable[None]],
        *,
        max_in_flight: int,
        max_queued: int = MAX_QUEUED_RECORDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create lanes that accept records, in the running event loop.

        Args:
            deliver: Finishes one record. After an error it is called again for the same record.
                Once the lanes are closed, a pause cancels it.
            max_in_flight: Maximum lanes with a slot.
            max_queued: Maximum records in memory.
            clock: Monotonic seconds.
        """
        self._deliver = deliver
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self._limit = max_in_flight
        self._max_queued = max(max_queued, max_in_flight)
        self.max_of_key = max(self._max_queued // KEY_SHARE, 2)
        """Maximum records of one key in memory."""
        self._max_behind = self._max_queued // BEHIND_SHARE
        self._lanes: dict[Hashable, Lane] = {}
        self._slot_queue: deque[tuple[Lane, asyncio.Future[None]]] = deque()
        # Of lanes whose record has failed, and how many of them have a slot.
        self._retry_queue: deque[tuple[Lane, asyncio.Future[None]]] = deque()
        self._retrying = 0
        # Seconds between two slots in a slow start, and how many may be handed out now.
        self._slot_seconds = 0.0
        self._allowed = 0
        self._retry_was_last = False
        self._timer: asyncio.TimerHandle | None = None
        self.starts_slowly = False
        """Whether slots are handed out one after another."""
        self._changed: asyncio.Future[None] | None = None
        self.closed = False
        """Whether the lanes accept no records."""
        self.in_flight = 0
        self.queued = 0
        self.on_record_done: Callable[[Hashable, int], None] | None = None
        """Called after each finished record with the lane's key and its remaining records."""

    # --- intake -----------------------------------------------------------------------------

    def has_room(self, key: Hashable) -> bool:
        """Whether ``put`` may be called now for this lane."""
        if self.queued >= self._max_queued:
            return False
        return key in self._lanes or (self._has_slot and not self._slot_queue)

    def is_full(self, key: Hashable) -> bool:
        """Whether a lane has its maximum of records."""
        lane = self._lanes.get(key)
        if lane is None:
            return False
        count = len(lane.queue)
        if count >= self.max_of_key:
            return True
        over = self.queued - len(self._lanes) - self._max_behind
        if over < 0 or (count < MIN_QUEUE_OF_KEY and over < self._max_behind // 2):
            return False
        return not lane.finishes_soon() or count * len(self._lanes) >= self._max_queued

    def has_room_for_more(self, remaining: int) -> bool:
        """Whether to fetch more records for a lane with this many left."""
        if not remaining:
            return True
        behind = self.queued - len(self._lanes)
        return remaining <= self.max_of_key // 2 and behind <= self._max_behind * 3 // 4

    def __contains__(self, key: Hashable) -> bool:
        """Whether a lane has a record."""
        return key in self._lanes

    def put(self, key: Hashable, record: Record) -> None:
        """Queue a record in its lane, or start the lane. Requires ``has_room``."""
        self.queued += 1
        lane = self._lanes.get(key)
        if lane is not None:
            lane.queue.append(record)
            return
        lane = self._lanes[key] = Lane(self, key, deque((record,)), self.clock())
        lane.task = self.loop.create_task(self.run(lane))
        self.in_flight += 1
        self._allowed -= 1
        self._retry_was_last = False

    def take_out(self, lane: Lane) -> list[Record]:
        """Remove all records of a lane, within the delivery of the first one."""
        records = list(lane.queue)
        lane.queue.clear()
        self.queued -= len(records)
        self.notify()
        return records

    def records(self) -> list[Record]:
        """Return every record in memory."""
        return [record for lane in self._lanes.values() for record in lane.queue]

    def changed(self) -> asyncio.Future[None]:
        """Return a future that ends when there may be room, or the lanes are closed.

        All callers share it. It is cancelled if one of them is.
        """
        if self._changed is None or self._changed.done():
            self._changed = self.loop.create_future()
        return self._changed

    def notify(self) -> None:
        """End the future of ``changed``."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # --- stopping -----------------------------------------------------------------------------

    async def close(self, seconds: float) -> int:
        """Stop intake, let attempts under way end, and abandon all other records.

        Attempts are cancelled after ``seconds``. When this returns, no lane runs.

        Returns:
            How many records were abandoned. Of two calls at a time only the first one counts them.
        """
        self.closed = True
        self._end_slow_start()
        self.notify()
        for lane in self._lanes.values():
            if not lane.has_slot:
                lane.task.cancel()
        if tasks := [lane.task for lane in self._lanes.values()]:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        # A task that was cancelled before its first step has not cleaned up its lane.
        self._lanes.clear()
        self._slot_queue.clear()
        self._retry_queue.clear()
        abandoned, self.in_flight, self.queued, self._retrying = self.queued, 0, 0, 0
        return abandoned

    def open(self) -> None:
        """Accept records again after ``close``."""
        self.closed = False

    # --- slots --------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Maximum lanes with a slot; a lower limit leaves attempts under way alone."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._hand_out_slots()

    def start_slowly(self, seconds: float) -> None:
        """Hand out slots one after another until attempts succeed: everything hangs.

        Args:
            seconds: How long an attempt hung. All slots are handed out in this time.
        """
        if not self.starts_slowly and not self.closed:
            self._slot_seconds = min(seconds / self._limit, SLOW_START_SECONDS)
            self._allowed = 0
            self.starts_slowly = True
            self._timer = self.loop.call_later(self._slot_seconds, self._allow_one)

    def succeeded(self) -> None:
        """Report a success in a slow start, which allows more slots."""
        self._allow(SLOW_START_GROWTH)

    def _allow_one(self) -> None:
        self._timer = self.loop.call_later(self._slot_seconds, self._allow_one)
        self._allow(1)

    def _allow(self, slots: int) -> None:
        self._allowed += slots
        if self._allowed >= self._limit:
            self._end_slow_start()
        self._hand_out_slots()

    def _end_slow_start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.starts_slowly = False

    @property
    def _has_slot(self) -> bool:
        return self.in_flight < self._limit and (self._allowed > 0 or not self.starts_slowly)

    def free_slot(self, lane: Lane) -> None:
        """Pass a lane's slot to the next lane that waits for one."""
        if lane.has_slot:
            lane.has_slot = False
            self.in_flight -= 1
            self._end_retry(lane)
            self._hand_out_slots()

    def _end_retry(self, lane: Lane) -> None:
        if lane.retries:
            lane.retries = False
            self._retrying -= 1

    def _hand_out_slots(self) -> None:
        """Give free slots to the lanes that have waited longest; half at most to retries.

        In a slow start, after a retry the next slot is left to new records until there are two:
        retries that fail at once would use all.
        """
        while self._has_slot:
            if self._slot_queue:
                queue = self._slot_queue
            elif self._retry_queue and self._may_retry:
                queue = self._retry_queue
            else:
                self.notify()
                return
            lane, turn = queue.popleft()
            if not turn.done():  # otherwise it was cancelled
                self.in_flight += 1
                self._allowed -= 1
                lane.has_slot = True
                lane.retries = lane.failing
                self._retrying += lane.failing
                self._retry_was_last = lane.failing
                turn.set_result(None)

    @property
    def _may_retry(self) -> bool:
        if self.starts_slowly and self._retry_was_last and self._allowed == 1:
            return False
        return self._retrying < max(self._limit // RETRY_SHARE, 1)

    async def take_slot(self, lane: Lane) -> None:
        """Wait for a slot."""
        turn: asyncio.Future[None] = self.loop.create_future()
        (self._retry_queue if lane.failing else self._slot_queue).append((lane, turn))
        self._hand_out_slots()
        await turn
        if self.closed:
            raise asyncio.CancelledError

    async def run(self, lane: Lane) -> None:
        """Deliver a lane's records, one after another."""
        queue = lane.queue
        try:
            while queue and not self.closed:
                try:
                    await self._deliver(queue[0], lane)
                except Exception:
                    # The record stays: a bug of ours must not lose it.
                    logger.exception("Delivery of %s failed with an unexpected error", queue[0])
                    await lane.pause(ERROR_PAUSE_SECONDS)
                    continue
                if not queue:  # see ``take_out``
                    break
                now = self.clock()
                lane.seconds, lane.since = now - lane.since, now
                queue.popleft()
                self.queued -= 1
                if self.on_record_done is not None:
                    self.on_record_done(lane.key, len(queue))
                if self.queued == self._max_queued - 1:
                    self.notify()  # intake waited for just this
                if lane.failing:
                    lane.failing = False
                    self._end_retry(lane)
                    self._hand_out_slots()
        finally:
            # No await since the queue was seen empty: a record put later starts a new lane.
            self._lanes.pop(lane.key, None)
            self.free_slot(lane)
