"""The letters to redrive, found by reading the topic once; only their offsets are kept."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence

from order_relay.cli.dlq.filters import LetterPosition
from order_relay.cli.dlq.open_topic import OpenTopic
from order_relay.cli.output import SHOWN
from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redrive import LetterResult, RedriveResult
from order_relay.dead_letters.redriven import Redriven

REDRIVEN_ALREADY = "it was redriven already"


class Selection:
    """The letters to redrive.

    Attributes:
        count: Their number.
        first: The first few, to show.
        skipped: Letters that match and are not redriven, with the reason.
        letters: The offsets of all letters from the first open one on, by partition.
    """

    def __init__(
        self,
        positions: Collection[LetterPosition],
        wanted: LetterFilter,
        limit: int | None,
        max_redrives: int,
    ) -> None:
        """Select the letters at ``positions``; if there are none, those that match ``wanted``."""
        self.count = 0
        self.first: list[Letter] = []
        self.skipped: list[LetterResult] = []
        self.letters: dict[int, array[int]] = {}
        self._chosen: dict[int, array[int]] = {}
        self._positions = frozenset(positions)
        self._wanted = wanted
        self._limit = limit
        self._max_redrives = max_redrives

    async def read(self, topic: OpenTopic) -> None:
        """Read the topic, and select."""
        for partition in topic.extents:
            self.letters[partition] = array("q")
            self._chosen[partition] = array("q")
        async for letter, redriven in topic.letters(from_start=False):
            self.letters[letter.partition].append(letter.offset)
            if not redriven and self._matches(letter):
                self._choose(letter)
        for partition, offset in sorted(self._positions):
            extent = topic.extents.get(partition)
            if extent is not None and offset in topic.redriven[partition]:
                exists = extent.low <= offset < extent.end
                reason = REDRIVEN_ALREADY if exists else "there is no such letter"
            elif offset in self.letters.get(partition, ()):
                continue
            else:
                reason = "there is no such letter"
            self.skipped.append(LetterResult(partition, offset, RedriveResult.SKIPPED, reason))

    def positions(self) -> Iterator[LetterPosition]:
        """Return the positions of the letters."""
        for partition, offsets in self._chosen.items():
            for offset in offsets:
                yield LetterPosition(partition, offset)

    def still_open(
        self, redriven: Mapping[int, Redriven]
    ) -> tuple[dict[int, Sequence[int]], list[LetterResult]]:
        """Return what is still to be redriven, and results for what was redriven meanwhile."""
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

    def _matches(self, letter: Letter) -> bool:
        if self._positions:
            return LetterPosition(letter.partition, letter.offset) in self._positions
        return self._wanted.finds(letter)

    def _choose(self, letter: Letter) -> None:
        if reason := self._objection(letter):
            self.skipped.append(
                LetterResult(letter.partition, letter.offset, RedriveResult.SKIPPED, reason)
            )
            return
        if self._limit is not None and self.count >= self._limit:
            return
        self.count += 1
        self._chosen[letter.partition].append(letter.offset)
        if self.count <= SHOWN:
            self.first.append(letter)

    def _objection(self, letter: Letter) -> str:
        if letter.headers_unreadable:
            return (
                "its headers cannot be read because a name is not UTF-8: it would lose its event-id"
            )
        if letter.redrives >= self._max_redrives:
            times = "once" if letter.redrives == 1 else f"{letter.redrives} times"
            return f"it was redriven {times} before: --max-redrives is {self._max_redrives}"
        return ""
