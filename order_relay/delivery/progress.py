"""How far a partition is finished: what may be committed, and what is finished beyond it.

Only the contiguous finished prefix may be committed as the group's offset. Records finished out
of order, behind one that is still being retried, are written beside it as commit metadata, so
that the next owner of the partition does not deliver them again. (Confluent Parallel Consumer
does the same; the text format here is our own.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# The broker's default for offset.metadata.max.bytes is 4,096.
MAX_METADATA_LENGTH = 4000
_VERSION = "relay2"
_METADATA = re.compile(
    r"relay2:(?P<offset>\d{1,19}):(?P<length>\d{1,19}):(?P<gaps>\d{1,19}(,\d{1,19})*|)", re.ASCII
)


class Commit(NamedTuple):
    """What to commit for a partition.

    Attributes:
        offset: The next offset to deliver: everything before it is finished.
        metadata: What is finished beyond it, for ``PartitionProgress(metadata=...)``; "" if
            nothing is.
    """

    offset: int
    metadata: str


class PartitionProgress:
    """The records of one partition that were taken in one generation of the group.

    Memory is bounded by what is unfinished, never by how much finished behind a slow record.
    """

    def __init__(self, generation: int, committed: Commit | None = None) -> None:
        """Begin with nothing taken.

        Args:
            generation: The group's generation; records of another one are not counted.
            committed: What the group committed last; ``None`` if it never did.
        """
        self.generation = generation
        self._next: int | None = committed.offset if committed else None
        # Offset to record time in seconds. Insertion order is offset order.
        self._unfinished: dict[int, float] = {}
        self._held: set[int] = set()
        # Everything below it is finished but for the unfinished ones.
        self._finished_below = self._next or 0
        self._restored_unfinished: set[int] = set()
        self._restored_below = 0
        if committed and committed.metadata:
            self._restore(committed)

    def add(self, offset: int, record_time: float) -> bool:
        """Note that a record was read from Kafka. Offsets come in ascending order.

        Args:
            offset: The record's offset.
            record_time: The record's timestamp, in seconds since the epoch.

        Returns:
            Whether it is to be delivered; ``False`` for a record that is finished already.
        """
        if self._next is not None and offset < self._next:  # read again
            return offset in self._unfinished
        self._next = offset + 1
        if offset < self._restored_below and offset not in self._restored_unfinished:
            return False
        self._unfinished[offset] = record_time
        return True

    def skip_to(self, position: int) -> None:
        """Note that there is nothing left to read before ``position``.

        Markers of transactions and compacted records take offsets that no record has.
        """
        if self._next is None or position > self._next:
            self._next = position

    def delete_before(self, start: int) -> int:
        """Note that Kafka has deleted everything before ``start``, read or not.

        Returns:
            How many offsets were neither read nor finished. Not all of them were records, where
            transactions wrote their markers.
        """
        if self._next is None or start <= self._next:
            return 0
        known = range(self._next, min(start, self._restored_below))
        unfinished = sum(offset in known for offset in self._restored_unfinished)
        unread = start - self._next - len(known) + unfinished
        self._next = start
        self._finished_below = max(self._finished_below, start)
        return unread

    def claim(self, offset: int) -> bool:
        """Claim a taken record for delivery.

        Returns:
            ``False`` if it is finished or being delivered: a second copy, to be dropped.
        """
        if offset not in self._unfinished or offset in self._held:
            return False
        self._held.add(offset)
        return True

    def leave(self, offset: int) -> None:
        """Take the claim back: the record is read from Kafka once more."""
        self._held.discard(offset)

    def finish(self, offset: int) -> None:
        """Note that a record is finished, for good. Finishing it twice does nothing."""
        if self._unfinished.pop(offset, None) is not None:
            self._held.discard(offset)
            if offset >= self._finished_below:
                self._finished_below = offset + 1

    def is_finished(self, offset: int) -> bool:
        """Whether the record there was read and is finished, as far as is known."""
        if self._next is None:
            return False
        if offset < self._next:
            return offset not in self._unfinished
        return offset < self._restored_below and offset not in self._restored_unfinished

    def commit(self, max_metadata_length: int = MAX_METADATA_LENGTH) -> Commit | None:
        """Return what may be committed now; ``None`` when nothing was ever taken.

        Args:
            max_metadata_length: What is finished beyond that repeats after a restart.
        """
        position = self.finished_to
        if position is None:
            return None
        metadata = self._metadata(position, max_metadata_length)
        return Commit(position, metadata if len(metadata) <= max_metadata_length else "")

    @property
    def finished_to(self) -> int | None:
        """The offset before which all is finished; ``None`` before the first record."""
        return next(iter(self._unfinished), self._next)

    def oldest_unfinished_time(self) -> float | None:
        """Return the record time of the oldest unfinished record, in seconds since the epoch."""
        return next(iter(self._unfinished.values()), None)

    @property
    def position(self) -> int | None:
        """The next offset to read; ``None`` before the first."""
        return self._next

    @property
    def unclaimed(self) -> int:
        """How many records were read, and are neither finished nor claimed for delivery."""
        return len(self._unfinished) - len(self._held)

    @property
    def unfinished(self) -> int:
        """How many taken records are not finished."""
        return len(self._unfinished)

    # --- metadata: "relay2:<offset>:<length>:<gap>,<gap>..." in base 10 ---------------------
    # offset: the committed one. Tools that copy a group to another cluster translate the offset and
    # take the metadata along: then it says nothing of the records there.
    # length: how far beyond the offset the finished stretch reaches; gaps: the distance of each
    # unfinished record in it from the one before (the first one: from the offset).

    def _metadata(self, position: int, max_length: int) -> str:
        below = max(self._finished_below, self._restored_below)
        if below <= position:
            return ""
        parts: list[str] = []
        length = 0
        last = position
        for offset in self._unfinished_below(below):
            part = str(offset - last)
            length += len(part) + 1
            if length > max_length - 60:
                below = offset  # the rest does not fit: what is finished beyond it repeats
                break
            parts.append(part)
            last = offset
        if below <= position + (position in self._unfinished):
            return ""  # nothing beyond the position itself
        return f"{_VERSION}:{position}:{below - position}:{','.join(parts)}"

    def _unfinished_below(self, below: int) -> Iterator[int]:
        for offset in self._unfinished:
            if offset >= below:
                return
            yield offset
        if self._next is not None and self._next < self._restored_below:
            yield from sorted(
                offset for offset in self._restored_unfinished if self._next <= offset < below
            )

    def _restore(self, committed: Commit) -> None:
        match = _METADATA.fullmatch(committed.metadata)
        if match is None or int(match["offset"]) != committed.offset:
            return  # of another tool, or of another cluster: records are simply delivered again
        below = committed.offset + int(match["length"])
        unfinished = set()
        last = committed.offset
        for gap in filter(None, match["gaps"].split(",")):
            last += int(gap)
            unfinished.add(last)
        self._restored_below = below
        self._restored_unfinished = unfinished
