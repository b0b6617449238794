"""The use case: every record that is taken ends delivered, dead-lettered, or given back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from datetime import UTC, datetime

from app.delivery import lines
from app.delivery.answer import Answer, ExternalLogger
from app.delivery.breaker import Breaker, BreakerState
from app.delivery.dead_letters import (
    DeadLetter,
    DeadLetterSink,
    broken_record_letter,
    full_name,
    refused_letter,
)
from app.delivery.lanes import MAX_HELD_RECORDS, Lane, Lanes
from app.delivery.observer import DeliveryObserver
from app.delivery.outcome import Outcome, Trouble
from app.delivery.probes import NO_PROBE, ProbeQueue
from app.delivery.record import Record
from app.delivery.retry import RetryPolicy, Verdict
from app.errors import InvalidEvent, RelayError
from app.events import OrderPaid, decode_order_paid
from app.trace_context import TraceContext, of_record

logger = logging.getLogger(__name__)


class Relay:
    """Delivers records to the external logger, in order within a key.

    ``take`` is called by one task, record by record; deliveries run in tasks of their own. When
    a record is finished (the logger answered 2xx, or its dead letter is kept, or its event was
    delivered before), ``on_finished`` is called, exactly once for a record that is not given up.
    """

    def __init__(
        self,
        external_logger: ExternalLogger,
        dead_letters: DeadLetterSink,
        observer: DeliveryObserver,
        on_finished: Callable[[Record, Outcome], None],
        *,
        is_delivered: Callable[[Record, int], bool] = lambda record, order_id: False,
        policy: RetryPolicy,
        breaker_threshold: int,
        breaker_probe_interval_seconds: float,
        max_in_flight: int,
        max_held: int = MAX_HELD_RECORDS,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a relay that takes records in.

        Args:
            external_logger: Where records are delivered.
            dead_letters: Where records go that cannot be delivered.
            observer: Hears of attempts and ends.
            on_finished: Called with each finished record, and how it ended.
            is_delivered: Whether a record's event, of that order, was delivered before: it is
                not sent again.
            policy: Retries and their waits.
            breaker_threshold: Failures in a row that open the breaker; 0: never.
            breaker_probe_interval_seconds: From one probe to the next.
            max_in_flight: Attempts at a time.
            max_held: Records in memory at a time.
            clock: Monotonic seconds.
            wall_clock: Seconds since the epoch.
        """
        self._logger = external_logger
        self._dead_letters = dead_letters
        self._observer = observer
        self._on_finished = on_finished
        self._is_delivered = is_delivered
        self._failing: dict[Record, Trouble] = {}
        self._policy = policy
        self._clock = clock
        self._wall_clock = wall_clock
        self.breaker = Breaker(
            breaker_threshold, breaker_probe_interval_seconds, clock, self._on_breaker_change
        )
        self._outage = False
        self._probes = ProbeQueue(self.breaker)
        self._never_sent: set[Hashable] = set()
        """Keys of the lanes at a record that was never sent."""
        self._lanes = Lanes(self._deliver, max_in_flight=max_in_flight, max_held=max_held)
        self._taking = True
        self._epoch = 0
        self.dead_lettering = 0
        """Records that wait for their dead letter's acknowledgement."""
        self.last_activity = clock()
        """When an attempt last ended or records were last let in; on the injected clock."""

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self._lanes.in_flight

    @property
    def held(self) -> int:
        """Records taken and not finished: under way or waiting."""
        return self._lanes.held

    def find(self, wanted: Callable[[Record], bool]) -> tuple[Record, Trouble | None] | None:
        """Return a record in hand that is wanted, and how its attempts failed so far."""
        for record in self._lanes.records():
            if wanted(record):
                return record, self._failing.get(record)
        return None

    # --- taking in and giving back --------------------------------------------------------------

    async def take(self, record: Record) -> None:
        """Take a record for delivery; waits while there is no room or the breaker is not closed.

        Returns without taking it between ``give_back`` and ``resume``, also if that begins while
        it waits: the record's partition is then read again from the committed offset.
        """
        if not self._taking:
            return
        lane = (
            (record.topic, record.partition, record.key)
            if record.key is not None
            else (record.topic, record.partition, None, record.offset)
        )
        epoch = self._epoch
        while not self._may_take(lane):
            await self._lanes.changed()
            if epoch != self._epoch:
                return
        if not self.breaker.closed and lane not in self._lanes:
            self._never_sent.add(lane)
        self._lanes.put(lane, record)

    async def give_back(self, *, drain_seconds: float, attempt_seconds: float) -> None:
        """Stop taking in, and end everything under way; when this returns nothing runs.

        Args:
            drain_seconds: How long everything taken may go on as usual. An open breaker ends it:
                nothing can finish then.
            attempt_seconds: How long attempts under way after that may take. The rest is given
                up unfinished.
        """
        self._taking = False
        self._epoch += 1
        self._lanes.notify()
        await self._lanes.drain(drain_seconds, lambda: not self.breaker.closed)
        abandoned = await self._lanes.close(attempt_seconds)
        self._never_sent.clear()
        if abandoned:
            self._observer.abandoned(abandoned)
            logger.info("Gave back %d unfinished records: they will be redelivered", abandoned)

    def resume(self) -> None:
        """Take records in again."""
        self._taking = True
        self.last_activity = self._clock()
        self._lanes.open()

    def _may_take(self, lane: tuple[object, ...]) -> bool:
        if not self._lanes.has_room(lane):
            return False
        # With the breaker open intake stops, but for what probes need: a record that was never
        # sent. Those that failed may be some that the logger never takes.
        return self.breaker.closed or not self._never_sent

    # --- one record -----------------------------------------------------------------------------

    async def _deliver(self, record: Record, lane: Lane) -> None:
        started_ms = int(self._wall_clock() * 1000)
        if self._never_sent:
            self._never_sent.discard(lane.key)
        try:
            event = decode_order_paid(record.value)
        except InvalidEvent as error:
            letter = broken_record_letter(record, error, self._now())
            await self._dead_letter(letter, None, started_ms, lane, posts=0)
            return
        if self._is_delivered(record, event.orderId):
            self.last_activity = self._clock()
            logger.debug(lines.delivered_before(record))
            self._observer.duplicate()
            self._on_finished(record, Outcome(delivered=True, attempts=0, duplicate=True))
            return
        try:
            await self._send(record, event, started_ms, lane)
        finally:
            if self._failing:
                self._failing.pop(record, None)

    async def _send(self, record: Record, event: OrderPaid, started_ms: int, lane: Lane) -> None:
        value = record.value or b""
        idempotency_key = record.idempotency_key()
        trace = of_record(record.headers) if record.headers else None
        attempts = failures = 0
        last_error, last_status = "", None
        while True:
            ticket = NO_PROBE
            if not self.breaker.closed:
                ticket = await self._wait_for_breaker(lane, failures)
            answer = await self._attempt(value, idempotency_key, trace, ticket)
            if answer.verdict is Verdict.SUCCESS:
                self.breaker.succeeded()
                self._observer.delivered(self._paid_to_delivered_seconds(record, event))
                outcome = Outcome(
                    True,
                    failures + 1,
                    event.orderId,
                    event.paidAt,
                    started_ms,
                    http_status=last_status,
                    last_error=last_error,
                )
                self._on_finished(record, outcome)
                return
            if answer.verdict is Verdict.REJECTED:
                self.breaker.answered()
                letter = refused_letter(record, "rejected", answer, attempts + 1, self._now())
                await self._dead_letter(letter, event, started_ms, lane, posts=failures + 1)
                return
            self.breaker.failed(ticket)
            failures += 1
            last_error, last_status = answer.detail, answer.status
            self._failing[record] = Trouble(failures, last_error, last_status)
            # Neither an outage nor what fails while the breaker is open counts against the record.
            if answer.verdict is Verdict.RETRYABLE and self.breaker.closed:
                attempts += 1
                if self._policy.exhausted(attempts):
                    letter = refused_letter(
                        record, "retries_exhausted", answer, attempts, self._now()
                    )
                    await self._dead_letter(letter, event, started_ms, lane, posts=failures)
                    return
            await self._wait_for_retry(record, answer, failures, lane)

    async def _wait_for_breaker(self, lane: Lane, failures: int) -> int:
        """Wait until a record that failed so often may be sent; returns the ticket for it."""
        if not failures:
            self._never_sent.add(lane.key)
        ticket = NO_PROBE
        while not ticket and not self.breaker.closed:
            turn = self._probes.join(failures)
            try:
                await lane.pause(float("inf"), until=turn)
            except BaseException:
                if not turn.cancel():
                    self.breaker.withdrawn(turn.result())
                raise
            ticket = turn.result()
        if self._never_sent:
            self._never_sent.discard(lane.key)
            self._lanes.notify()  # intake may take another one
        return ticket

    async def _attempt(
        self, value: bytes, idempotency_key: str, trace: TraceContext | None, ticket: int
    ) -> Answer:
        started = self._clock()
        try:
            answer = await self._logger.post(value, idempotency_key, trace)
        except asyncio.CancelledError:
            self.breaker.withdrawn(ticket)
            raise
        except Exception as error:
            # A fault of ours must neither lose the record nor stop its key for ever.
            logger.exception("An attempt failed in a way nobody foresaw")
            answer = Answer(Verdict.RETRYABLE, detail=repr(error), error_type=full_name(error))
        self.last_activity = now = self._clock()
        self._observer.attempted(answer.verdict.value, now - started)
        return answer

    async def _wait_for_retry(
        self, record: Record, answer: Answer, failures: int, lane: Lane
    ) -> None:
        if self.breaker.closed:
            wait = self._policy.wait_seconds(failures, answer.retry_after_seconds)
        else:
            wait = answer.retry_after_seconds  # the breaker decides when to go on
        self._observer.retrying()
        logger.warning(lines.retrying(record, answer, failures, wait, self.breaker.state))
        await lane.pause(wait)

    async def _dead_letter(
        self,
        letter: DeadLetter,
        event: OrderPaid | None,
        started_ms: int,
        lane: Lane,
        *,
        posts: int,
    ) -> None:
        logger.error(lines.given_up(letter))
        self.dead_lettering += 1
        self._lanes.notify()
        try:
            await self._bury(letter, lane)
        finally:
            self.dead_lettering -= 1
        self._observer.dead_lettered(letter.reason)
        outcome = Outcome(
            False,
            posts,
            event.orderId if event is not None else None,
            event.paidAt if event is not None else "",
            started_ms,
            letter.reason,
            letter.http_status,
            letter.message,
        )
        self._on_finished(letter.record, outcome)

    async def _bury(self, letter: DeadLetter, lane: Lane) -> None:
        failures = 0
        while (refusal := await self._refusal(letter)) is not None:
            failures += 1
            wait = self._policy.wait_seconds(failures)
            logger.error(lines.letter_refused(letter.record, failures, wait, refusal))
            await lane.pause(wait)

    async def _refusal(self, letter: DeadLetter) -> str | None:
        """Send a dead letter; returns why it was refused, ``None`` once it is kept."""
        try:
            await self._dead_letters.send(letter)
        except RelayError as error:
            return str(error)
        except Exception as error:
            logger.exception("A dead letter failed in a way nobody foresaw")
            return repr(error)
        finally:
            self.last_activity = self._clock()
        return None

    def _paid_to_delivered_seconds(self, record: Record, event: OrderPaid) -> float:
        # A paidAt without a zone is the order service's local time, of which we know nothing:
        # the record's own timestamp stands in.
        paid_at = event.paid_at()
        paid = record.timestamp_ms / 1000 if paid_at.tzinfo is None else paid_at.timestamp()
        # A record can be without a timestamp, too (-1).
        return max(self._wall_clock() - paid, 0.0) if paid > 0 else 0.0

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock(), UTC)

    def _on_breaker_change(self, state: BreakerState) -> None:
        if state is BreakerState.OPEN and not self._outage:
            self._outage = True
            logger.error("Breaker open: the external logger fails; intake is paused")
        elif state is BreakerState.CLOSED:
            self._outage = False
            logger.warning("Breaker closed: the external logger works again")
        self.last_activity = self._clock()
        self._probes.serve()
        self._lanes.notify()
