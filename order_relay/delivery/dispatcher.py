"""The use case: every record that is taken ends delivered, dead-lettered, or given back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from itertools import count
from typing import Any, cast

from order_relay.delivery import log_messages
from order_relay.delivery.answer import Answer, EventHandler, PostHandler
from order_relay.delivery.back_pressure import Concurrency, Pace
from order_relay.delivery.batches import Batches, Batching
from order_relay.delivery.dead_letters import (
    CONSUMER_HEADER,
    DeadLetter,
    DeadLetterSink,
    broken_record_letter,
    full_name,
    refused_letter,
)
from order_relay.delivery.gate import NO_PROBE, Gate
from order_relay.delivery.lanes import MAX_QUEUED_RECORDS, Abandoned, Lane, Lanes
from order_relay.delivery.left_in_kafka import LaneKey, LeftInKafka, Reading
from order_relay.delivery.observer import DeliveryObserver
from order_relay.delivery.outcome import FailureState, Outcome
from order_relay.delivery.retry import RetryPolicy, Verdict
from order_relay.delivery.target_health import BreakerState, Target, TargetHealth, TargetState
from order_relay.errors import InvalidEvent, RelayError
from order_relay.model.consumer import Delivery
from order_relay.model.events import ORDER_PAID, Events, paid_at_of, paid_moment
from order_relay.model.order_paid import OrderId
from order_relay.model.record import Record
from order_relay.model.trace_context import TraceContext, of_record

# Records taken in while the breaker is not closed: among so many in a row that never succeed there
# is one that does.
MAX_READ_AHEAD = 1000
# The log tells that throttling begins this often at most: a target that refuses one in a hundred
# would fill it.
TOLD_SECONDS = 60.0
# After a 404 for a record, until it is given up.
SECOND_THOUGHTS_SECONDS = 1.0

logger = logging.getLogger(__name__)


def lane_of(record: Record) -> LaneKey:
    """Return the lane of a record: its key's, or its own if it has none."""
    if record.key is None:
        return record.topic, record.partition, None, record.offset
    return record.topic, record.partition, record.key


