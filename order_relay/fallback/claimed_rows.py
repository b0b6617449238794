"""Publishing the rows of one claim: side by side, but those of one key one after another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from order_relay.errors import DatabaseUnavailable, PublishRefused
from order_relay.fallback import log_messages
from order_relay.fallback.event_id import with_event_id
from order_relay.fallback.observer import PublishObserver
from order_relay.fallback.retry_schedule import RetrySchedule, is_local, is_unanswered
from order_relay.fallback.store import (
    Acked,
    Claim,
    FallbackRow,
    FallbackStore,
    GiveUp,
    Position,
    Release,
    Retry,
    RowOutcome,
)
from order_relay.kafka.producer import Acknowledged, RecordProducer
from order_relay.kafka.reachability import Reachability

logger = logging.getLogger(__name__)

# Often enough that a killed worker repeats little, seldom enough that a commit carries many rows.
SETTLE_INTERVAL_SECONDS = 0.1
DATABASE_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """What became of the rows of a sweep.

    Attributes:
        published: In Kafka.
        retried: Refused; they wait for another attempt.
        failed: Refused for good; they wait for a person.
        released: Claimed, but not tried, or tried in vain while no broker answered.
        skipped: Why the sweep did not happen, or ended early; empty where it did not.
    """

    published: int = 0
    retried: int = 0
    failed: int = 0
    released: int = 0
    skipped: str = ""

    def __add__(self, other: Sweep) -> Sweep:
        return Sweep(
            self.published + other.published,
            self.retried + other.retried,
            self.failed + other.failed,
            self.released + other.released,
            self.skipped or other.skipped,
        )

    @property
    def settled(self) -> int:
        """Rows that are further than before."""
        return self.published + self.retried + self.failed

    def cut_short(self, reason: str) -> Sweep:
        """Return the same, with the reason why it is not more."""
        return replace(self, skipped=reason)


class Batch:
    """The rows of one claim, from the claim to their settlement. Runs once."""

    def __init__(
        self,
        claim: Claim,
        store: FallbackStore,
        producer: RecordProducer,
        schedule: RetrySchedule,
        *,
        reachability: Reachability,
        observer: PublishObserver,
        asked_at: float,
        lease_seconds: float,
        stopping: Callable[[], bool],
    ) -> None:
        """Take over a claim that was asked for at ``asked_at``, by the loop's clock."""
        self._claim = claim
        self._store = store
        self._producer = producer
        self._schedule = schedule
        self._reachability = reachability
        self._observer = observer
        self._lease_seconds = lease_seconds
        self._stopping = stopping
        self._unsettled = {row.id for row in claim.rows}
        self._outcomes: list[RowOutcome] = []
        self._written = asyncio.Lock()
        # By our own clock, from the moment of asking: never later than by the store's.
        self._asked_at = asked_at
        self._lease_ends = asked_at + lease_seconds
        self._total = Sweep()

    @property
    def rows(self) -> set[int]:
        """The rows claimed."""
        return {row.id for row in self._claim.rows}

    @property
    def position(self) -> Position | None:
        """Where the next claim goes on."""
        return self._claim.position

    async def run(self) -> Sweep:
        """Publish and settle the rows.

        When cancelled, rows that were not sent are released, and those without an answer keep
        their lease until it runs out.
        """
        keeper = asyncio.create_task(self._keep_lease())
        writer = asyncio.create_task(self._write_regularly())
        lanes = [asyncio.create_task(self._publish_lane(lane)) for lane in _lanes(self._claim.rows)]
        cancelled = True
        try:
            await asyncio.gather(*lanes)
            cancelled = False
        finally:
            await end_tasks(*lanes, writer)
            await self._write(patiently=not cancelled)
            await end_tasks(keeper)
        return self._total

    # --- sending --------------------------------------------------------------------------------

    async def _publish_lane(self, rows: list[FallbackRow]) -> None:
        tried = 0
        try:
            for row in rows:
                if not self._may_send(row):
                    return
                tried += 1
                outcome = await self._publish_row(row)
                self._outcomes.append(outcome)
                if isinstance(outcome, Retry | Release):
                    return  # the others of its key wait for it
        finally:
            self._outcomes.extend(Release(row.id) for row in rows[tried:])

    def _may_send(self, row: FallbackRow) -> bool:
        return (
            not self._stopping()
            and not self._reachability.lost
            and row.id in self._unsettled
            and asyncio.get_running_loop().time() < self._lease_ends
        )

    async def _publish_row(self, row: FallbackRow) -> RowOutcome:
        if row.malformed is not None:
            return self._give_up(GiveUp(row.id, row.retry_count, row.malformed), row)
        try:
            acknowledged = await self._send(row)
        except Exception as error:  # noqa: BLE001 - whatever it is, the row must get an outcome
            return await self._refused(row, error)
        logger.info(log_messages.published(row, acknowledged))
        self._observer.replayed("published")
        return Acked(row.id)

    async def _send(self, row: FallbackRow) -> Acknowledged:
        headers = with_event_id(row)
        try:
            return await self._producer.send(
                row.topic, key=row.key, value=row.payload, headers=headers, partition=row.partition
            )
        except PublishRefused as error:
            if row.partition is None or error.code != "_UNKNOWN_PARTITION":
                raise
            # The topic has fewer partitions than the one it was meant to mirror.
            return await self._producer.send(
                row.topic, key=row.key, value=row.payload, headers=headers
            )

    async def _refused(self, row: FallbackRow, error: Exception) -> RowOutcome:
        if is_local(error):
            self._reachability.give_up(str(error))
            return Release(row.id)
        if is_unanswered(error) and await self._reachability.was_lost():
            return Release(row.id)
        outcome = self._schedule.after_refusal(row, error, self._now())
        if isinstance(outcome, GiveUp):
            return self._give_up(outcome, row)
        logger.warning(log_messages.refused(row, outcome))
        self._observer.replayed("retried")
        return outcome

    def _give_up(self, outcome: GiveUp, row: FallbackRow) -> GiveUp:
        logger.error(log_messages.failed(row, outcome))
        self._observer.replayed("failed")
        return outcome

    # --- the lease and the database -------------------------------------------------------------

    async def _keep_lease(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            asked_at = loop.time()
            async with self._written:
                try:
                    renewed = await self._store.renew(
                        self._claim.token, self._unsettled, self._lease_seconds
                    )
                except DatabaseUnavailable as error:
                    logger.warning("The lease of fallback messages was not renewed: %s", error)
                    continue
                self._unsettled &= renewed
            self._lease_ends = asked_at + self._lease_seconds

    async def _write_regularly(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_INTERVAL_SECONDS)
            # Not cut off in the middle of a commit, however this batch ends.
            await asyncio.shield(self._write(patiently=False))

    async def _write(self, *, patiently: bool) -> None:
        """Settle the rows that have an outcome; patiently: until the lease has run out."""
        loop = asyncio.get_running_loop()
        async with self._written:
            while self._outcomes:
                chunk = list(self._outcomes)
                try:
                    written = await self._store.settle(self._claim.token, chunk)
                except DatabaseUnavailable as error:
                    if not patiently:
                        return
                    if loop.time() >= self._lease_ends:
                        logger.warning("Outcomes of fallback messages were not written: %s", error)
                        self._outcomes.clear()
                        return
                    await asyncio.sleep(DATABASE_RETRY_SECONDS)
                    continue
                del self._outcomes[: len(chunk)]
                self._unsettled.difference_update(outcome.row_id for outcome in chunk)
                self._total += _counted(outcome for outcome in chunk if outcome.row_id in written)

    def _now(self) -> datetime:
        """The time by the store's clock, without asking it for every row."""
        since = asyncio.get_running_loop().time() - self._asked_at
        return self._claim.until + timedelta(seconds=since - self._lease_seconds)


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, once each: a second time would break into what they tidy up."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _lanes(rows: Iterable[FallbackRow]) -> list[list[FallbackRow]]:
    """Group rows that must not overtake each other; the order within a group is kept."""
    lanes: dict[object, list[FallbackRow]] = {}
    for row in rows:
        lane = row.id if row.key is None else (row.topic, row.key)
        lanes.setdefault(lane, []).append(row)
    return list(lanes.values())


def _counted(outcomes: Iterable[RowOutcome]) -> Sweep:
    total = Sweep()
    for outcome in outcomes:
        match outcome:
            case Acked():
                total += Sweep(published=1)
            case Retry():
                total += Sweep(retried=1)
            case GiveUp():
                total += Sweep(failed=1)
            case Release():
                total += Sweep(released=1)
    return total
