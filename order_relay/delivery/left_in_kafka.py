"""Records that have no room in memory: they stay in Kafka and are read again later.

A key may have a limited number of records in memory. Of the others only the offsets are kept, and
records of other keys are delivered meanwhile. When the key has room again, its partition is read
again from the first of these offsets. Order within the key stays: while one of its records is left
in Kafka, no later one is accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from order_relay.model.record import Record

LaneKey: TypeAlias = tuple[str, int, bytes | None] | tuple[str, int, None, int]
"""Topic, partition and key. A record without a key has a lane of its own, by its offset."""

# Maximum offsets kept for a partition; reading it pauses then.
MAX_LEFT = 50_000


class Reading(Protocol):
    """Moves the position at which partitions are read."""

    def leave(self, record: Record) -> None:
        """Give back a record that was accepted: it is left in Kafka after all."""

    def read_again(self, topic: str, partition: int, offset: int) -> None:
        """Go back to a record that was left."""

    def read_on(self, topic: str, partition: int, *, paused: bool) -> None:
        """Continue at the first record that was never read, or pause there."""


class LeftInKafka:
    """Keeps the offsets of the records that are left in Kafka, by lane."""

    def __init__(self, reading: Reading) -> None:
        """Start without any record."""
        self._reading = reading
        self.lanes: dict[LaneKey, deque[int]] = {}
        """The offsets of each lane in ascending order; only lanes that have some."""
        # Lanes that have room for their records again, by partition.
        self._wanting: dict[tuple[str, int], set[LaneKey]] = {}
        self._counts: dict[tuple[str, int], int] = {}

    @property
    def count(self) -> int:
        """How many records are left in Kafka."""
        return sum(self._counts.values())

    def comes_too_early(self, lane: LaneKey, offset: int) -> bool:
        """Whether an earlier record of the lane is left, so that this one has to be left, too."""
        left = self.lanes.get(lane)
        return left is not None and left[0] < offset

    def leave(self, lane: LaneKey, offset: int, *, full: bool) -> None:
        """Leave a record: its lane is full, or an earlier record of the lane is left."""
        left = self.lanes.setdefault(lane, deque())
        if not left or left[-1] < offset:
            left.append(offset)
            partition = lane[0], lane[1]
            self._counts[partition] = self._counts.get(partition, 0) + 1
        # With an earlier record left, that one has to be read first, even if the lane is full.
        self._left(lane, is_full=full and offset <= left[0])

    def leave_accepted(self, lane: LaneKey, offsets: Sequence[int]) -> None:
        """Leave all records of a lane that were accepted; they are before those left already."""
        self.lanes.setdefault(lane, deque()).extendleft(reversed(offsets))
        partition = lane[0], lane[1]
        self._counts[partition] = self._counts.get(partition, 0) + len(offsets)
        self._left(lane, is_full=True)

    def _left(self, lane: LaneKey, *, is_full: bool) -> None:
        partition = lane[0], lane[1]
        if is_full and lane in self._wanting.get(partition, ()):
            self._has_enough(lane)
        elif self._has_too_many(partition) and not self._wanting.get(partition):
            self._reading.read_on(*partition, paused=True)

    def submitted(self, lane: LaneKey, offset: int) -> None:
        """Note that a record was accepted; it may have been left before."""
        left = self.lanes.get(lane)
        if left is None or left[0] != offset:
            return
        left.popleft()
        self._counts[lane[0], lane[1]] -= 1
        if not left:
            del self.lanes[lane]
            self._has_enough(lane)

    def has_room(self, lane: LaneKey) -> None:
        """Read a lane's records again: it has room."""
        if lane not in self.lanes:
            return
        partition = lane[0], lane[1]
        wanting = self._wanting.setdefault(partition, set())
        if lane not in wanting:
            wanting.add(lane)
            self._reading.read_again(*partition, min(self.lanes[one][0] for one in wanting))

    def read_all_again(self) -> None:
        """Read the records of all lanes again: there is room for them."""
        wanting = self._wanting
        wanting.clear()
        for lane in self.lanes:
            wanting.setdefault((lane[0], lane[1]), set()).add(lane)
        for partition, lanes in wanting.items():
            self._reading.read_again(*partition, min(self.lanes[one][0] for one in lanes))

    def forget(
        self, topic: str, partition: int, gone: Callable[[int], bool] = lambda offset: True
    ) -> list[int]:
        """Forget the first records of each lane of a partition, as long as they are ``gone``.

        Returns:
            The offsets that were forgotten.
        """
        forgotten: list[int] = []
        for lane in [lane for lane in self.lanes if lane[:2] == (topic, partition)]:
            left = self.lanes[lane]
            while left and gone(left[0]):
                forgotten.append(left.popleft())
            if not left:
                del self.lanes[lane]
                self._wanting.get((topic, partition), set()).discard(lane)
        if forgotten:
            self._counts[topic, partition] -= len(forgotten)
        return forgotten

    def clear(self) -> None:
        """Forget everything: partitions will be read from their committed offsets."""
        self.lanes.clear()
        self._wanting.clear()
        self._counts.clear()

    def _has_enough(self, lane: LaneKey) -> None:
        """Stop reading again for a lane: it is full, or none of its records is left."""
        partition = lane[0], lane[1]
        wanting = self._wanting.get(partition)
        if wanting and lane in wanting:
            wanting.remove(lane)
            if not wanting:
                self._reading.read_on(*partition, paused=self._has_too_many(partition))

    def _has_too_many(self, partition: tuple[str, int]) -> bool:
        return self._counts.get(partition, 0) >= MAX_LEFT
