"""Hand-written fakes of what the dispatcher uses, and a dispatcher made of them."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from order_relay.delivery.answer import (
    JSON,
    Answer,
    EventHandler,
    PostHandler,
    RetryPolicy,
    Verdict,
    judge,
)
from order_relay.delivery.batches import Batching
from order_relay.delivery.dead_letters import DeadLetter
from order_relay.delivery.dispatcher import Dispatcher
from order_relay.delivery.outcome import Outcome
from order_relay.model.record import Record
from order_relay.model.trace_context import TraceContext
from tests.support.orders import order_value

# 2025-12-19T10:30:00Z; virtual time begins here.
START_SECONDS = 1_766_140_200.0


class StandingClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def record(
    offset: int,
    key: str | None = "order",
    *,
    partition: int = 0,
    value: bytes | None = b"",
    headers: Iterable[tuple[str, bytes | None]] = (),
) -> Record:
    """A record of the source topic; a valid order unless a value is given."""
    return Record(
        topic="order-paid-events",
        partition=partition,
        offset=offset,
        generation=1,
        key=None if key is None else key.encode(),
        value=order_value(offset) if value == b"" else value,
        headers=tuple(headers),
        timestamp_ms=round(START_SECONDS * 1000),
    )


def answer(status: int, detail: str = "", retry_after_seconds: float = 0.0) -> Answer:
    """The target's answer with that status."""
    return Answer(judge(status), status, detail, retry_after_seconds)


NO_ANSWER = Answer(Verdict.RETRYABLE, detail="reset", error_type="aiohttp.ClientOSError")


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one attempt.

    Attributes:
        outcome: The answer, or the error that is raised.
        seconds: How long it takes; infinite for an attempt that ends only by cancellation.
    """

    outcome: Answer | Exception
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as the target saw it; ``at`` is the loop's time when it began."""

    at: float
    event_id: str
    body: bytes
    trace: TraceContext | None = None


class BrokenRule(BaseException):
    """An assertion of a test inside the code under test, which must not catch it as a fault."""


def must(condition: bool, rule: str) -> None:
    """Assert a rule in a callback of the code under test."""
    if not condition:
        raise BrokenRule(rule)


class FakeTarget:
    """An ``PostHandler`` with a script.

    Attempts for a record follow its own plan first, then what ``decide`` says for
    their event id: by default the ``default`` step.
    """

    def __init__(self) -> None:
        self.default = Step(answer(200))
        self.attempts: list[Attempt] = []
        self.under_way: list[str] = []
        self.most_under_way = 0
        self.on_attempt: Callable[[], None] = lambda: None
        self.decide: Callable[[str], Step] = lambda event_id: self.default
        self._plans: dict[str, deque[Step]] = {}

    def plan(self, planned: Record, *steps: Step | Answer | Exception) -> Record:
        """Add steps for the next attempts at this record, and return it."""
        plan = self._plans.setdefault(planned.idempotency_key(), deque())
        plan.extend(step if isinstance(step, Step) else Step(step) for step in steps)
        return planned

    async def post(
        self,
        body: bytes,
        idempotency_key: str,
        trace: TraceContext | None = None,
        *,
        content_type: str = JSON,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        self.attempts.append(Attempt(loop.time(), idempotency_key, body, trace))
        plan = self._plans.get(idempotency_key)
        step = plan.popleft() if plan else self.decide(idempotency_key)
        self.under_way.append(idempotency_key)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        self.on_attempt()
        try:
            if step.seconds == float("inf"):
                await loop.create_future()
            await asyncio.sleep(step.seconds)
        finally:
            self.under_way.remove(idempotency_key)
        if isinstance(step.outcome, Exception):
            raise step.outcome.with_traceback(None)
        return step.outcome

    def redact(self, text: str) -> str:
        """Return the text; there are no secrets."""
        return text

    def times(self, of: Record | None = None) -> list[float]:
        """When attempts began: of one record, or of all."""
        return [
            attempt.at
            for attempt in self.attempts
            if of is None or attempt.event_id == of.idempotency_key()
        ]


class FakeDeadLetters:
    """A ``DeadLetterSink`` in memory that raises ``refusals`` first, one a call."""

    def __init__(self) -> None:
        self.refusals: deque[Exception] = deque()
        self.calls: list[tuple[float, int]] = []
        self.letters: list[DeadLetter] = []

    async def send(self, letter: DeadLetter) -> None:
        self.calls.append((asyncio.get_running_loop().time(), letter.record.offset))
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.popleft().with_traceback(None)
        self.letters.append(letter)


class RecordingObserver:
    """A ``DeliveryObserver`` that records its calls."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, float]] = []
        self.retries = 0
        self.paid_to_delivered_seconds: list[float] = []
        self.duplicates = 0
        self.skipped_records = 0
        self.dead_letter_reasons: list[str] = []
        self.abandoned_records: list[int] = []

    def attempted(self, result: str, status_class: str, seconds: float) -> None:
        self.attempts.append((result, seconds))

    def retrying(self) -> None:
        self.retries += 1

    def delivered(self, paid_to_delivered_seconds: float) -> None:
        self.paid_to_delivered_seconds.append(paid_to_delivered_seconds)

    def duplicate(self) -> None:
        self.duplicates += 1

    def skipped(self) -> None:
        self.skipped_records += 1

    def dead_lettered(self, reason: str) -> None:
        self.dead_letter_reasons.append(reason)

    def abandoned(self, records: int) -> None:
        self.abandoned_records.append(records)


class FakeReading:
    """A ``Reading`` that records its calls.

    Attributes:
        asked: Partition, and the offset to go back to, or "on" or "paused".
        on_asked: Called with each offset; None for the first record never read.
        on_left: Called with each record that was accepted, and is left after all.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | str]] = []
        self.on_asked: Callable[[int | None], None] = lambda offset: None
        self.on_left: Callable[[Record], None] = lambda record: None

    def leave(self, record: Record) -> None:
        self.on_left(record)

    def read_again(self, topic: str, partition: int, offset: int) -> None:
        self.asked.append((partition, offset))
        self.on_asked(offset)

    def read_on(self, topic: str, partition: int, *, paused: bool) -> None:
        self.asked.append((partition, "paused" if paused else "on"))
        self.on_asked(None)

    def new(self) -> list[tuple[int, int | str]]:
        """Return the calls since the last time."""
        asked, self.asked = self.asked, []
        return asked


