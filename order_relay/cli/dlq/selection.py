"""The letters that a redrive means, found by one pass over the topic: places only, no values."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence

from order_relay.cli.dlq.filters import LetterPosition
from order_relay.cli.dlq.open_topic import LetterAccess
from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redrive import LetterResult, RedriveResult
from order_relay.dead_letters.redriven import Redriven

SHOWN = 20
REDRIVEN_ALREADY = "it was redriven already"


class Selection:
    """Which letters are to be redriven.

    Attributes:
        count: How many.
        first: The first few, for a person to look at.
        left: Those that were meant and are left alone, with the reason.
        letters: The offsets of all letters from the first open one on, by partition.
    """

    def __init__(
        self,
        positions: Collection[LetterPosition],
        wanted: LetterFilter,
        limit: int | None,
        max_redrives: int,
    ) -> None:
        """Mean the letters of these places; without any those that ``wanted`` finds."""
        self.count = 0
        self.first: list[Letter] = []
        self.left: list[LetterResult] = []
        self.letters: dict[int, array[int]] = {}
        self._chosen: dict[int, array[int]] = {}
        self._places = frozenset(positions)
        self._wanted = wanted
        self._limit = limit
        self._max_redrives = max_redrives

    async def read(self, access: LetterAccess) -> None:
        """Read the topic."""
        for partition in access.extents:
            self.letters[partition] = array("q")
            self._chosen[partition] = array("q")
        async for letter, redriven in access.letters(all_of_them=False):
            self.letters[letter.partition].append(letter.offset)
            if not redriven and self._means(letter):
                self._choose(letter)
        for position in sorted(self._places):
            partition, offset = position
            if offset in self.letters.get(partition, ()) and (
                offset not in access.redriven[partition]
            ):
                continue
            extent = access.extents.get(partition)
            was_redriven = (
                extent is not None
                and extent.low <= offset < extent.end
                and offset in access.redriven[partition]
            )
            reason = REDRIVEN_ALREADY if was_redriven else "there is no such letter"
            self.left.append(LetterResult(partition, offset, RedriveResult.SKIPPED, reason))

    def positions(self) -> Iterator[LetterPosition]:
        """Return where the letters stand."""
        for partition, offsets in self._chosen.items():
            for offset in offsets:
                yield LetterPosition(partition, offset)

    def still_open(
        self, redriven: Mapping[int, Redriven]
    ) -> tuple[dict[int, Sequence[int]], list[LetterResult]]:
        """Return what is still to be redriven, and what somebody else has redriven meanwhile."""
        still: dict[int, Sequence[int]] = {}
        gone: list[LetterResult] = []
        for partition, offsets in self._chosen.items():
            known = redriven[partition]
            still[partition] = [offset for offset in offsets if offset not in known]
            gone += [
                LetterResult(partition, offset, RedriveResult.SKIPPED, REDRIVEN_ALREADY)
                for offset in offsets
                if offset in known
            ]
        return still, gone

    def _means(self, letter: Letter) -> bool:
        if self._places:
            return LetterPosition(letter.partition, letter.offset) in self._places
        return self._wanted.finds(letter)

    def _choose(self, letter: Letter) -> None:
        if reason := self._why_not(letter):
            self.left.append(
                LetterResult(letter.partition, letter.offset, RedriveResult.SKIPPED, reason)
            )
            return
        if self._limit is not None and self.count >= self._limit:
            return
        self.count += 1
        self._chosen[letter.partition].append(letter.offset)
        if self.count <= SHOWN:
            self.first.append(letter)

    def _why_not(self, letter: Letter) -> str:
        if letter.headers_unreadable:
            return "its headers cannot be read, a name is not UTF-8: it would lose its event-id"
        if letter.redrives >= self._max_redrives:
            times = "once" if letter.redrives == 1 else f"{letter.redrives} times"
            return f"it was redriven {times} before: --max-redrives is {self._max_redrives}"
        return ""
