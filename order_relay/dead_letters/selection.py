"""The letters to redrive, found by reading the topic once; only their offsets are kept."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Protocol

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter, LetterPosition
from order_relay.dead_letters.redrive import LetterResult, RedriveResult
from order_relay.dead_letters.redriven import Redriven
from order_relay.dead_letters.topic_reader import Extent

REDRIVEN_ALREADY = "it was redriven already"
NO_SUCH_LETTER = "there is no such letter"
# How many of the selected letters are kept whole, to show them.
SHOWN = 20


class ReadTopic(Protocol):
    """The part of ``OpenTopic`` that a selection reads."""

    @property
    def extents(self) -> Mapping[int, Extent]:
        """What each partition holds."""

    @property
    def redriven(self) -> Mapping[int, Redriven]:
        """What was redriven of each partition."""

    def letters(self, *, from_start: bool) -> AsyncIterator[tuple[Letter, bool]]:
        """Read the letters, each with whether it was redriven."""


class Selection:
    """The letters to redrive.

    Attributes:
        count: Their number.
        first: The first few, to show.
        chosen: Their offsets, by partition.
        skipped: Letters that match and are not redriven, with the reason.
        letters: The offsets of all letters from the first open one on, by partition.
    """

    def __init__(
        self,
        positions: Collection[LetterPosition],
        wanted: LetterFilter,
        *,
        limit: int | None = None,
        max_redrives: int = 3,
    ) -> None:
        """Select the letters at ``positions``; if there are none, those that match ``wanted``."""
        self.count = 0
        self.first: list[Letter] = []
        self.chosen: dict[int, array[int]] = {}
        self.skipped: list[LetterResult] = []
        self.letters: dict[int, array[int]] = {}
        self._positions = frozenset(positions)
        self._wanted = wanted
        self._limit = limit
        self._max_redrives = max_redrives

    async def read(self, topic: ReadTopic) -> None:
        """Read the topic, and select."""
        for partition in topic.extents:
            self.letters[partition] = array("q")
            self.chosen[partition] = array("q")
        missing = set(self._positions)
        async for letter, redriven in topic.letters(from_start=False):
            self.letters[letter.partition].append(letter.offset)
            if not redriven:
                missing.discard(letter.position)
                if self._matches(letter):
                    self._choose(letter)
        for position in sorted(missing):
            extent = topic.extents.get(position.partition)
            exists = extent is not None and extent.low <= position.offset < extent.end
            redriven = exists and position.offset in topic.redriven[position.partition]
            self._skip(position, REDRIVEN_ALREADY if redriven else NO_SUCH_LETTER)

    def positions(self) -> Iterator[LetterPosition]:
        """Return the positions of the letters."""
        for partition, offsets in self.chosen.items():
            for offset in offsets:
                yield LetterPosition(partition, offset)

    def drop_redriven(self, redriven: Mapping[int, Redriven]) -> list[LetterResult]:
        """Take out letters that were redriven meanwhile; returns a result for each."""
        before = len(self.skipped)
        for partition, offsets in self.chosen.items():
            self.chosen[partition] = array("q")
            for offset in offsets:
                if offset in redriven[partition]:
                    self._skip(LetterPosition(partition, offset), REDRIVEN_ALREADY)
                else:
                    self.chosen[partition].append(offset)
        return self.skipped[before:]

    def _matches(self, letter: Letter) -> bool:
        if self._positions:
            return letter.position in self._positions
        return self._wanted.finds(letter)

    def _choose(self, letter: Letter) -> None:
        if reason := self._objection(letter):
            self._skip(letter.position, reason)
            return
        if self._limit is not None and self.count >= self._limit:
            return
        self.count += 1
        self.chosen[letter.partition].append(letter.offset)
        if self.count <= SHOWN:
            self.first.append(letter)

    def _skip(self, position: LetterPosition, reason: str) -> None:
        self.skipped.append(LetterResult(*position, RedriveResult.SKIPPED, reason))

    def _objection(self, letter: Letter) -> str:
        if letter.headers_unreadable:
            return (
                "its headers cannot be read because a name is not UTF-8: it would lose its event-id"
            )
        if letter.redrives >= self._max_redrives:
            times = "once" if letter.redrives == 1 else f"{letter.redrives} times"
            return f"it was redriven {times} before: --max-redrives is {self._max_redrives}"
        return ""