class Dispatcher:
    """Delivers records to the target, in order within a key.

    ``submit`` is called by one task, record by record; deliveries run in tasks of their own. When
    a record is finished (the target answered 2xx, or its dead letter is kept, or its event was
    delivered before), ``on_finished`` is called, exactly once for a record that is not given up.
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
        key: Callable[[Any], str | bytes | int] | None = None,
        is_delivered: Callable[[Record, OrderId | None], bool] = lambda record, order_id: False,
        is_finished: Callable[[str, int, int], bool] = lambda topic, partition, offset: True,
        policy: RetryPolicy,
        breaker_threshold: int,
        breaker_probe_interval_seconds: float,
        reading: Reading,
        max_in_flight: int,
        max_rate: float | None = None,
        batching: Batching | None = None,
        max_queued: int = MAX_QUEUED_RECORDS,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a relay that takes records in.

        Args:
            target: Where records are delivered, or what handles their events.
            dead_letters: Where records go that cannot be delivered.
            observer: Hears of attempts and ends.
            on_finished: Called with each finished record, and how it ended.
            consumer: The name of the consumer whose records these are.
            events: Reads them.
            key: Gives what orders events, in place of the records' keys.
            is_delivered: Whether a record's event, of that order, was delivered before: it is
                not sent again.
            is_finished: Whether the record at a topic's partition and offset is finished. Only
                then another one may have its id, as a redriven one does.
            policy: Retries and their waits.
            breaker_threshold: First attempts in a row that open the breaker when they fail, see
                ``Breaker``; 0: never, and records are given up after their retries alone.
            breaker_probe_interval_seconds: From one probe to the next.
            reading: Where partitions are read; is asked to go back for records that had no room.
            max_in_flight: Attempts at a time.
            max_rate: Attempts a second; ``None``: as many as the target bears.
            batching: How records are put together; ``None``: each goes alone. An attempt is then a
                request with several records.
            max_queued: Records in memory at a time.
            clock: Monotonic seconds.
            wall_clock: Seconds since the epoch.
        """
        self._logger = cast(PostHandler, target) if hasattr(target, "post") else None
        self._handler = cast(EventHandler, target) if hasattr(target, "handle") else None
        self._success = "function" if self._handler is not None else "2xx"
        self._consumer = consumer
        self._decode = events.decode
        self._subject = events.subject
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
        if batching is not None and batching.size > 1 and self._logger is not None:
            self._batches = Batches(
                self._logger, batching, self.pace, clock, max_requests=max_in_flight
            )
            # Of the records only probes wait at the gate; of the requests it is the pace.
            gate_pace = Pace(clock)
            max_in_flight = max(min(max_in_flight * batching.size, max_queued // 2), max_in_flight)
        self.concurrency = Concurrency(clock, max_in_flight)
        # What the log was told, and not yet that it is over.
        self._outage = self._throttled = self._lacks = False
        self._told_at = float("-inf")
        self._max_in_flight = max_in_flight
        self._numbers = count()
        self._lanes = Lanes(
            self._deliver, max_in_flight=max_in_flight, max_queued=max_queued, clock=clock
        )
        self._gate = Gate(self.breaker, gate_pace, self._lanes.notify)
        self.left = LeftInKafka(reading)
        """Records that had no room."""
        self._accepting = True
        self._epoch = 0
        self.dead_lettering = 0
        """Records that wait for their dead letter's acknowledgement."""
        self.last_activity = clock()
        """When an attempt last ended or records were last let in; on the injected clock."""

    def target(self) -> Target:
        """Return what the target does now."""
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
            failure.text if failure else "",
            self._clock() - failure.at if failure else None,
            self.breaker.probe_in_seconds,
            self.breaker.opened_because if not self.breaker.closed else "",
        )

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self._lanes.in_flight

    @property
    def queued(self) -> int:
        """Records taken and not finished: under way or waiting."""
        return self._lanes.queued

    def find(self, wanted: Callable[[Record], bool]) -> tuple[Record, FailureState | None] | None:
        """Return a record in hand that is wanted, and how its attempts failed so far."""
        for record in self._lanes.records():
            if wanted(record):
                return record, self._failing.get(record)
        return None

    # --- taking in and giving back --------------------------------------------------------------

    async def submit(self, record: Record) -> bool:
        """Take a record for delivery; waits until there is room for another key.

        Returns without taking it between ``drain`` and ``resume``, also if that begins while
        it waits: the record's partition is then read again from the committed offset.

        Returns:
            ``False`` if its own key has as many records as it may have: it is left in Kafka, and
            ``reading`` is asked to go back to it once there is room.
        """
        if not self._accepting:
            return True
        lane = lane_of(record) if self._key is None else self._lane_by_key(record, self._key)
        epoch = self._epoch
        while True:
            full = self._lanes.is_full(lane)
            if full or (self.left.lanes and self.left.comes_too_early(lane, record.offset)):
                self._leave(lane, record, full=full)
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

    def _lane_by_key(self, record: Record, key: Callable[[Any], str | bytes | int]) -> LaneKey:
        """Return the lane of what an event's consumer orders it by."""
        try:
            found = key(self._decode(record.value))
        except Exception:  # noqa: BLE001 - it fails again where it is told, in its delivery
            return lane_of(record)
        return record.topic, record.partition, str(found).encode("utf-8", "replace")

    def _leave(self, lane: LaneKey, record: Record, *, full: bool) -> None:
        # What comes before it has to be read first, even where there is room.
        too_early = self.left.comes_too_early(lane, record.offset)
        self.left.leave(lane, record.offset, full=full and not too_early)
        self._lanes.on_shorter = self._on_shorter

    def _on_shorter(self, lane: Hashable, remaining: int) -> None:
        if not self.left.lanes:
            self._lanes.on_shorter = None
        elif self._lanes.has_much_room(remaining):
            self.left.has_room(cast(LaneKey, lane))

    async def drain(self, *, drain_seconds: float, attempt_seconds: float) -> None:
        """Stop taking in, and end everything under way; when this returns nothing runs.

        Args:
            drain_seconds: How long everything taken may go on as usual. An open breaker ends it:
                nothing can finish then.
            attempt_seconds: How long attempts under way after that may take. The rest is given
                up unfinished.
        """
        self._accepting = False
        self._epoch += 1
        self._lanes.notify()
        await self._lanes.drain(drain_seconds, lambda: not self.breaker.closed)
        if self._batches is not None:
            self._batches.drain()
        abandoned = await self._lanes.close(attempt_seconds)
        self.left.clear()
        if abandoned:
            self._observer.abandoned(abandoned)
            logger.info("Gave back %d unfinished records: they will be redelivered", abandoned)

    def resume(self) -> None:
        """Take records in again."""
        self._accepting = True
        self.last_activity = self._clock()
        self._lanes.open()

    def probe_now(self) -> bool:
        """Let the next probe go at once; ``False`` if the breaker is closed: all goes anyway."""
        return self.breaker.probe_now()

    def _may_submit(self, lane: LaneKey) -> bool:
        if not self._lanes.has_room(lane):
            return False
        # Of those that may not be sent yet a bounded number is taken in: for probes, which need
        # records that were never sent, since those that failed may be some that never succeed.
        # Lanes at an attempt count, too: those that have just begun will wait.
        if self._gate.is_open or lane in self._lanes:
            return True
        most = self._max_in_flight if self.breaker.closed else MAX_READ_AHEAD
        return self._gate.never_sent + self._lanes.in_flight < most

    # --- one record -----------------------------------------------------------------------------

    async def _deliver(self, record: Record, lane: Lane) -> None:
        started_ms = int(self._wall_clock() * 1000)
        if record.headers and self._is_for_another(record):
            self.last_activity = self._clock()
            self._observer.skipped()
            self._on_finished(record, Outcome(delivered=True, attempts=0, duplicate=True))
            return
        try:
            event = self._decode(record.value)
        except InvalidEvent as error:
            letter = broken_record_letter(record, error, self._now())
            await self._dead_letter(letter, None, started_ms, lane, posts=0)
            return
        if record.headers:
            record = self._with_its_id(record)
        order_id = self._subject(event)
        if self._is_delivered(record, order_id):
            self.last_activity = self._clock()
            logger.debug(log_messages.delivered_before(record))
            self._observer.duplicate()
            self._on_finished(record, Outcome(delivered=True, attempts=0, duplicate=True))
            return
        try:
            await self._send(record, event, order_id, started_ms, lane)
        finally:
            if self._failing:
                self._failing.pop(record, None)

    def _is_for_another(self, record: Record) -> bool:
        """Whether it is a dead letter of another consumer that was redriven."""
        consumer = record.header(CONSUMER_HEADER)
        return consumer is not None and consumer != self._consumer.encode()

    def _with_its_id(self, record: Record) -> Record:
        """Return the record, without an event id that is another's which is not finished.

        Our ids can be foretold. The target, and the table of deliveries, would take the other
        record for a copy of this one. A redriven record comes after its first copy is finished.
        """
        batch_index = record.claimed_position()
        if batch_index is None or self._is_finished(record.topic, *batch_index):
            return record
        logger.warning(log_messages.foreign_id(record))
        return record.with_own_id()

    async def _send(
        self, record: Record, event: Any, order_id: OrderId | None, started_ms: int, lane: Lane
    ) -> None:
        idempotency_key = record.idempotency_key()
        trace = of_record(record.headers) if record.headers else None
        number = next(self._numbers)
        posts = failures = alone = attempts = 0
        last: Answer | None = None
        while True:
            ticket = NO_PROBE
            if not self._gate.is_open:
                ticket = await self._wait_at_gate(lane, number, failures)
            sent_at = self._clock()
            if not posts:
                failing_since = sent_at
            answer = await self._attempt(
                record,
                event,
                idempotency_key,
                trace,
                ticket,
                sent_at=sent_at,
                posts=posts,
                failures=failures,
                last=last,
            )
            posts += 1
            if answer.verdict is Verdict.SUCCESS:
                self._succeeded(lane, sent_at, first=not alone and not answer.batch_index)
                self._observer.delivered(self._paid_to_delivered_seconds(record, event))
                outcome = Outcome(
                    True,
                    posts,
                    order_id,
                    paid_at_of(event),
                    started_ms,
                    http_status=last.status if last else None,
                    last_error=last.detail if last else "",
                )
                self._on_finished(record, outcome)
                return
            last = answer
            self._failing[record] = FailureState(posts, answer.detail, answer.status)
            if answer.verdict is Verdict.THROTTLED:
                self._refused(record, answer, ticket, sent_at, posts)
                continue
            if answer.verdict is Verdict.LOCAL:
                self._lacked(answer, ticket)
                await self._wait_for_retry(record, answer, posts, lane)
                continue
            first = not alone
            if answer.verdict is Verdict.REJECTED or await self._is_gone_alone(lane, answer):
                self.health.judged(lane.key, answer, first=first)
                letter = refused_letter(record, "rejected", answer, attempts + 1, self._now())
                await self._dead_letter(letter, event, started_ms, lane, posts=posts)
                return
            self._failed(lane, answer, ticket, sent_at, first=first)
            failures += 1
            alone += not answer.company
            # Neither what is never the record's fault, or may be another one's, nor what fails
            # while the breaker is open counts against it.
            if answer.verdict is not Verdict.OUTAGE and self.breaker.closed and not answer.company:
                attempts += 1
                if self.health.gives_up(lane.key, attempts, failing_since):
                    letter = refused_letter(
                        record, "retries_exhausted", answer, attempts, self._now()
                    )
                    await self._dead_letter(letter, event, started_ms, lane, posts=posts)
                    return
            await self._wait_for_retry(record, answer, failures, lane)

    def _refused(
        self, record: Record, answer: Answer, ticket: int, sent_at: float, posts: int
    ) -> None:
        """The target has had enough: the record is sent again at its pace."""
        if self._batches is None:
            under_way = self._lanes.in_flight - 1
            self.pace.refused(sent_at, answer.retry_after_seconds, under_way)
        self.health.throttled(answer, ticket)
        self._observer.retrying()
        wait = self.pace.wait_seconds()
        self._tell_throttling(answer, wait)
        if not answer.batch_index:  # of a batch one line says it
            logger.warning(log_messages.retrying(record, answer, posts, wait, self.breaker.state))

    async def _is_gone_alone(self, lane: Lane, answer: Answer) -> bool:
        """Whether there is nothing at the address for this record, and something for others."""
        if answer.verdict is not Verdict.GONE or answer.company:
            return False
        self.health.gone(lane.key, answer)
        if not self.health.is_there_for_others(lane.key):
            return False
        # It may be going away for all: what others are told meanwhile decides.
        await lane.pause(SECOND_THOUGHTS_SECONDS)
        return self.health.is_there_for_others(lane.key)

    async def _wait_at_gate(self, lane: Lane, number: int, failures: int) -> int:
        """Wait until a record that failed so often may be sent; returns the ticket for it."""
        turn = self._gate.join(number, failures)
        try:
            await lane.pause(float("inf"), until=turn)
        except BaseException:
            if not turn.cancel():
                self.breaker.withdrawn(turn.result())
            raise
        return turn.result()

    async def _attempt(
        self,
        record: Record,
        event: Any,
        idempotency_key: str,
        trace: TraceContext | None,
        ticket: int,
        *,
        sent_at: float,
        posts: int,
        failures: int,
        last: Answer | None,
    ) -> Answer:
        try:
            if self._batches is not None:
                answer = await self._batches.post(
                    record.value or b"",
                    idempotency_key,
                    trace,
                    failures=failures,
                    last=last,
                    alone=ticket != NO_PROBE,
                )
            elif self._logger is not None:
                answer = await self._logger.post(record.value or b"", idempotency_key, trace)
            else:
                delivery = self._delivery(record, idempotency_key, posts + 1)
                answer = await cast(EventHandler, self._handler).handle(event, delivery)
        except (Abandoned, asyncio.CancelledError):
            self.breaker.withdrawn(ticket)
            raise
        except Exception as error:
            # A fault of ours must neither lose the record nor stop its key for ever.
            logger.exception("An attempt failed in a way nobody foresaw")
            answer = Answer(Verdict.RETRYABLE, detail=repr(error), error_type=full_name(error))
        self.last_activity = now = self._clock()
        if answer.verdict is Verdict.SUCCESS:  # the usual case takes no look at an enum
            self._observer.attempted("success", self._success, now - sent_at)
        else:
            self._observer.attempted(answer.verdict.value, answer.status_class, now - sent_at)
        return answer

    def _delivery(self, record: Record, idempotency_key: str, attempt: int) -> Delivery:
        return Delivery(
            self._consumer,
            idempotency_key,
            attempt,
            record.topic,
            record.partition,
            record.offset,
            record.key,
            record.value or b"",
            record.headers,
            record.timestamp_ms,
        )

    def _succeeded(self, lane: Lane, sent_at: float, *, first: bool) -> None:
        now = self.last_activity
        self.health.succeeded(lane.key, first=first, now=now)
        if self._batches is None:
            self.pace.accepted(sent_at, now)
        if self._lanes.limit < self._max_in_flight:
            self._answered_in_time()
        if self._throttled and not self.pace.throttled:
            self._throttled = False
            logger.warning("Throttling is over: the target takes everything again")
        self._lacks = False

    def _failed(
        self, lane: Lane, answer: Answer, ticket: int, sent_at: float, *, first: bool
    ) -> None:
        if answer.failure == "timeout":
            self.concurrency.timed_out(sent_at)
            self._lanes.limit = self.concurrency.limit
        else:
            self._answered_in_time()
        self.health.failed(lane.key, answer, ticket, first=first)

    def _answered_in_time(self) -> None:
        if self.concurrency.answered():
            self._lanes.limit = self.concurrency.limit

    def _tell_throttling(self, answer: Answer, wait_seconds: float) -> None:
        """Say in the log that the target throttles; that it is over is told by ``_succeeded``."""
        now = self.last_activity
        if not self._throttled and now - self._told_at >= TOLD_SECONDS:
            self._throttled, self._told_at = True, now
            logger.warning(log_messages.throttled(answer, wait_seconds, self.pace.rate))

    def _lacked(self, answer: Answer, ticket: int) -> None:
        self.health.said_nothing(answer, ticket)
        if not self._lacks:
            logger.error(log_messages.lacks(answer))
        self._lacks = True

    async def _wait_for_retry(
        self, record: Record, answer: Answer, failures: int, lane: Lane
    ) -> None:
        if self.breaker.closed:
            wait = self._policy.wait_seconds(failures, answer.retry_after_seconds)
        else:
            wait = answer.retry_after_seconds  # the breaker decides when to go on
        self._observer.retrying()
        logger.warning(log_messages.retrying(record, answer, failures, wait, self.breaker.state))
        await lane.pause(wait)

    async def _dead_letter(
        self,
        letter: DeadLetter,
        event: Any,
        started_ms: int,
        lane: Lane,
        *,
        posts: int,
    ) -> None:
        logger.error(log_messages.given_up(letter))
        self.dead_lettering += 1
        self._lanes.notify()
        try:
            await self._send_dead_letter(letter, lane)
        finally:
            self.dead_lettering -= 1
        self._observer.dead_lettered(letter.reason)
        outcome = Outcome(
            False,
            posts,
            self._subject(event) if event is not None else None,
            paid_at_of(event),
            started_ms,
            letter.reason,
            letter.http_status,
            letter.message,
        )
        self._on_finished(letter.record, outcome)

    async def _send_dead_letter(self, letter: DeadLetter, lane: Lane) -> None:
        failures = 0
        while (refusal := await self._refusal(letter)) is not None:
            failures += 1
            wait = self._policy.wait_seconds(failures)
            logger.error(log_messages.letter_refused(letter.record, failures, wait, refusal))
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

    def _paid_to_delivered_seconds(self, record: Record, event: Any) -> float:
        # Of an event that does not tell the record's own timestamp stands in.
        moment = paid_moment(event)
        paid = record.timestamp_ms / 1000 if moment is None else moment.timestamp()
        # A record can be without a timestamp, too (-1).
        return max(self._wall_clock() - paid, 0.0) if paid > 0 else 0.0

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_clock(), UTC)

    def _on_breaker_change(self, state: BreakerState) -> None:
        if state is BreakerState.OPEN and not self._outage:
            self._outage = True
            logger.error(
                log_messages.breaker_open(self.breaker.opened_because, self.health.last_failure)
            )
        elif state is BreakerState.CLOSED:
            self._outage = False
            logger.warning("Breaker closed: the target works again")
        self.last_activity = self._clock()
        self._gate.serve()
        self._lanes.notify()
