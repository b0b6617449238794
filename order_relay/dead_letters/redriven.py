"""Which letters of a partition were redriven, kept in a commit of the redriving group.

Kafka cannot delete single records. All letters before the group's committed offset were redriven.
The commit's metadata has a compressed bitmap of those redriven beyond the offset: uncompressed, it
would have room for too few.
"""

from __future__ import annotations

import base64
import binascii
import copy
import re
import zlib
from collections.abc import Collection, Iterable

from order_relay.delivery.progress import Commit

# The broker's default for offset.metadata.max.bytes is 4,096. A batch is redriven only if its
# commit fits into this; the rest is reserve for a batch of which Kafka refuses some letters.
MAX_PLANNED_LENGTH = 3800
# The metadata repeats the offset: tools that copy a group to another cluster translate only the
# commit's own offset, and the bitmap is wrong there.
_METADATA = re.compile(r"redriven2:(?P<offset>\d{1,19}):(?P<bits>[\x21-\x7e]+)", re.ASCII)
_MAX_BITMAP_BYTES = 16 * 1024 * 1024


class Redriven:
    """The letters of one partition that were redriven."""

    def __init__(self, commit: Commit | None = None, *, end: int | None = None) -> None:
        """Read a commit.

        Args:
            commit: The group's last commit; ``None`` if there is none.
            end: The partition's end. A commit beyond it is ignored: it belongs to an earlier topic
                of this name.
        """
        if commit is None or commit.offset < 0 or (end is not None and commit.offset > end):
            commit = Commit(0, "")
        self.below = commit.offset
        self._bits = _decoded(commit)

    def __contains__(self, offset: int) -> bool:
        if offset < self.below:
            return True
        byte, bit = divmod(offset - _base(self.below), 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def offsets_beyond(self) -> Iterable[int]:
        """Return the redriven offsets from ``below`` on."""
        base = _base(self.below)
        for number, byte in enumerate(self._bits):
            for bit in range(8):
                if byte >> bit & 1 and base + 8 * number + bit >= self.below:
                    yield base + 8 * number + bit


class RedriveProgress(Redriven):
    """The progress of a redrive in one partition."""

    def __init__(self, redriven: Redriven, letters: Collection[int], end: int) -> None:
        """Begin with what has been redriven.

        Args:
            redriven: The letters redriven so far.
            letters: The offsets of all letters from ``redriven.below`` to ``end``, ascending.
            end: The partition's end when it was read.
        """
        self.below = redriven.below
        self._bits = redriven._bits.copy()
        self._open = [offset for offset in letters if offset not in redriven]
        self._next_open = 0
        self._end = max(end, redriven.below)
        # Another run may have redriven letters beyond ``end``: the next commit must keep them.
        self._redriven_below = max(redriven.offsets_beyond(), default=-1) + 1

    def finish(self, offset: int) -> None:
        """Note that a letter was redriven; may be called twice."""
        byte, bit = divmod(offset - _base(self.below), 8)
        self._bits.extend(bytes(max(byte + 1 - len(self._bits), 0)))
        self._bits[byte] |= 1 << bit
        self._redriven_below = max(self._redriven_below, offset + 1)

    def can_remember(self, offsets: Collection[int]) -> bool:
        """Return whether the commit still fits once these letters are redriven, too."""
        then = copy.copy(self)
        then._bits = self._bits.copy()
        for offset in offsets:
            then.finish(offset)
        return len(then.commit().metadata) <= MAX_PLANNED_LENGTH

    def commit(self) -> Commit:
        """Return what may be committed now."""
        while self._next_open < len(self._open) and self._open[self._next_open] in self:
            self._next_open += 1
        position = self._open[self._next_open] if self._next_open < len(self._open) else self._end
        if self._redriven_below <= position:
            return Commit(position, "")
        first = (_base(position) - _base(self.below)) // 8
        last = (self._redriven_below - 1 - _base(self.below)) // 8
        packed = zlib.compress(bytes(self._bits[first : last + 1]), 9)
        return Commit(position, f"redriven2:{position}:{base64.b85encode(packed).decode()}")


def _base(offset: int) -> int:
    return offset - offset % 8


def _decoded(commit: Commit) -> bytearray:
    match = _METADATA.fullmatch(commit.metadata)
    if match is None or int(match["offset"]) != commit.offset:
        return bytearray()  # another tool wrote it, or it was copied from another cluster
    try:
        packed = base64.b85decode(match["bits"])
        return bytearray(zlib.decompressobj().decompress(packed, _MAX_BITMAP_BYTES))
    except (ValueError, zlib.error, binascii.Error):
        return bytearray()
