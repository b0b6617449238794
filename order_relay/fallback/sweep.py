"""Publishing the rows of one claim: rows of one key one after another, others side by side."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from order_relay.errors import DatabaseUnavailable, PublishRefused
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
from order_relay.logs.log_line import LogLine
from order_relay.model.headers import EVENT_ID_HEADER, Header
from order_relay.model.trace_context import trace_id

logger = logging.getLogger(__name__)

# Short, so that a killed worker repeats few rows; long enough for a commit to carry many rows.
SETTLE_INTERVAL_SECONDS = 0.1
DATABASE_RETRY_SECONDS = 1.0

_EVENT_ID_NAMESPACE = uuid.UUID("8f1d2f0e-3a5e-4d0c-9b55-0d5f2c1b7a6e")


@dataclass(frozen=True, slots=True)
class Sweep:
    """The result of a sweep, in rows.

    Attributes:
        published: Acknowledged by Kafka.
        retried: Refused; they wait for another attempt.
        failed: Refused finally; they wait for a person.
        released: Claimed and not tried, or without an answer while no broker could be reached.
        skipped: Why the sweep did not happen or ended early; empty if neither.
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
        """Rows that were answered."""
        return self.published + self.retried + self.failed


class Batch:
    """The rows of one claim, until they are settled. Runs once."""

    def __init__(
        self,
        claim: Claim,
        store: FallbackStore,
        producer: RecordProducer,
        schedule: RetrySchedule,
        *,
        reachability: Reachability,
        on_result: Callable[[str], None],
        asked_at: float,
        lease_seconds: float,
        stopping: Callable[[], bool],
    ) -> None:
        """Take over a claim that was requested at ``asked_at``, by the loop's clock."""
        self._claim = claim
        self._store = store
        self._producer = producer
        self._schedule = schedule
        self._reachability = reachability
        self._on_result = on_result
        self._lease_seconds = lease_seconds
        self._stopping = stopping
        self._unsettled = {row.id for row in claim.rows}
        self._outcomes: list[RowOutcome] = []
        self._changing_rows = asyncio.Lock()
        # Counted from the request, so that it never ends later here than by the store's clock.
        self._asked_at = asked_at
        self._lease_ends = asked_at + lease_seconds
        self._total = Sweep()

    @property
    def rows(self) -> set[int]:
        """The ids of the claimed rows."""
        return {row.id for row in self._claim.rows}

    @property
    def position(self) -> Position | None:
        """See ``Claim.position``."""
        return self._claim.position

    async def run(self) -> Sweep:
        """Publish and settle the rows.

        When cancelled, rows that were not sent are released, and those without an answer keep
        their lease until it runs out.
        """
        renewing = asyncio.create_task(self._renew_lease())
        settling = asyncio.create_task(self._settle_regularly())
        lanes = [asyncio.create_task(self._publish_lane(lane)) for lane in _lanes(self._claim.rows)]
        cancelled = True
        try:
            await asyncio.gather(*lanes)
            cancelled = False
        finally:
            await cancel_tasks(*lanes, settling)
            await self._settle(try_again=not cancelled)
            await cancel_tasks(renewing)
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
                    return  # the next rows of the key wait for this one
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
            return self._count_refusal(row, GiveUp(row.id, row.retry_count, row.malformed))
        try:
            acknowledged = await self._send(row)
        except Exception as error:  # noqa: BLE001 - every row gets an outcome, whatever the error
            return await self._refused(row, error)
        logger.info(
            LogLine(
                "Fallback message published successfully",
                id=row.id,
                topic=acknowledged.topic,
                partition=acknowledged.partition,
                offset=acknowledged.offset,
                trace_id=trace_id(row.headers),
            )
        )
        self._on_result("published")
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
            # The topic has fewer partitions than the record's own: the key decides.
            return await self._producer.send(
                row.topic, key=row.key, value=row.payload, headers=headers
            )

    async def _refused(self, row: FallbackRow, error: Exception) -> RowOutcome:
        if is_local(error):
            self._reachability.give_up(str(error))
            return Release(row.id)
        if is_unanswered(error) and await self._reachability.was_lost():
            return Release(row.id)
        return self._count_refusal(row, self._schedule.after_refusal(row, error, self._now()))

    def _count_refusal(self, row: FallbackRow, outcome: Retry | GiveUp) -> RowOutcome:
        """Log and count a refusal."""
        retry = f"{outcome.retry_count}/{row.max_retry}"
        if isinstance(outcome, GiveUp):
            logger.error(
                LogLine(
                    "Fallback message failed and waits for a person",
                    id=row.id,
                    topic=row.topic,
                    retry=retry,
                    reason=outcome.error_message,
                    trace_id=trace_id(row.headers),
                )
            )
            self._on_result("failed")
            return outcome
        logger.warning(
            LogLine(
                "Fallback message refused",
                id=row.id,
                topic=row.topic,
                retry=retry,
                next_retry_at=outcome.next_retry_at.isoformat(timespec="seconds"),
                reason=outcome.error_message,
                trace_id=trace_id(row.headers),
            )
        )
        self._on_result("retried")
        return outcome

    # --- the lease and the database -------------------------------------------------------------

    async def _renew_lease(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            asked_at = loop.time()
            async with self._changing_rows:
                try:
                    renewed = await self._store.renew(
                        self._claim.token, self._unsettled, self._lease_seconds
                    )
                except DatabaseUnavailable as error:
                    logger.warning("The lease of fallback messages was not renewed: %s", error)
                    continue
                self._unsettled &= renewed
            self._lease_ends = asked_at + self._lease_seconds

    async def _settle_regularly(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_INTERVAL_SECONDS)
            # Shielded: cancelling this task must not interrupt a commit.
            await asyncio.shield(self._settle(try_again=False))

    async def _settle(self, *, try_again: bool) -> None:
        """Write the outcomes so far; with ``try_again`` until the lease has run out."""
        loop = asyncio.get_running_loop()
        async with self._changing_rows:
            while self._outcomes:
                chunk = list(self._outcomes)
                try:
                    written = await self._store.settle(self._claim.token, chunk)
                except DatabaseUnavailable as error:
                    if not try_again:
                        return
                    if loop.time() >= self._lease_ends:
                        logger.warning("Outcomes of fallback messages were not written: %s", error)
                        self._outcomes.clear()
                        return
                    await asyncio.sleep(DATABASE_RETRY_SECONDS)
                    continue
                del self._outcomes[: len(chunk)]
                self._unsettled.difference_update(outcome.row_id for outcome in chunk)
                kinds = Counter(type(outcome) for outcome in chunk if outcome.row_id in written)
                self._total += Sweep(kinds[Acked], kinds[Retry], kinds[GiveUp], kinds[Release])

    def _now(self) -> datetime:
        """The time by the store's clock, without asking the store for every row."""
        since = asyncio.get_running_loop().time() - self._asked_at
        return self._claim.until + timedelta(seconds=since - self._lease_seconds)


async def cancel_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for them; a second cancellation would interrupt their clean-up."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def with_event_id(row: FallbackRow) -> tuple[Header, ...]:
    """Return a row's headers with an ``event-id``, the same at every attempt.

    Rows written by plain SQL need not have one. It is then made from what never changes in the
    row; the time and the record are part of it, since two databases give out the same row ids.
    """
    given = [value for name, value in row.headers if name == EVENT_ID_HEADER]
    if given and given[-1]:  # the last one counts
        return row.headers
    others = tuple(header for header in row.headers if header[0] != EVENT_ID_HEADER)
    parts = (
        row.topic.encode(),
        str(row.id).encode(),
        row.created_at.isoformat().encode(),
        row.key or b"",
        row.payload or b"",
    )
    name = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    event_id = uuid.uuid5(_EVENT_ID_NAMESPACE, name.hex())
    return (*others, (EVENT_ID_HEADER, str(event_id).encode()))


def _lanes(rows: Iterable[FallbackRow]) -> list[list[FallbackRow]]:
    """Group rows by lane; the order within a lane is kept."""
    lanes: dict[object, list[FallbackRow]] = {}
    for row in rows:
        lanes.setdefault(row.lane, []).append(row)
    return list(lanes.values())
