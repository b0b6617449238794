"""Redriving: publishing dead letters to the source topic again, and committing which."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redriven import RedriveCommit, RedriveProgress
from order_relay.errors import PublishRefused, RecordTooLarge, RelayError
from order_relay.kafka.producer import Acknowledged, RecordProducer

BATCH = 200
NO_ROOM = (
    "the commit has no room for more redriven letters behind so many open ones; "
    "redrive or purge earlier ones first"
)


class RedriveResult(enum.StrEnum):
    """The result for a letter."""

    REDRIVEN = "redriven"
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


class LetterReader(Protocol):
    """The part of ``TopicLog`` that a redrive needs."""

    def letters(self, partition: int, start: int, end: int) -> AsyncIterator[Letter]:
        """Read the letters of a partition from offset ``start`` to before ``end``."""


class RedriveMembership(Protocol):
    """Membership in the group whose commits record what was redriven.

    Attributes:
        busy: The redrive holds it while it publishes and commits a batch.
        lost: The membership has ended: nothing more may be redriven.
    """

    busy: asyncio.Lock
    lost: bool

    async def commit(self, partition: int, commit: RedriveCommit) -> None:
        """Commit for a partition; raises ``RelayError`` if that fails."""


class Redrive:
    """Publishes the letters of one selection.

    A batch is published with acks=all, in the order of offsets, and then committed. After a crash
    between the two the next run publishes the batch once more, with the same event ids.

    Attributes:
        remark: Why the redrive ended early; empty if it did not.
    """

    def __init__(
        self,
        log: LetterReader,
        producer: RecordProducer,
        membership: RedriveMembership,
        *,
        topic: str,
        partitions: int,
        consumer: str,
        rate: float | None = None,
    ) -> None:
        """Prepare a redrive; nothing is published yet.

        Args:
            log: The dead-letter topic.
            producer: Publishes the letters.
            membership: Commits what was redriven.
            topic: The source topic.
            partitions: How many partitions the source topic has.
            consumer: The consumer that the redriven records are for; others skip them.
            rate: Letters a second at most; ``None``: no limit.
        """
        self.remark = ""
        self._log = log
        self._producer = producer
        self._membership = membership
        self._topic = topic
        self._partitions = partitions
        self._consumer = consumer
        self._rate = rate
        self._batch = BATCH if rate is None else max(1, min(BATCH, math.floor(rate / 4)))
        self._stopped = asyncio.Event()
        self._next_at = time.monotonic()

    def stop(self, remark: str) -> None:
        """End after the batch in flight; the first ``remark`` is kept."""
        self.remark = self.remark or remark
        self._stopped.set()

    async def run(
        self, chosen: Mapping[int, Sequence[int]], progress: Mapping[int, RedriveProgress]
    ) -> AsyncIterator[LetterResult]:
        """Redrive letters.

        Args:
            chosen: Their offsets by partition, ascending.
            progress: What has been redriven of each partition; updated.

        Yields:
            The result for each letter, until ``stop`` or until something fails.
        """
        for partition, offsets in chosen.items():
            missing = set(offsets)
            async for batch in self._batches(partition, offsets):
                missing.difference_update(letter.offset for letter in batch)
                for result in await self._redrive(batch, progress[partition]):
                    yield result
                if self._stopped.is_set():
                    return
            for offset in sorted(missing):
                yield LetterResult(
                    partition, offset, RedriveResult.FAILED, "it is no longer in the topic"
                )

    async def _batches(self, partition: int, offsets: Sequence[int]) -> AsyncIterator[list[Letter]]:
        if not offsets:
            return
        wanted = frozenset(offsets)
        batch: list[Letter] = []
        async for letter in self._log.letters(partition, offsets[0], offsets[-1] + 1):
            if letter.offset in wanted:
                batch.append(letter)
            if len(batch) == self._batch:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _redrive(
        self, batch: Sequence[Letter], progress: RedriveProgress
    ) -> list[LetterResult]:
        """Publish and commit one batch of one partition."""
        await self._wait_for_turn(len(batch))
        if self._stopped.is_set():
            return []
        if not progress.can_remember([letter.offset for letter in batch]):
            return [_result(letter, RedriveResult.FAILED, NO_ROOM) for letter in batch]
        async with self._membership.busy:
            if self._membership.lost:
                self.stop("stopped: another dlq redrive joined, or Kafka was away; run it again")
                return []
            results = await asyncio.gather(*(self._publish(letter) for letter in batch))
            for result in results:
                if result.result is RedriveResult.REDRIVEN:
                    progress.finish(result.offset)
            try:
                await self._membership.commit(batch[0].partition, progress.commit())
            except RelayError as error:
                self.stop(
                    f"stopped: {error}; the last {len(batch)} letters may be redriven once more "
                    "by the next run, with the same event-ids"
                )
        return list(results)

    async def _publish(self, letter: Letter) -> LetterResult:
        number = letter.home_partition
        try:
            # Nothing is awaited before the client has the record, so letters keep their order.
            position = await self._producer.send(
                self._topic,
                key=letter.key,
                value=letter.value,
                headers=letter.redriven_headers(self._consumer),
                partition=number if number < self._partitions else None,
            )
        except RecordTooLarge as error:
            return _result(letter, RedriveResult.FAILED, str(error))
        except PublishRefused as error:
            self.stop(f"stopped: {error}")  # the next ones would be refused, too
            return _result(letter, RedriveResult.FAILED, str(error))
        return _result(letter, RedriveResult.REDRIVEN, position=position)

    async def _wait_for_turn(self, letters: int) -> None:
        if self._rate is None:
            return
        wait = self._next_at - time.monotonic()
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)
        self._next_at = max(self._next_at, time.monotonic()) + letters / self._rate


def _result(
    letter: Letter, result: RedriveResult, reason: str = "", position: Acknowledged | None = None
) -> LetterResult:
    return LetterResult(
        letter.partition, letter.offset, result, reason, position, event_id=letter.event_id
    )
