"""Which letters of a partition were redriven, as a commit of the redriving group remembers it.

Kafka cannot delete single records. The group's committed offset tells that all letters before it
were redriven; those beyond it are told by the commit's metadata: a bitmap, compressed, since far
fewer characters than letters fit there.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

# The broker's default for offset.metadata.max.bytes is 4,096. A batch is redriven only if it can
# be remembered; the rest is room for one of which Kafka refuses a part.
MAX_PLANNED_LENGTH = 3800
# With the offset: tools that copy a group to another cluster translate that, and nothing else.
_METADATA = re.compile(r"redriven2:(?P<offset>\d{1,19}):(?P<bits>[\x21-\x7e]+)", re.ASCII)
_MAX_BITMAP_BYTES = 16 * 1024 * 1024


class RedriveCommit(NamedTuple):
    """What the group commits for a partition.

    Attributes:
        offset: Every letter before it was redriven.
        metadata: Which ones beyond it were; "" if none.
    """

    offset: int
    metadata: str


class Redriven:
    """The letters of one partition that were redriven."""

    def __init__(self, commit: RedriveCommit | None = None, *, end: int | None = None) -> None:
        """Read a commit.

        Args:
            commit: The group's last; ``None`` if there is none.
            end: The partition's end. A commit beyond it is of an earlier topic of this name.
        """
        if commit is None or commit.offset < 0 or (end is not None and commit.offset > end):
            commit = RedriveCommit(0, "")
        self.below = commit.offset
        self._bits = _decoded(commit)

    def __contains__(self, offset: int) -> bool:
        if offset < self.below:
            return True
        byte, bit = divmod(offset - _base(self.below), 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def offsets_beyond(self) -> Iterable[int]:
        """Return the offsets that were redriven, beyond the first one that was not."""
        base = _base(self.below)
        for number, byte in enumerate(self._bits):
            for bit in range(8):
                if byte >> bit & 1 and base + 8 * number + bit >= self.below:
                    yield base + 8 * number + bit


class RedriveProgress:
    """How far the letters of one partition are redriven, while that goes on."""

    def __init__(self, redriven: Redriven, letters: Collection[int], end: int) -> None:
        """Begin with what was redriven.

        Args:
            redriven: What is known to have been.
            letters: The offsets of all letters from ``redriven.below`` to ``end``, ascending.
            end: Nothing is known of letters from here on.
        """
        self._open = [offset for offset in letters if offset not in redriven]
        self._next_open = 0
        self._end = max(end, redriven.below)
        self._base = _base(redriven.below)
        # Of later letters somebody else may have redriven some: that is not to be forgotten.
        beyond = list(redriven.offsets_beyond())
        size = max(self._end, beyond[-1] + 1 if beyond else 0) - self._base
        self._bits = bytearray(size // 8 + 1)
        self._redriven_below = 0
        for offset in beyond:
            self.finish(offset)

    def __contains__(self, offset: int) -> bool:
        byte, bit = divmod(offset - self._base, 8)
        return bool(self._bits[byte] >> bit & 1)

    def finish(self, offset: int) -> None:
        """Note that a letter was redriven. Twice does no harm."""
        byte, bit = divmod(offset - self._base, 8)
        self._bits[byte] |= 1 << bit
        self._redriven_below = max(self._redriven_below, offset + 1)

    def can_remember(self, offsets: Collection[int]) -> bool:
        """Return whether a commit has room for these letters too."""
        before = self._redriven_below
        new = [offset for offset in offsets if offset not in self]
        for offset in new:
            self.finish(offset)
        room = len(self._commit_from(self._first_open(self._next_open)).metadata)
        for offset in new:
            byte, bit = divmod(offset - self._base, 8)
            self._bits[byte] &= ~(1 << bit)
        self._redriven_below = before
        return room <= MAX_PLANNED_LENGTH

    def commit(self) -> RedriveCommit:
        """Return what may be committed now."""
        self._next_open = self._first_open(self._next_open)
        return self._commit_from(self._next_open)

    def _first_open(self, number: int) -> int:
        while number < len(self._open) and self._open[number] in self:
            number += 1
        return number

    def _commit_from(self, number: int) -> RedriveCommit:
        position = self._open[number] if number < len(self._open) else self._end
        if self._redriven_below <= position:
            return RedriveCommit(position, "")
        first = (_base(position) - self._base) // 8
        last = (self._redriven_below - 1 - self._base) // 8
        packed = zlib.compress(bytes(self._bits[first : last + 1]), 9)
        return RedriveCommit(position, f"redriven2:{position}:{base64.b85encode(packed).decode()}")


def _base(offset: int) -> int:
    return offset - offset % 8


def _decoded(commit: RedriveCommit) -> bytes:
    match = _METADATA.fullmatch(commit.metadata)
    if match is None or int(match["offset"]) != commit.offset:
        return b""  # written by another tool, or on another cluster
    try:
        return zlib.decompressobj().decompress(base64.b85decode(match["bits"]), _MAX_BITMAP_BYTES)
    except (ValueError, zlib.error, binascii.Error):
        return b""
