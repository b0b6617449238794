"""The open dead letters of a consumer: those that were neither redriven nor discarded.

They wait for a person, so they stay visible until a person has dealt with them, over restarts.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from order_relay.dead_letters.index import LetterIndex
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redriven import Redriven
from order_relay.delivery.progress import Commit
from order_relay.errors import RelayError, TopicUnusable
from order_relay.kafka.topic_reader import Extent
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 15.0
BATCH = 500
# A long topic is read in a quarter of the time, so that deliveries do not wait for it.
PAUSE_FOR_EACH_SECOND = 3.0
DELETED = "Open dead letters were deleted from their topic"
MISSING = "UNKNOWN_TOPIC_OR_PART"

T = TypeVar("T")


class LetterLog(Protocol):
    """The part of ``TopicLog`` that is needed; calls raise ``RelayError``."""

    async def extents(self) -> dict[int, Extent]:
        """Return the offsets that each partition holds now."""

    def letters(self, partition: int, start: int, end: int) -> AsyncIterator[Letter]:
        """Read the letters of a partition from offset ``start`` to before ``end``."""


@dataclass(frozen=True, slots=True)
class OpenFigures:
    """Counts of open letters.

    Attributes:
        by_reason: Their number by the code of ``dlq-reason``.
        oldest: When the oldest was given up, seconds since the epoch; None: there is none.
    """

    by_reason: Mapping[str, int]
    oldest: float | None

    @property
    def total(self) -> int:
        """The number of open letters."""
        return sum(self.by_reason.values())


@dataclass(eq=False)
class OpenLetters:
    """Keeps an index of the open letters up to date.

    Every worker reads the whole topic, from the first open letter on, so that each knows all of
    them. It asks every 15 s what is new, and commits nothing.

    Attributes:
        commits: Returns by partition what was redriven or discarded, as committed.
        on_figures: Called with the figures when they are known anew.
        on_deleted: Called with the number of open letters that Kafka has deleted, or with 1 if it
            is not known.
        figures: The counts; None: not known yet, or Kafka does not answer.
    """

    open_log: Callable[[], AbstractAsyncContextManager[LetterLog]]
    commits: Callable[[Collection[int]], Awaitable[Mapping[int, Commit]]]
    on_figures: Callable[[OpenFigures | None], None] = lambda _: None
    on_deleted: Callable[[int], None] = lambda _: None
    _: KW_ONLY
    topic: str
    interval_seconds: float = INTERVAL_SECONDS
    figures: OpenFigures | None = None
    _index: LetterIndex = field(default_factory=LetterIndex)
    # SQLite blocks: one thread makes all calls, one after another.
    _thread: ThreadPoolExecutor = field(
        default_factory=partial(ThreadPoolExecutor, 1, "open-letters")
    )
    _extents: dict[int, Extent] = field(default_factory=dict)
    _known_commits: dict[int, Commit] = field(default_factory=dict)
    _first_look: bool = True
    _was_missing: bool = False
    _look_now: asyncio.Event = field(default_factory=asyncio.Event)

    def refresh_soon(self) -> None:
        """Look at once; to be called after a change."""
        self._look_now.set()

    async def ask(self, question: Callable[[LetterIndex], T]) -> T:
        """Return what ``question`` reads from the index."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, question, self._index)

    async def run(self) -> None:
        """Look regularly, until cancelled. Never raises."""
        logged = ""
        while True:
            try:
                async with self.open_log() as log:
                    while True:
                        await self.refresh(log)
                        logged = ""
                        await self._wait()
            except RelayError as error:
                self._set_figures(None)
                problem = str(error)
                if problem != logged:  # an outage is said once, and a topic may not exist yet
                    logger.info(LogLine("Open dead letters are not known now", error=problem))
                logged = problem
            except Exception:
                self._set_figures(None)
                logger.exception("Counting open dead letters failed with an unexpected error")
            await self._wait()

    def close(self) -> None:
        """Close the index; call it after ``run`` has ended, and ``ask`` nothing after it."""
        self._thread.submit(self._index.close)
        self._thread.shutdown(wait=False)

    async def refresh(self, log: LetterLog) -> None:
        """Read what is new, and count.

        Raises:
            RelayError: Kafka does not answer, or refuses.
        """
        before = self._extents
        extents = await self._existing(log)
        if extents != before or (self.figures is not None and self.figures.total):
            commits = await self.commits(list(extents))
            # Read after the commits: a commit beyond the end is then of an earlier topic.
            extents = await log.extents()
            if self._first_look:
                self._first_look = False
                self._tell_made_anew(extents, commits)
            for partition, extent in extents.items():
                await self._read(log, partition, extent, commits.get(partition))
        found = await self.ask(LetterIndex.by_reason)
        times = [oldest for _, _, oldest in found if oldest is not None]
        self._set_figures(
            OpenFigures(
                {reason: number for reason, number, _ in found}, min(times) if times else None
            )
        )

    async def _existing(self, log: LetterLog) -> dict[int, Extent]:
        """Return the offsets of each partition; a topic that is missing twice was deleted."""
        try:
            extents = await log.extents()
        except TopicUnusable as error:
            missing = error.code == MISSING
            # At the second look: a broker that has just started may not know the topic yet.
            if missing and self._was_missing:
                for partition in list(self._extents):
                    await self._forget(partition)
            self._was_missing = missing
            raise
        self._was_missing = False
        return extents

    async def _read(
        self, log: LetterLog, partition: int, extent: Extent, commit: Commit | None
    ) -> None:
        before = self._extents.get(partition)
        if before is not None and (extent.low < before.low or extent.end < before.end):
            await self._forget(partition)  # the topic was made anew
            before = None
        redriven = Redriven(commit, end=extent.end)
        if commit is not None and commit != self._known_commits.get(partition):
            await self.ask(lambda index: index.close_redriven(partition, redriven))
            self._known_commits[partition] = commit
        if before is not None and extent.low > before.low:
            deleted = await self.ask(lambda index: index.remove_below(partition, extent.low))
            # Also those that came and went between two looks.
            unread = max(extent.low - max(before.end, redriven.below), 0)
            self._tell_deleted(partition, deleted + unread)
        start = max(extent.low, redriven.below, before.end if before is not None else 0)
        batch: list[Letter] = []
        began = time.monotonic()
        async for letter in log.letters(partition, start, extent.end):
            if letter.offset not in redriven:
                batch.append(letter)
            if len(batch) == BATCH:
                await self._add(batch)
                batch = []
                await asyncio.sleep(PAUSE_FOR_EACH_SECOND * (time.monotonic() - began))
                began = time.monotonic()
        await self._add(batch)
        self._extents[partition] = extent

    async def _forget(self, partition: int) -> None:
        """Remove the letters of a topic that was deleted: they are gone with it."""
        deleted = await self.ask(lambda index: index.remove_below(partition, math.inf))
        self._tell_deleted(partition, deleted)
        self._known_commits.pop(partition, None)
        del self._extents[partition]

    def _tell_made_anew(self, extents: Mapping[int, Extent], commits: Mapping[int, Commit]) -> None:
        """Tell of a topic that was deleted before this worker's start and made anew.

        Kafka usually deletes the commits with their topic. Then nothing shows it.
        """
        for partition, commit in commits.items():
            if commit.offset > extents[partition].end:
                detail = (
                    f"the topic was made anew: it ends at {extents[partition].end}, and "
                    f"redriving had come to {commit.offset}"
                )
                self.on_deleted(1)
                logger.error(
                    LogLine(
                        DELETED,
                        topic=self.topic,
                        partition=partition,
                        letters="unknown",
                        detail=detail,
                    )
                )

    def _tell_deleted(self, partition: int, letters: int) -> None:
        if letters:
            self.on_deleted(letters)
            logger.error(LogLine(DELETED, topic=self.topic, partition=partition, letters=letters))

    async def _add(self, letters: list[Letter]) -> None:
        if letters:
            await self.ask(lambda index: index.add(letters))

    def _set_figures(self, figures: OpenFigures | None) -> None:
        self.figures = figures
        self.on_figures(figures)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self.interval_seconds):
                await self._look_now.wait()
        except TimeoutError:
            pass
        self._look_now.clear()
