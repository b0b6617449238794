"""Redriving: selecting dead letters, publishing them again, and committing which."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter, LetterPosition
from order_relay.dead_letters.redriven import Redriven, RedriveProgress
from order_relay.errors import PublishRefused, RecordTooLarge, RelayError, TopicUnusable
from order_relay.kafka.producer import Acknowledged, KafkaProducer
from order_relay.model.headers import Headers

if TYPE_CHECKING:
    from order_relay.dead_letters.open_topic import OpenTopic
    from order_relay.dead_letters.redrive_group import Membership
    from order_relay.tracing.spans import Tracing

BATCH = 200
REDRIVEN_ALREADY = "it was redriven or discarded already"
NO_SUCH_LETTER = "there is no such letter"
# How many of the selected letters are kept whole, to show them.
SHOWN = 20
NO_ROOM = (
    "the commit has no room for more redriven letters behind so many open ones; "
    "redrive or purge earlier ones first"
)


class AnotherRedrive(TopicUnusable):
    """Another ``dlq redrive`` runs now."""

    def __init__(self, topic: str, group_id: str, session_ms: int) -> None:
        super().__init__(
            topic,
            f"another dlq redrive works on it (a member of the group {group_id}); one that was "
            f"killed blocks others for {session_ms / 1000:g} s",
        )


class RedriveResult(enum.StrEnum):
    """The result for a letter."""

    REDRIVEN = "redriven"
    DISCARDED = "discarded"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LetterResult:
    """The result for one letter.

    Attributes:
        partition: The letter's partition in the dead-letter topic.
        offset: Its offset there.
        result: Whether it was redriven.
        reason: Why it was skipped or failed; empty if it was redriven.
        position: Where the redriven record is in the source topic.
        event_id: The event's id.
    """

    partition: int
    offset: int
    result: RedriveResult
    reason: str = ""
    position: Acknowledged | None = None
    event_id: bytes = b""


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
        max_redrives: int | None,
    ) -> None:
        """Select the letters at ``positions``; if there are none, those that match ``wanted``.

        Args:
            positions: Letters by their position.
            wanted: The conditions.
            limit: Only the first so many.
            max_redrives: Letters that were redriven so often are skipped; None: they are to be
                discarded, for which nothing is skipped.
        """
        self.count = 0
        self.first: list[Letter] = []
        self.chosen: dict[int, array[int]] = {}
        self.skipped: list[LetterResult] = []
        self.letters: dict[int, array[int]] = {}
        self._positions = frozenset(positions)
        self._wanted = wanted
        self._limit = limit
        self._max_redrives = max_redrives

    async def read(self, topic: OpenTopic) -> None:
        """Read the topic, and select."""
        for partition in topic.extents:
            self.letters[partition] = array("q")
            self.chosen[partition] = array("q")
        missing = set(self._positions)
        async for letter, redriven in topic.letters(from_start=False):
            self.letters[letter.partition].append(letter.offset)
            if not redriven:
                missing.discard(letter.position)
                named = letter.position in self._positions
                if named or (not self._positions and self._wanted.finds(letter)):
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
        if self._max_redrives is None:
            return ""
        if letter.headers_unreadable:
            return (
                "its headers cannot be read because a name is not UTF-8: it would lose its event-id"
            )
        if letter.redrives >= self._max_redrives:
            times = "once" if letter.redrives == 1 else f"{letter.redrives} times"
            return f"it was redriven {times} before: --max-redrives is {self._max_redrives}"
        return ""


@dataclass(eq=False)
class Redrive:
    """Publishes the letters of one selection to ``topic``, for one consumer: others skip them.

    A batch is published with acks=all, in the order of offsets, and then committed. After a crash
    between the two the next run publishes the batch once more, with the same event ids.

    Attributes:
        rate: Letters a second at most; None: no limit.
        done: The result of a letter that needs nothing more. DISCARDED: nothing is published, the
            letters are only no longer open.
        remark: Why the redrive ended early; empty if it did not.
    """

    producer: KafkaProducer
    _: KW_ONLY
    topic: str
    consumer: str
    rate: float | None = None
    done: RedriveResult = RedriveResult.REDRIVEN
    tracing: Tracing | None = None
    remark: str = ""
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _next_at: float = field(default_factory=time.monotonic)

    def stop(self, remark: str) -> None:
        """End after the batch in flight; the first ``remark`` is kept."""
        self.remark = self.remark or remark
        self._stopped.set()

    async def run(
        self,
        letters: Callable[[int, int, int], AsyncIterator[Letter]],
        membership: Membership,
        partitions: int,
        chosen: Mapping[int, Sequence[int]],
        progress: Mapping[int, RedriveProgress],
    ) -> AsyncIterator[LetterResult]:
        """Redrive letters.

        Args:
            letters: Reads a partition of the dead-letter topic, see ``TopicLog.letters``.
            membership: Commits what was redriven.
            partitions: How many partitions the source topic has.
            chosen: The letters' offsets by partition, ascending.
            progress: What has been redriven of each partition; updated.

        Yields:
            The result for each letter, until ``stop`` or until something fails.
        """
        for partition, offsets in chosen.items():
            if not offsets:
                continue
            missing = set(offsets)
            found = letters(partition, offsets[0], offsets[-1] + 1)
            async for batch in self._batches(found, frozenset(offsets)):
                missing.difference_update(letter.offset for letter in batch)
                for result in await self._redrive(
                    batch, membership, partitions, progress[partition]
                ):
                    yield result
                if self._stopped.is_set():
                    return
            for offset in sorted(missing):
                yield LetterResult(
                    partition, offset, RedriveResult.FAILED, "it is no longer in the topic"
                )

    async def _batches(
        self, letters: AsyncIterator[Letter], wanted: Collection[int]
    ) -> AsyncIterator[list[Letter]]:
        size = BATCH if self.rate is None else max(1, min(BATCH, math.floor(self.rate / 4)))
        batch: list[Letter] = []
        async for letter in letters:
            if letter.offset in wanted:
                batch.append(letter)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _redrive(
        self,
        batch: Sequence[Letter],
        membership: Membership,
        partitions: int,
        progress: RedriveProgress,
    ) -> list[LetterResult]:
        """Publish and commit one batch of one partition."""
        await self._wait_for_turn(len(batch))
        if self._stopped.is_set():
            return []
        if not progress.can_remember([letter.offset for letter in batch]):
            return [_result(letter, RedriveResult.FAILED, NO_ROOM) for letter in batch]
        async with membership.busy:
            if membership.lost:
                self.stop("stopped: another dlq redrive joined, or Kafka was away; run it again")
                return []
            results = await asyncio.gather(*(self._publish(letter, partitions) for letter in batch))
            for result in results:
                if result.result is self.done:
                    progress.finish(result.offset)
            try:
                await membership.commit(batch[0].partition, progress.commit())
            except RelayError as error:
                self.stop(
                    f"stopped: {error}; the last {len(batch)} letters may be redriven once more "
                    "by the next run, with the same event-ids"
                )
        return list(results)

    async def _publish(self, letter: Letter, partitions: int) -> LetterResult:
        if self.done is RedriveResult.DISCARDED:
            return _result(letter, self.done)
        headers = letter.redriven_headers(self.consumer)
        if self.tracing is None:
            return await self._send(letter, headers, partitions)
        with self.tracing.sending("redrive", self.topic, headers) as span:
            result = await self._send(letter, span.headers, partitions)
            if result.position is not None:
                span.acknowledged(result.position)
            else:
                span.failed("refused")
            return result

    async def _send(self, letter: Letter, headers: Headers, partitions: int) -> LetterResult:
        number = letter.home_partition
        try:
            # Nothing is awaited before the client has the record, so letters keep their order.
            position = await self.producer.send(
                self.topic,
                key=letter.key,
                value=letter.value,
                headers=headers,
                partition=number if number < partitions else None,
            )
        except RecordTooLarge as error:
            return _result(letter, RedriveResult.FAILED, str(error))
        except PublishRefused as error:
            self.stop(f"stopped: {error}")  # the next ones would be refused, too
            return _result(letter, RedriveResult.FAILED, str(error))
        return _result(letter, RedriveResult.REDRIVEN, position=position)

    async def _wait_for_turn(self, letters: int) -> None:
        if self.rate is None:
            return
        wait = self._next_at - time.monotonic()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)
        self._next_at = max(self._next_at, time.monotonic()) + letters / self.rate


def _result(
    letter: Letter, result: RedriveResult, reason: str = "", position: Acknowledged | None = None
) -> LetterResult:
    return LetterResult(
        letter.partition, letter.offset, result, reason, position, event_id=letter.event_id
    )
