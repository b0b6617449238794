"""Records that have no room: they are left in Kafka, others go on, and they are read again later.

A key with very many records may have a bounded number of them in memory. The others are passed over
and only their offsets are kept; when the key has room again, its partition is read again from
there. Order within the key stays: while one of its records is left, no later one is taken.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

LaneKey: TypeAlias = tuple[str, int, bytes | None] | tuple[str, int, None, int]
"""Topic, partition and key; without a key each record has a lane of its own."""

# Of so many of a partition offsets are kept; then reading it pauses.
MAX_LEFT = 50_000


class Reading(Protocol):
    """Where a partition is read."""

    def read_again(self, topic: str, partition: int, offset: int) -> None:
        """Go back to a record that was left."""

    def read_on(self, topic: str, partition: int, *, paused: bool) -> None:
        """Go on where reading never was, or pause there."""


class LeftInKafka:
    """The offsets of what is left, by lane."""

    def __init__(self, reading: Reading) -> None:
        """Begin with nothing left."""
        self._reading = reading
        self.lanes: dict[LaneKey, deque[int]] = {}
        """What is left of each lane, in ascending order; no lane without any."""
        # Lanes with room for what is left of them, by partition.
        self._wanting: dict[tuple[str, int], set[LaneKey]] = {}
        self._counts: dict[tuple[str, int], int] = {}

    @property
    def count(self) -> int:
        """Records that are left."""
        return sum(self._counts.values())

    def comes_too_early(self, lane: LaneKey, offset: int) -> bool:
        """Whether an earlier record of its lane is left: this one must be, too."""
        left = self.lanes.get(lane)
        return left is not None and left[0] < offset

    def leave(self, lane: LaneKey, offset: int, *, full: bool) -> None:
        """A record is not taken: its lane is full, or an earlier one of it is left."""
        partition = lane[0], lane[1]
        left = self.lanes.setdefault(lane, deque())
        if not left or left[-1] < offset:
            left.append(offset)
            self._counts[partition] = self._counts.get(partition, 0) + 1
        if full and lane in self._wanting.get(partition, ()):
            self._has_enough(lane)
        elif self._has_too_many(partition) and not self._wanting.get(partition):
            self._reading.read_on(*partition, paused=True)

    def submitted(self, lane: LaneKey, offset: int) -> None:
        """A record was taken that may have been left before."""
        left = self.lanes.get(lane)
        if left is None or left[0] != offset:
            return
        left.popleft()
        self._counts[lane[0], lane[1]] -= 1
        if not left:
            del self.lanes[lane]
            self._has_enough(lane)

    def has_room(self, lane: LaneKey) -> None:
        """A lane has room again: what is left of it is read again."""
        if lane not in self.lanes:
            return
        partition = lane[0], lane[1]
        wanting = self._wanting.setdefault(partition, set())
        if lane not in wanting:
            wanting.add(lane)
            self._reading.read_again(*partition, min(self.lanes[one][0] for one in wanting))

    def forget(self, topic: str, partition: int, before: int | None = None) -> list[int]:
        """Forget what is left of a partition, or what is left of it before an offset.

        Returns:
            The offsets.
        """
        forgotten: list[int] = []
        for lane in [lane for lane in self.lanes if lane[:2] == (topic, partition)]:
            left = self.lanes[lane]
            while left and (before is None or left[0] < before):
                forgotten.append(left.popleft())
            if not left:
                del self.lanes[lane]
                self._wanting.get((topic, partition), set()).discard(lane)
        if forgotten:
            self._counts[topic, partition] -= len(forgotten)
        return forgotten

    def clear(self) -> None:
        """Forget everything: partitions are read from what is committed."""
        self.lanes.clear()
        self._wanting.clear()
        self._counts.clear()

    def _has_enough(self, lane: LaneKey) -> None:
        """A lane is full again, or nothing is left of it."""
        partition = lane[0], lane[1]
        wanting = self._wanting.get(partition)
        if wanting and lane in wanting:
            wanting.remove(lane)
            if not wanting:
                self._reading.read_on(*partition, paused=self._has_too_many(partition))

    def _has_too_many(self, partition: tuple[str, int]) -> bool:
        return self._counts.get(partition, 0) >= MAX_LEFT
