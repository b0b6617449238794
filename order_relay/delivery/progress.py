"""Tracks which records of a partition are finished, and what may be committed.

Only the contiguous finished prefix may be committed as the group's offset. Records that finish out
of order, behind one that is still being retried, go into the commit metadata. So the next owner of
the partition does not deliver them again. (Confluent Parallel Consumer does the same; the text
format is our own.)
"""

from __future__ import annotations

import re
from itertools import chain, takewhile
from typing import NamedTuple

# The broker's default for offset.metadata.max.bytes is 4,096.
MAX_METADATA_LENGTH = 4000
_METADATA = re.compile(
    r"relay2:(?P<offset>\d{1,19}):(?P<length>\d{1,19}):(?P<gaps>\d{1,19}(,\d{1,19})*|)", re.ASCII
)


class Commit(NamedTuple):
    """What to commit for a partition.

    Attributes:
        offset: The next offset to deliver; all records before it are finished.
        metadata: The records that are finished beyond it, as ``PartitionProgress`` reads them;
            "" if there are none.
    """

    offset: int
    metadata: str


class PartitionProgress:
    """The records of one partition that were read in one generation of the group.

    Memory grows with the unfinished records only, not with those that finished behind a slow one.
    """

    def __init__(self, generation: int, committed: Commit | None = None) -> None:
        """Start without any record.

        Args:
            generation: The group's generation; the caller ignores records of another one.
            committed: The group's last commit; ``None`` without one.
        """
        self.generation = generation
        self.position: int | None = committed.offset if committed else None
        """The next offset to read; ``None`` before the first."""
        # Offset to record time in seconds. Insertion order is offset order.
        self._unfinished: dict[int, float] = {}
        self._claimed: set[int] = set()
        # Below it, all records but the unfinished ones are finished.
        self._finished_below = 0
        self._restored_unfinished: set[int] = set()
        self._restored_below = 0
        if committed:
            self._restore(committed)

    def add(self, offset: int, record_time: float) -> bool:
        """Add a record that was read from Kafka. New offsets come in ascending order.

        Args:
            offset: The record's offset.
            record_time: The record's timestamp, in seconds since the epoch.

        Returns:
            ``False`` if the record is already finished, so that it must not be delivered.
        """
        if self.position is not None and offset < self.position:  # read again
            return offset in self._unfinished
        self.position = offset + 1
        if offset < self._restored_below and offset not in self._restored_unfinished:
            return False
        self._unfinished[offset] = record_time
        return True

    def skip_to(self, position: int) -> None:
        """Note that there is nothing left to read before ``position``.

        Transaction markers and compacted records leave offsets without a record.
        """
        if self.position is None or position > self.position:
            self.position = position

    def delete_before(self, start: int) -> int:
        """Note that Kafka has deleted all records before ``start``, read or not.

        Returns:
            How many offsets were neither read nor finished. Some may have been transaction markers
            instead of records.
        """
        if self.position is None or start <= self.position:
            return 0
        known = range(self.position, min(start, self._restored_below))
        unfinished = sum(offset in known for offset in self._restored_unfinished)
        unread = start - self.position - len(known) + unfinished
        self.position = start
        self._finished_below = max(self._finished_below, start)
        return unread

    def claim(self, offset: int) -> bool:
        """Claim a record for delivery.

        Returns:
            ``False`` if it is finished or claimed already: a second copy, to be dropped.
        """
        if offset not in self._unfinished or offset in self._claimed:
            return False
        self._claimed.add(offset)
        return True

    def leave(self, offset: int) -> None:
        """Release the claim: the record will be read from Kafka again."""
        self._claimed.discard(offset)

    def finish(self, offset: int) -> None:
        """Note that a record is finished. Finishing it twice does nothing."""
        if self._unfinished.pop(offset, None) is not None:
            self._claimed.discard(offset)
            if offset >= self._finished_below:
                self._finished_below = offset + 1

    def is_finished(self, offset: int) -> bool:
        """Whether the record at this offset is known to be finished."""
        if self.position is None:
            return False
        if offset < self.position:
            return offset not in self._unfinished
        return offset < self._restored_below and offset not in self._restored_unfinished

    def commit(self, max_metadata_length: int = MAX_METADATA_LENGTH) -> Commit | None:
        """Return what may be committed now; ``None`` before the first record.

        Args:
            max_metadata_length: Maximum length of the metadata, in characters. Finished records
                that do not fit are delivered again after a restart.
        """
        position = self.finished_to
        if position is None:
            return None
        metadata = self._metadata(position, max_metadata_length)
        return Commit(position, metadata if len(metadata) <= max_metadata_length else "")

    @property
    def finished_to(self) -> int | None:
        """The offset before which all records are finished; ``None`` before the first record."""
        return next(iter(self._unfinished), self.position)

    def oldest_unfinished_time(self) -> float | None:
        """Return the record time of the oldest unfinished record, in seconds since the epoch."""
        return next(iter(self._unfinished.values()), None)

    @property
    def unclaimed(self) -> int:
        """How many records were read, and are neither finished nor claimed for delivery."""
        return len(self._unfinished) - len(self._claimed)

    @property
    def unfinished(self) -> int:
        """How many records were read and are not finished."""
        return len(self._unfinished)

    # --- metadata: "relay2:<offset>:<length>:<gap>,<gap>..." in base 10 ---------------------
    # offset: the committed one. Tools that copy a group to another cluster translate the offset but
    # not the metadata; a different offset here shows that the metadata is not valid there.
    # length: how many offsets from there on the metadata describes.
    # gaps: the distance of each unfinished record in that range from the one before; that of the
    # first one is from the offset.

    def _metadata(self, position: int, max_length: int) -> str:
        below = max(self._finished_below, self._restored_below)
        unread = sorted(one for one in self._restored_unfinished if one >= (self.position or 0))
        parts: list[str] = []
        length = 0
        last = position
        for offset in takewhile(below.__gt__, chain(self._unfinished, unread)):
            part = str(offset - last)
            length += len(part) + 1
            if length > max_length - 60:
                below = offset  # the rest does not fit: later finished records are delivered again
                break
            parts.append(part)
            last = offset
        if below <= position + (position in self._unfinished):
            return ""  # no finished record beyond the position
        return f"relay2:{position}:{below - position}:{','.join(parts)}"

    def _restore(self, committed: Commit) -> None:
        match = _METADATA.fullmatch(committed.metadata)
        if match is None or int(match["offset"]) != committed.offset:
            return  # from another tool or cluster: records are delivered again
        below = committed.offset + int(match["length"])
        unfinished = set()
        last = committed.offset
        for gap in filter(None, match["gaps"].split(",")):
            last += int(gap)
            unfinished.add(last)
        self._restored_below = below
        self._restored_unfinished = unfinished
