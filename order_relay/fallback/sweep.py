"""A sweep: claimed rows go to Kafka, those of one key one after another, others side by side."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from order_relay.errors import DatabaseUnavailable, KafkaUnavailable, PublishRefused
from order_relay.fallback.retry_schedule import after_refusal, is_local, is_unanswered
from order_relay.fallback.store import Claim, FallbackRow, Outcome, Position, Status, lanes_of
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import Acknowledged, KafkaProducer
from order_relay.logs.log_line import LogLine
from order_relay.model.headers import EVENT_ID_HEADER, Header, last_value
from order_relay.model.trace_context import trace_id

if TYPE_CHECKING:
    from order_relay.tracing.spans import SentSpan, Tracing

logger = logging.getLogger(__name__)

# Short, so that a killed worker repeats few rows; long enough for a commit to carry many rows.
SETTLE_INTERVAL_SECONDS = 0.1
MAX_LOGGED_ROWS = 10
DATABASE_RETRY_SECONDS = 1.0
CANCEL_SECONDS = 2.0
PING_INTERVAL_SECONDS = 5.0
# Rows of one batch fail at the same moment. One ping is enough for all of them.
FRESH_SECONDS = 1.0

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


@dataclass(kw_only=True)
class Sweeper:
    """Claims rows, publishes and settles them. Runs once; see ``Replay`` for the attributes."""

    store: FallbackTable
    producer: KafkaProducer
    stopping: Callable[[], bool]
    on_result: Callable[[str], None]
    backoff_base_seconds: float
    batch_size: int
    max_in_flight: int
    lease_seconds: float
    tracing: Tracing | None = None

    def __post_init__(self) -> None:
        """Begin with nothing claimed."""
        self._token = uuid.uuid4().hex  # all claims share one lease
        self._unsettled: set[int] = set()
        self._outcomes: list[Outcome] = []
        self._counts: Counter[str] = Counter()
        self._changing_rows = asyncio.Lock()
        self._given_up = ""  # why no more rows may be sent, such as: no broker answered a ping
        self._pinging = asyncio.Lock()
        self._answered_at = float("-inf")
        self._progress = asyncio.Event()  # a batch can be settled, or was
        # Both by the loop's clock, and counted from the request: the lease never ends later here
        # than by the store's clock.
        self._lease_ends = 0.0
        self._clock_zero = datetime.min.replace(tzinfo=UTC)

    async def run(self) -> Sweep:
        """Publish the due rows.

        When cancelled, rows that were not sent are released, and those without an answer keep
        their lease until it runs out.

        Raises:
            DatabaseUnavailable: See ``Replay.run_once``.
        """
        tending = asyncio.create_task(self._tend_rows())
        watching = asyncio.create_task(self._watch_brokers())
        try:
            # Publishing a row makes the next ones of its key due: another pass finds them.
            while await self._pass():
                pass
            await self._wait_for_locked_rows()
        finally:
            await cancel_tasks(tending, watching)
            await self._settle(try_again=False)
        return Sweep(**self._counts, skipped=self._given_up)

    async def _pass(self) -> bool:
        """Go through the due rows once; return whether Kafka answered for any."""
        answered = self._answered
        problem: DatabaseUnavailable | None = None
        async with asyncio.TaskGroup() as publishing:
            position: Position | None = None
            while self._goes_on:
                try:
                    claim = await self._claim(position)
                except DatabaseUnavailable as error:
                    problem = error  # raised when the rows in flight are settled
                    break
                for lane in lanes_of(claim.rows):
                    publishing.create_task(self._publish_lane(lane))
                position = claim.position
                if position is None:
                    break
                await self._wait_for_room()
        await self._settle(try_again=True)
        if problem is not None:
            raise problem
        return self._answered > answered

    @property
    def _goes_on(self) -> bool:
        return not self.stopping() and not self._given_up

    @property
    def _answered(self) -> int:
        return self._counts.total() - self._counts["released"]

    async def _claim(self, after: Position | None) -> Claim:
        asked_at = asyncio.get_running_loop().time()
        claim = await self.store.claim(
            limit=self.batch_size,
            lease_seconds=self.lease_seconds,
            after=after,
            token=self._token,
        )
        if not self._unsettled:
            self._lease_ends = asked_at + self.lease_seconds
        self._clock_zero = claim.until - timedelta(seconds=asked_at + self.lease_seconds)
        self._unsettled.update(row.id for row in claim.rows)
        return claim

    async def _wait_for_room(self) -> None:
        while self._goes_on and 0 < len(self._unsettled) > self.max_in_flight - self.batch_size:
            self._progress.clear()
            await self._progress.wait()
            await self._settle(try_again=False)

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
                if (result := _result(outcome)) != "released":
                    self.on_result(result)
                if outcome.status is Status.PENDING:
                    return  # the next rows of the key wait for this one
        finally:
            self._outcomes.extend(Outcome(row.id) for row in rows[tried:])
            if len(self._outcomes) >= self.batch_size:
                self._progress.set()

    def _may_send(self, row: FallbackRow) -> bool:
        return (
            self._goes_on
            and row.id in self._unsettled
            and asyncio.get_running_loop().time() < self._lease_ends
        )

    async def _publish_row(self, row: FallbackRow) -> Outcome:
        if row.malformed is not None:
            return _refused(
                row, Outcome(row.id, Status.FAILED, row.retry_count, None, row.malformed)
            )
        if self.tracing is None:
            return await self._publish_sound_row(row)
        with self.tracing.sending("replay", row.topic, row.headers) as span:
            span.of_row(row.id)
            return await self._publish_sound_row(replace(row, headers=span.headers), span)

    async def _publish_sound_row(self, row: FallbackRow, span: SentSpan | None = None) -> Outcome:
        try:
            headers = with_event_id(row)
            send = partial(
                self.producer.send, row.topic, key=row.key, value=row.payload, headers=headers
            )
            acknowledged = await send_to_partition(send, row.partition)
        except Exception as error:  # noqa: BLE001 - every row gets an outcome, whatever the error
            if span is not None:
                span.failed(error)
            if is_local(error):
                self._given_up = self._given_up or str(error)
                return Outcome(row.id)
            if is_unanswered(error) and await self._were_brokers_lost():
                return Outcome(row.id)
            now = self._clock_zero + timedelta(seconds=asyncio.get_running_loop().time())
            return _refused(row, after_refusal(row, error, now, self.backoff_base_seconds))
        if span is not None:
            span.acknowledged(acknowledged)
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
        return Outcome(row.id, Status.PUBLISHED)

    # --- the brokers ----------------------------------------------------------------------------

    async def _watch_brokers(self) -> None:
        while not self._given_up:
            await asyncio.sleep(PING_INTERVAL_SECONDS)
            await self._ping()

    async def _were_brokers_lost(self) -> bool:
        """Return whether no broker answered at some time, or none answers now."""
        async with self._pinging:
            now = asyncio.get_running_loop().time()
            if not self._given_up and now - self._answered_at > FRESH_SECONDS:
                await self._ping()
        return bool(self._given_up)

    async def _ping(self) -> None:
        pinged_at = asyncio.get_running_loop().time()
        try:
            await self.producer.ping()
        except KafkaUnavailable as error:
            self._given_up = self._given_up or str(error)
        else:
            self._answered_at = pinged_at

    # --- the lease and the database -------------------------------------------------------------

    async def _tend_rows(self) -> None:
        """Settle regularly, and renew the lease when a third of it has passed."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + self.lease_seconds / 3
        while True:
            await asyncio.sleep(SETTLE_INTERVAL_SECONDS)
            # Shielded: cancelling this task must not interrupt a commit.
            await asyncio.shield(self._settle(try_again=False))
            if (now := loop.time()) >= renew_at:
                renew_at = now + self.lease_seconds / 3
                await self._renew_lease(now)

    async def _renew_lease(self, asked_at: float) -> None:
        async with self._changing_rows:
            asked = set(self._unsettled)
            try:
                renewed = await self.store.renew(self._token, asked, self.lease_seconds)
            except DatabaseUnavailable as error:
                logger.warning("The lease of fallback messages was not renewed: %s", error)
                return
            self._unsettled -= asked - renewed
        self._lease_ends = asked_at + self.lease_seconds

    async def _settle(self, *, try_again: bool) -> None:
        """Write the outcomes so far; with ``try_again`` until the lease has run out.

        Those of rows that another session has locked stay for the next time.
        """
        async with self._changing_rows:
            while self._outcomes:
                chunk = list(self._outcomes)
                written: set[int] = set()
                locked: set[int] = set()
                try:
                    written = await self.store.settle(self._token, chunk)
                    locked = {one.row_id for one in chunk} - written
                    if locked:
                        with suppress(DatabaseUnavailable):
                            locked = await self.store.leased(self._token, locked)
                except DatabaseUnavailable as error:
                    if asyncio.get_running_loop().time() < self._lease_ends:
                        if not try_again:
                            return
                        await asyncio.sleep(DATABASE_RETRY_SECONDS)
                        continue
                    logger.warning("Outcomes of fallback messages were not written: %s", error)
                self._outcomes[: len(chunk)] = [one for one in chunk if one.row_id in locked]
                settled = [one for one in chunk if one.row_id not in locked]
                self._unsettled.difference_update(one.row_id for one in settled)
                self._counts.update(_result(one) for one in settled if one.row_id in written)
                self._progress.set()
                if locked:
                    return

    async def _wait_for_locked_rows(self) -> None:
        """Give other sessions time to release rows: until the lease as it is now has run out."""
        loop = asyncio.get_running_loop()
        deadline = self._lease_ends
        while self._outcomes and not self.stopping() and loop.time() < deadline:
            await asyncio.sleep(DATABASE_RETRY_SECONDS)
            await self._settle(try_again=False)
        if self._outcomes:
            logger.warning(
                LogLine(
                    "Fallback rows are locked by another session, they may be published again",
                    ids=",".join(str(one.row_id) for one in self._outcomes[:MAX_LOGGED_ROWS]),
                    rows=len(self._outcomes),
                )
            )


