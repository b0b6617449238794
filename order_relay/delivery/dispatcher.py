"""Delivers records: each one ends delivered, dead-lettered, or left to the next owner."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any, cast

import msgspec

from order_relay.delivery.answer import (
    Answer,
    AttemptTracer,
    EventHandler,
    PostHandler,
    RetryPolicy,
    Verdict,
)
from order_relay.delivery.back_pressure import Concurrency, Pace
from order_relay.delivery.batches import Batches, Batching
from order_relay.delivery.breaker import BreakerState
from order_relay.delivery.dead_letters import (
    CONSUMER_HEADER,
    DeadLetter,
    DeadLetterSink,
    broken_record_letter,
    full_name,
    refused_letter,
)
from order_relay.delivery.delivery_log import DeliveryLog
from order_relay.delivery.gate import NO_PROBE, Gate
from order_relay.delivery.lanes import MAX_QUEUED_RECORDS, Lane, Lanes
from order_relay.delivery.left_in_kafka import LaneKey, LeftInKafka, Reading
from order_relay.delivery.outcome import DeliveryObserver, FailureState, Outcome
from order_relay.delivery.target_health import Target, TargetHealth, TargetState
from order_relay.errors import InvalidEvent, RelayError
from order_relay.model.consumer import Delivery, EventKey
from order_relay.model.events import ORDER_PAID, Events, paid_at_of, paid_moment
from order_relay.model.order_paid import OrderId
from order_relay.model.record import Record
from order_relay.model.trace_context import TraceContext, of_record, with_trace_context

# Records taken in while the breaker is not closed. A probe needs a record that can succeed; among
# so many there is one, even if those that a shard refuses come first after a restart.
MAX_READ_AHEAD = 8000
# Wait after a 404 before the record is given up.
GONE_CONFIRM_SECONDS = 1.0
# If records of other keys fail, too, it is sent at least this often again: behind a balancer, one
# of the instances may answer so to everything.
GONE_REPEATS = 2
# After this many refusals of a key, none of whose records was taken at its first attempt since,
# more are its own, if others are accepted meanwhile.
MAX_REFUSALS = 2
# While such keys are known, this holds for the first refusal of others, if records of other keys
# were accepted since this long before it.
RECENTLY_SECONDS = 1.0
# After a time-out, everything hangs if there was no success for this long.
HANGING_SECONDS = 1.0
# With this part of the memory full, records that the target refused this often, while it accepted
# others, are left in Kafka until half of that part is free: they may be refused for ever, and
# others need the room.
CROWDED_SHARE = 0.8
MIN_ATTEMPTS_TO_LEAVE = 4
# To a repeated idempotency key: the first request with it is still being processed
# (draft-ietf-httpapi-idempotency-key-header, 2.6).
CONFLICT = 409

# Finished without an attempt: delivered before, or for another consumer.
_NOT_SENT = Outcome(delivered=True, attempts=0, duplicate=True)

logger = logging.getLogger(__name__)

KEY_FAILED = "Consumer's key= failed, the record's own key is used instead"
SUBJECT_FAILED = "Consumer's subject= failed, the deliveries table does not know such events"


class _Work(msgspec.Struct, eq=False):
    """A record that is being delivered, and its attempts so far.

    Attributes:
        number: The record's place among those that wait to be sent.
        outages: How many outages there had been when the current attempt was sent.
        failures: Failed attempts; those that were refused are ``refusals``.
        gone: How often the target answered 404, 405 or 410 while it worked for others.
        own_failures: The failures that no other record of a batch may have caused.
        counted: When the attempts that count against the record were sent.
        unanswered: Whether any attempt got no answer: the target may still work on it.
    """

    record: Record
    lane: Lane
    started_ms: int
    event: Any = None
    order_id: OrderId | None = None
    idempotency_key: str = ""
    trace: TraceContext | None = None
    number: int = 0
    ticket: int = NO_PROBE
    outages: int = 0
    sent_at: float = 0.0
    first_sent_at: float = 0.0
    attempts: int = 0
    failures: int = 0
    own_failures: int = 0
    refusals: int = 0
    has_own_limit: bool = False
    gone: int = 0
    counted: list[float] = []
    last: Answer | None = None
    unanswered: bool = False


class Dispatcher:
    """Delivers records to the target, in order within a key.

    One task calls ``submit``, record by record. Deliveries run in tasks of their own. A record is
    finished when the target answered 2xx, its dead letter is stored, or its event was delivered
    before. ``on_finished`` is called exactly once for each finished record, and never for an
    abandoned one.
    """

    def __init__(
        self,
        target: PostHandler | EventHandler,
        dead_letters: DeadLetterSink,
        observer: DeliveryObserver,
        on_finished: Callable[[Record, Outcome], None],
        *,
        consumer: str = "order_logging",
        events: Events = ORDER_PAID,
        key: EventKey | None = None,
        is_delivered: Callable[[Record, OrderId | None], bool] = lambda record, order_id: False,
        is_finished: Callable[[Record, OrderId | None], bool] = lambda record, order_id: True,
        policy: RetryPolicy,
        breaker_threshold: int,
        breaker_probe_interval_seconds: float,
        reading: Reading,
        max_in_flight: int,
        max_rate: float | None = None,
        batching: Batching | None = None,
        tracer: AttemptTracer | None = None,
        max_queued: int = MAX_QUEUED_RECORDS,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Create a dispatcher that accepts records.

        Args:
            target: Sends records, or handles their events.
            dead_letters: Stores records that cannot be delivered.
            observer: Is told of every attempt and every result.
            on_finished: Called with each finished record and its result.
            consumer: The name of the consumer.
            events: Decodes the records' values.
            key: Returns what orders events, in place of the records' keys.
            is_delivered: Whether a record's event, of that order, was delivered before. It is not
                sent again.
            is_finished: Whether the record is finished whose id this one, of that order, carries,
                as a redriven one does.
            policy: Retries and their waits.
            breaker_threshold: Failed first attempts in a row that open the breaker, see
                ``Breaker``. 0: it never opens, and the retries alone decide when a record is
                given up.
            breaker_probe_interval_seconds: Time between two probes.
            reading: Moves the position of a partition. It is asked to go back for records that had
                no room.
            max_in_flight: Maximum concurrent attempts.
            max_rate: Maximum attempts a second; ``None``: as many as the target accepts.
            batching: How records are put into batches; ``None``: each is sent alone. With batches
                an attempt is a request with several records.
            tracer: Traces attempts; ``None``: trace contexts are forwarded unchanged.
            max_queued: Maximum records in memory.
            clock: Monotonic seconds.
            wall_clock: Seconds since the epoch.
        """
        self._poster = cast(PostHandler, target) if hasattr(target, "post") else None
        self._event_handler = cast(EventHandler, target) if hasattr(target, "handle") else None
        self._success = "function" if self._event_handler is not None else "2xx"
        self._tracer = tracer
        self._consumer = consumer
        self._decode = events.decode
        self._events, self._subject = events, events.subject
        self._key = key
        self._dead_letters = dead_letters
        self._observer = observer
        self._on_finished = on_finished
        self._is_delivered = is_delivered
        self._is_finished = is_finished
        self._failing: dict[Record, FailureState] = {}
        self._policy = policy
        self._clock = clock
        self._wall_clock = wall_clock
        self.health = TargetHealth(
            policy,
            clock,
            breaker_threshold=breaker_threshold,
            breaker_probe_interval_seconds=breaker_probe_interval_seconds,
            on_breaker_change=self._on_breaker_change,
        )
        self.breaker = self.health.breaker
        self.pace = Pace(clock, max_rate)
        self._batches: Batches | None = None
        gate_pace = self.pace
        if batching is not None and batching.size > 1 and self._poster is not None:
            self._batches = Batches(
                self._poster, batching, self.pace, clock, max_requests=max_in_flight
            )
            # The pace limits requests, not records: at the gate only probes wait.
            gate_pace = Pace(clock)
            max_in_flight = max(min(max_in_flight * batching.size, max_queued // 2), max_in_flight)
        self._log = DeliveryLog()
        self._max_in_flight = max_in_flight
        self._numbers = count()
        self._lanes = Lanes(
            self._deliver, max_in_flight=max_in_flight, max_queued=max_queued, clock=clock
        )
        self.concurrency = Concurrency(clock, self._lanes)
        self._gate = Gate(self.breaker, gate_pace, self._lanes.notify)
        self._reading = reading
        self.left = LeftInKafka(reading)
        """Records that had no room in memory."""
        self._crowded = int(CROWDED_SHARE * max_queued)
        self._leaves_refused = False
        self._accepting = True
        self._epoch = 0
        self.dead_lettering = 0
        """Records whose dead letter is not yet acknowledged."""
        self.last_activity = clock()
        """When an attempt last ended or intake last resumed, by the injected clock."""

    def target(self) -> Target:
        """Return the target's current state."""
        failure = self.health.last_failure
        throttles = self.pace.throttled
        state, seconds = self.health.state(throttles=throttles)
        return Target(
            state,
            seconds,
            self.pace.rate if state is TargetState.THROTTLES and self.pace.limited else None,
            self.health.share_failed,
            self._lanes.limit,
            failure.status if failure else None,
            failure.detail if failure else "",
            self._clock() - self.health.last_failure_at if failure else None,
            self.breaker.probe_in_seconds,
            self.breaker.opened_because if not self.breaker.closed else "",
        )

    @property
    def in_flight(self) -> int:
        """Lanes that have a slot: attempts under way."""
        return self._lanes.in_flight

    @property
    def queued(self) -> int:
        """Accepted records that are not finished: under way or waiting."""
        return self._lanes.queued

    def find(self, wanted: Callable[[Record], bool]) -> tuple[Record, FailureState | None] | None:
        """Return the first queued record that is wanted, and its failures so far."""
        for record in self._lanes.records():
            if wanted(record):
                return record, self._failing.get(record)
        return None

    # --- intake and drain -----------------------------------------------------------------------

    async def submit(self, record: Record) -> bool:
        """Accept a record for delivery; waits until there is room.

        Between ``drain`` and ``resume`` it returns without accepting the record, also if the drain
        starts while it waits. The partition is then read again from the committed offset.

        Returns:
            ``False`` if the record's key has no room. The record stays in Kafka, and ``reading``
            is asked to go back to it once there is room.
        """
        if not self._accepting:
            return True
        lane = self._lane_of(record)
        epoch = self._epoch
        while True:
            full = self._lanes.is_full(lane)
            if full or (self.left.lanes and self.left.comes_too_early(lane, record.offset)):
                self.left.leave(lane, record.offset, full=full)
                self._lanes.on_record_done = self._on_record_done
                return False
            if self._may_submit(lane):
                break
            await self._lanes.changed()
            if epoch != self._epoch:
                return True
        if self.left.lanes:
            self.left.submitted(lane, record.offset)
        self._lanes.put(lane, record)
        return True

    def _lane_of(self, record: Record) -> LaneKey:
        """Return the lane of a record's key, or that of a record without a key."""
        key = record.key
        if self._key is not None:
            try:
                found = self._key(self._decode(record.value))
                key = None if found is None else str(found).encode("utf-8", "replace")
            except InvalidEvent:
                pass  # reported in its delivery
            except BaseException as error:  # noqa: BLE001 - the consumer's own code
                self._log.function_failed(KEY_FAILED, record, error)
        if key is None:
            return record.topic, record.partition, None, record.offset
        return record.topic, record.partition, key

    def _on_record_done(self, lane: Hashable, remaining: int) -> None:
        if not self.left.lanes:
            self._lanes.on_record_done = None
        elif self._leaves_refused and self._lanes.queued <= self._crowded // 2:
            self._leaves_refused = False
            self.left.read_all_again()
        elif self._lanes.has_room_for_more(remaining):
            self.left.has_room(cast(LaneKey, lane))

    async def drain(self, *, attempt_seconds: float) -> None:
        """Stop intake and end everything under way. When this returns, no delivery runs.

        No new attempt starts: what was never sent is delivered elsewhere without a duplicate.

        Args:
            attempt_seconds: How long attempts and dead letters under way may take. All other
                records are abandoned at once.
        """
        self._accepting = False
        self._epoch += 1
        if self._batches is not None:
            self._batches.drain()
        abandoned = await self._lanes.close(attempt_seconds)
        self.left.clear()
        self._leaves_refused = False
        self._failing.clear()
        if abandoned:
            self._observer.abandoned(abandoned)
            logger.info("Gave back %d unfinished records to the next owner", abandoned)

    def resume(self) -> None:
        """Accept records again."""
        self._accepting = True
        self.last_activity = self._clock()
        if self._batches is not None:
            self._batches.draining = False
        self._lanes.open()

    @property
    def paused(self) -> bool:
        """Whether a person has paused the consumer."""
        return self._gate.paused

    def pause(self, paused: bool) -> None:
        """Send nothing until it is called with False; attempts in flight go on.

        Intake goes on until there is no room; the rest waits in Kafka.
        """
        self._gate.paused = paused
        self._gate.serve()

    def probe_now(self) -> str:
        """Allow the next probe at once; returns why none can go, or an empty text."""
        if self.paused:
            return "the consumer is paused, nothing is sent: resume it first"
        if not self.breaker.probe_now():
            return "nothing to probe: the breaker is closed, records are sent as they come"
        return ""

    def _may_submit(self, lane: LaneKey) -> bool:
        if not self._lanes.has_room(lane):
            return False
        # While records wait at the gate, a bounded number more is accepted, as probes: a probe
        # needs a record that was never sent, since one that failed may never succeed. Lanes with a
        # slot count, too: those that have just started will wait at the gate.
        if self._gate.is_open or lane in self._lanes:
            return True
        limit = self._max_in_flight if self.breaker.closed else MAX_READ_AHEAD
        return self._gate.never_sent + self._lanes.in_flight < limit

    # --- one record -----------------------------------------------------------------------------

    async def _deliver(self, record: Record, lane: Lane) -> None:
        work = _Work(record, lane, int(self._wall_clock() * 1000))
        if record.headers and self._belongs_to_another_consumer(record):
            self._observer.skipped()
            self._finish_unsent(record)
            return
        try:
            work.event = self._decode(record.value)
        except InvalidEvent as error:
            await self._dead_letter(work, broken_record_letter(record, error, self._now()))
            return
        order_id = work.order_id = self._subject(work.event)
        if order_id is None and self._events.subject_error is not None:
            self._log.function_failed(SUBJECT_FAILED, record, self._events.subject_error)
        if record.headers:
            record = work.record = self._without_foreign_id(record, order_id)
        if self._is_delivered(record, order_id):
            self._log.duplicate(record)
            self._observer.duplicate()
            self._finish_unsent(record)
            return
        await self._send(work)

    def _finish_unsent(self, record: Record) -> None:
        self.last_activity = self._clock()
        self._on_finished(record, _NOT_SENT)

    def _finish(self, work: _Work, reason: str, http_status: int | None, error: str) -> None:
        """Finish a record: as delivered, unless there is a reason for its dead letter."""
        if self._failing:
            self._failing.pop(work.record, None)
        outcome = Outcome(
            not reason,
            work.attempts,
            work.order_id,
            paid_at_of(work.event),
            work.started_ms,
            reason,
            http_status,
            error,
        )
        self._on_finished(work.record, outcome)

    def _belongs_to_another_consumer(self, record: Record) -> bool:
        """Whether it is a redriven dead letter of another consumer."""
        consumer = record.header(CONSUMER_HEADER)
        return consumer is not None and consumer != self._consumer.encode()

    def _without_foreign_id(self, record: Record, order_id: OrderId | None) -> Record:
        """Remove an event id that belongs to another record which is not finished.

        The ids that we make are predictable. With a copied id, the target and the deliveries table
        would take the other record for a copy of this one. The id of a redriven record is valid:
        the original is finished by then.
        """
        if record.claimed_position() is None or self._is_finished(record, order_id):
            return record
        self._log.foreign_id(record)
        return record.with_own_id()

    async def _send(self, work: _Work) -> None:
        """Make attempts until the record is finished."""
        record, lane = work.record, work.lane
        work.idempotency_key = record.idempotency_key()
        work.trace = of_record(record.headers) if record.headers else None
        work.number = next(self._numbers)
        work.has_own_limit = lane.refusals > MAX_REFUSALS
        while True:
            work.ticket = NO_PROBE if self._gate.is_open else await self._wait_at_gate(work)
            work.outages = self.breaker.outages
            work.sent_at = self._clock()
            if not work.attempts:
                work.first_sent_at = work.sent_at
            if self._tracer is None:
                answer = await self._attempt(work, work.trace)
            else:
                make = partial(self._attempt, work)
                answer = await self._tracer.attempt(record, work.trace, work.attempts + 1, make)
            work.attempts += 1
            if answer.verdict is Verdict.SUCCESS:
                self._succeeded(work, answer)
                return
            work.last = answer
            work.unanswered = work.unanswered or answer.status is None
            self._failing[record] = FailureState(work.attempts, answer.detail, answer.status)
            if answer.verdict is Verdict.THROTTLED:
                await self._on_throttled(work, answer)
            elif answer.verdict is Verdict.LOCAL:
                self.health.failed_locally(answer, work.ticket)
                self._log.failed_locally(answer, self.last_activity)
                # One line tells it for all records.
                await self._wait_for_retry(work, answer, work.attempts, logged=False)
            elif reason := await self._reason_to_give_up(work, answer):
                counted = len(work.counted)
                letter = refused_letter(record, reason, answer, counted, self._now())
                await self._dead_letter(work, letter)
                return
            elif answer.verdict is Verdict.OUTAGE and self._may_leave(work):
                self._leave_refused(work)
                return
            else:
                await self._wait_for_retry(work, answer, work.failures)

    def _may_leave(self, work: _Work) -> bool:
        return (
            work.attempts >= MIN_ATTEMPTS_TO_LEAVE
            and self.breaker.closed
            and self._lanes.queued >= self._crowded
        )

    def _leave_refused(self, work: _Work) -> None:
        """Leave a record that the target refuses in Kafka, and those behind it."""
        lane = work.lane
        self._failing.pop(work.record, None)
        records = self._lanes.take_out(lane)
        self.left.leave_accepted(cast(LaneKey, lane.key), [one.offset for one in records])
        for record in records:
            self._reading.leave(record)
        self._leaves_refused = True
        self._lanes.on_record_done = self._on_record_done

    async def _on_throttled(self, work: _Work, answer: Answer) -> None:
        """Slow down; the record is sent again at the target's pace.

        A limit of the key's own, such as a user's quota, slows down this key alone.
        """
        lane = work.lane
        work.refusals += 1
        lane.refusals += 1
        before, lane.refused_at = lane.refused_at, self.last_activity
        allowed = 0 if self.pace.refuses_single_keys else MAX_REFUSALS
        if lane.refusals == 1:
            before = work.sent_at - RECENTLY_SECONDS
        own = lane.refusals > allowed and self.health.accepted_others(lane.key, before)
        lane.failing = lane.failing or lane.refusals > allowed
        work.has_own_limit = own
        if self._batches is None:
            if own:
                self.pace.ended(work.sent_at)
                self.pace.excuse(lane.cuts, first=lane.refusals == 1)
                lane.cuts = 0
            else:
                lane.cuts += self.pace.refused(
                    work.sent_at, answer.retry_after_seconds, self._lanes.in_flight - 1
                )
        self.health.throttled(answer, work.ticket)
        if own:
            await self._wait_for_retry(work, answer, work.refusals)
        else:
            wait = self.pace.wait_seconds()
            self._log.throttled(answer, wait, self.pace.rate, self.last_activity)
            # One line for a batch.
            self._retrying(work, answer, work.refusals, wait, logged=not answer.batch_index)
        if lane.refusals > allowed:
            work.number = next(self._numbers)  # behind all that wait

    async def _reason_to_give_up(self, work: _Work, answer: Answer) -> str:
        """Report a failed attempt; return why the record is given up, or an empty text."""
        lane, first = work.lane, not work.own_failures
        if answer.verdict is Verdict.REJECTED or await self._is_gone_for_this_key(work, answer):
            self.health.rejected(lane.key, answer, first=first)
            work.counted.append(work.sent_at)
            return "rejected"
        lane.failing = True
        if answer.failure == "timeout":
            if not self.health.is_quick(self.last_activity - work.sent_at):
                self.concurrency.timed_out(work.sent_at, outage=not self.breaker.closed)
            if self.last_activity - self.breaker.succeeded_at >= HANGING_SECONDS:
                self._lanes.start_slowly(self.last_activity - work.sent_at)
        else:
            self.concurrency.answered()
        self.health.failed(lane.key, answer, work.ticket, first=first, sent_at=work.sent_at)
        work.failures += 1
        work.own_failures += not answer.failed_batch
        in_outage = work.ticket != NO_PROBE or self.breaker.outages > work.outages
        # Those do not count that are never the record's fault, and that another record of the batch
        # may have caused.
        if in_outage or answer.verdict is Verdict.OUTAGE or answer.failed_batch:
            return ""
        sent = work.counted
        sent.append(work.sent_at)
        gives_up = self.health.gives_up(lane.key, len(sent), work.first_sent_at, sent)
        return "retries_exhausted" if gives_up else ""

    async def _is_gone_for_this_key(self, work: _Work, answer: Answer) -> bool:
        """Whether a 404 is about this record's key alone."""
        if answer.verdict is not Verdict.GONE:
            return False
        lane, sent_at = work.lane, work.sent_at
        self.health.gone(lane.key, answer, first=not work.own_failures, sent_at=sent_at)
        if answer.failed_batch or not self.health.works_for_other_keys(lane.key):
            return False
        # The whole address may be disappearing: the answers to other keys decide. They are late if
        # this process or the target has stood still.
        answered_at = self.last_activity
        with self.health.doubt(lane.key, sent_at) as is_alone:
            await lane.pause(GONE_CONFIRM_SECONDS)
            while self.last_activity == answered_at and self._lanes.in_flight > 1:
                await lane.pause(GONE_CONFIRM_SECONDS)
            work.gone += 1
            if not is_alone():
                return False
            if not self.health.other_keys_failed(lane.key):
                return True
            return work.gone > GONE_REPEATS and not self.health.explains(lane.key, work.gone)

    async def _wait_at_gate(self, work: _Work) -> int:
        """Wait until the record may be sent; returns the ticket of its attempt."""
        turn = self._gate.join(work.number, work.failures + work.refusals)
        try:
            await work.lane.pause_until(turn)
        except asyncio.CancelledError:
            self._gate.leave(work.number, turn)
            raise
        return turn.result()

    async def _attempt(self, work: _Work, trace: TraceContext | None) -> Answer:
        record, key = work.record, work.idempotency_key
        value = record.value or b""
        try:
            if self._batches is not None:
                answer = await self._batches.post(
                    value,
                    key,
                    trace,
                    failures=work.failures,
                    last=work.last,
                    alone=work.ticket != NO_PROBE,
                    has_own_limit=work.has_own_limit,
                )
            elif self._poster is not None:
                answer = await self._poster.post(value, key, trace)
            else:
                if work.attempts:  # the last one may have changed the event
                    work.event = self._decode(record.value)
                headers = record.headers
                if trace is not None and trace is not work.trace:
                    # What the function passes on has this attempt as its parent.
                    headers = with_trace_context(headers, trace)
                delivery = Delivery(
                    self._consumer,
                    key,
                    work.attempts + 1,
                    record.topic,
                    record.partition,
                    record.offset,
                    record.key,
                    value,
                    headers,
                    record.timestamp_ms,
                )
                answer = await cast(EventHandler, self._event_handler).handle(work.event, delivery)
        except asyncio.CancelledError:
            self.breaker.withdrawn(work.ticket)
            raise
        except Exception as error:
            # A bug of ours must neither lose the record nor block its key.
            logger.exception("An attempt failed with an unexpected error")
            answer = Answer(Verdict.RETRYABLE, detail=repr(error), error_type=full_name(error))
        if answer.status == CONFLICT and work.unanswered:
            answer = replace(answer, verdict=Verdict.RETRYABLE)
        self.last_activity = now = self._clock()
        if answer.verdict is Verdict.SUCCESS:  # saves two enum look-ups in the usual case
            self._observer.attempted("success", self._success, now - work.sent_at)
        else:
            self._observer.attempted(answer.verdict.value, answer.status_class, now - work.sent_at)
            if self._batches is None and answer.verdict is not Verdict.THROTTLED:
                self.pace.ended(work.sent_at)
        return answer

    def _succeeded(self, work: _Work, answer: Answer) -> None:
        lane, sent_at = work.lane, work.sent_at
        first = not work.own_failures and not answer.batch_index
        self.health.succeeded(lane.key, first=first, sent_at=sent_at)
        if self._batches is None:
            self.pace.accepted(sent_at)
        if self._lanes.limit < self._max_in_flight:
            self.concurrency.answered()
        if self._lanes.starts_slowly:
            self._lanes.succeeded()
        if self._log.conditions:
            self._log.succeeded(throttled=self.pace.throttled)
        if not work.refusals:
            lane.refusals = lane.cuts = 0
        self._observer.delivered(self._paid_to_delivered_seconds(work.record, work.event))
        last = work.last
        self._finish(work, "", last.status if last else None, last.detail if last else "")

    async def _wait_for_retry(
        self, work: _Work, answer: Answer, failures: int, *, logged: bool = True
    ) -> None:
        wait = answer.retry_after_seconds
        if self.breaker.closed:  # otherwise the breaker decides when it is sent
            varies = self.health.fails_for_others(work.lane.key)
            wait = self._policy.wait_seconds(failures, wait, varies=varies)
        self._retrying(work, answer, failures, wait, logged=logged)
        await work.lane.pause(wait)

    def _retrying(
        self, work: _Work, answer: Answer, failures: int, wait_seconds: float, *, logged: bool
    ) -> None:
        if self._lanes.closed:
            raise asyncio.CancelledError  # the partition's next owner sends it again
        self._observer.retrying()
        if logged:
            self._log.retrying(work.record, answer, failures, wait_seconds, self.breaker)

    async def _dead_letter(self, work: _Work, letter: DeadLetter) -> None:
        self._log.given_up(letter)
        self.dead_lettering += 1
        try:
            await self._send_dead_letter(letter, work.lane)
        finally:
            self.dead_lettering -= 1
        self._observer.dead_lettered(letter.reason)
        self._finish(work, letter.reason, letter.http_status, letter.message)

    async def _send_dead_letter(self, letter: DeadLetter, lane: Lane) -> None:
        failures = 0
        while True:
            try:
                await self._dead_letters.send(letter)
                return
            except RelayError as error:
                refusal = str(error)
            except Exception as error:
                logger.exception("A dead letter failed with an unexpected error")
                refusal = repr(error)
            finally:
                self.last_activity = self._clock()
            failures += 1
            wait = self._policy.wait_seconds(failures)
            self._log.dead_letter_refused(letter.record, refusal, failures, wait)
            await lane.pause(wait)

    def _paid_to_delivered_seconds(self, record: Record, event: Any) -> float:
        # Without a payment time in the event, the record's timestamp is used.
        moment = paid_moment(event)
        paid = record.timestamp_ms / 1000 if moment is None else moment.timestamp()
        # A record without a timestamp has -1.
        return max(self._wall_clock() - paid, 0.0) if paid > 0 else 0.0

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock(), UTC)

    def _on_breaker_change(self, state: BreakerState) -> None:
        self._log.breaker_changed(self.breaker, state, self.health.last_failure)
        self.last_activity = self._clock()
        self._gate.serve()
        self._lanes.notify()