class Bench:
    """A dispatcher with fakes on the running loop's clock. Create it inside the loop."""

    def __init__(
        self,
        *,
        policy: RetryPolicy | None = None,
        breaker_threshold: int = 0,
        breaker_probe_interval_seconds: float = 5.0,
        max_in_flight: int = 8,
        max_queued: int = 1000,
        max_rate: float | None = None,
        batching: Batching | None = None,
        target: PostHandler | EventHandler | None = None,
        **options: Any,
    ) -> None:
        """Make it; other options go to the dispatcher."""
        clock = asyncio.get_running_loop().time
        self.target = FakeTarget()
        self.dead_letters = FakeDeadLetters()
        self.observer = RecordingObserver()
        self.reading = FakeReading()
        self.finished: list[Record] = []
        self.outcomes: list[Outcome] = []
        self.on_finished: Callable[[Record], None] = lambda finished: None
        self.delivered_before: set[str] = set()
        self._awaited: asyncio.Future[None] | None = None
        self.dispatcher = Dispatcher(
            target or self.target,
            self.dead_letters,
            self.observer,
            self._finish,
            is_delivered=lambda one, order_id: one.idempotency_key() in self.delivered_before,
            is_finished=lambda one, order_id: (
                (one.topic, *(one.claimed_position() or ())) in map(_position, self.finished)
            ),
            policy=policy or RetryPolicy(),
            breaker_threshold=breaker_threshold,
            breaker_probe_interval_seconds=breaker_probe_interval_seconds,
            reading=self.reading,
            max_in_flight=max_in_flight,
            max_queued=max_queued,
            max_rate=max_rate,
            batching=batching,
            clock=clock,
            wall_clock=lambda: START_SECONDS + clock(),
            **options,
        )

    @property
    def finished_offsets(self) -> list[int]:
        """The offsets of the finished records, in the order in which they finished."""
        return [one.offset for one in self.finished]

    async def submit(self, *records: Record) -> None:
        """Submit records one after another, as the agent does; fails if one has to wait."""
        for one in records:
            async with asyncio.timeout(0.5):
                await self.dispatcher.submit(one)

    async def deliver(self, *records: Record) -> None:
        """Submit records, and wait until as many more are finished."""
        count = len(self.finished) + len(records)
        await self.submit(*records)
        await self.until_finished(count)

    async def until_finished(self, count: int, within_seconds: float = 100_000.0) -> None:
        """Wait until that many records are finished in all."""
        async with asyncio.timeout(within_seconds):
            while len(self.finished) < count:
                self._awaited = asyncio.get_running_loop().create_future()
                await self._awaited

    def _finish(self, finished: Record, outcome: Outcome) -> None:
        self.finished.append(finished)
        self.outcomes.append(outcome)
        self.on_finished(finished)
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)


def _position(one: Record) -> tuple[str, int, int]:
    return one.topic, one.partition, one.offset