async def cancel_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for them, 2 s at most: longer only takes a database that hangs.

    A second cancellation would interrupt their clean-up.
    """
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    ended = asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.wait([ended], timeout=CANCEL_SECONDS)


async def send_to_partition(
    send: Callable[..., Awaitable[Acknowledged]], partition: int | None
) -> Acknowledged:
    """Send to a partition if the topic has it, so that a key's records keep their order.

    Otherwise, and without a partition, the key decides. ``send`` lacks only the partition.
    """
    try:
        return await send(partition=partition)
    except PublishRefused as error:
        if error.code != "_UNKNOWN_PARTITION":
            raise
        return await send()


def with_event_id(row: FallbackRow) -> tuple[Header, ...]:
    """Return a row's headers with an ``event-id``, the same at every attempt.

    Rows written by plain SQL need not have one. It is then made from what never changes in the
    row; the time and the record are part of it, since two databases give out the same row ids.
    """
    if last_value(row.headers, EVENT_ID_HEADER):
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


def _result(outcome: Outcome) -> str:
    """Return the field of ``Sweep`` that counts an outcome."""
    if outcome.status is Status.PENDING:
        return "retried" if outcome.next_retry_at is not None else "released"
    return outcome.status.value.lower()


def _refused(row: FallbackRow, outcome: Outcome) -> Outcome:
    """Log a refusal; return the outcome."""
    retry = f"{outcome.retry_count}/{row.max_retry}"
    if outcome.next_retry_at is None:
        logger.error(
            LogLine(
                "Fallback message failed and waits for a person",
                id=row.id,
                topic=row.topic,
                retry=retry,
                reason=outcome.error_message,
                page=(f"/fallback/{row.id}", {}),
                trace_id=trace_id(row.headers),
            )
        )
    else:
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
    return outcome
