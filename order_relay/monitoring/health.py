"""Liveness by progress, readiness by Kafka, and ending a worker that stands still."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from order_relay.delivery.answer import MAX_RETRY_AFTER_SECONDS
from order_relay.logs.log_line import LogLine
from order_relay.settings import Settings

if TYPE_CHECKING:
    from order_relay.delivery.dispatcher import Dispatcher

logger = logging.getLogger(__name__)

KAFKA_FRESH_SECONDS = 30.0
# The longest pause of a working intake: a rebalance, an unanswered request, and its repetition.
INTAKE_STALL_SECONDS = 140.0
STANDSTILL_INTERVAL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of a health check.

    Attributes:
        ok: Whether it succeeded.
        reasons: What was checked, and what is wrong.
    """

    ok: bool
    reasons: dict[str, object]


class Health:
    """Answers ``/health/live`` and ``/health/ready``.

    Attributes:
        stall_seconds: Deliveries without progress for longer than this stand still.
        intake_stall_seconds: The same for the intake.
        assigned_partitions: The number of partitions that this worker owns.
        unfinished: Records of these partitions from the first unfinished one on, as last measured.
        kafka_seen_at: When Kafka last answered clients other than the consumer's.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: Settings,
        *,
        excused: Callable[[], bool],
        intake_stall_seconds: float = INTAKE_STALL_SECONDS,
        clock: Callable[[], float],
    ) -> None:
        """Watch a consumer.

        Args:
            dispatcher: Its deliveries, which must make progress.
            settings: Its settings.
            excused: Whether deliveries wait for something that a restart would not speed up.
            intake_stall_seconds: How long a working intake may pause while Kafka answers.
            clock: Monotonic seconds, the same as that of ``dispatcher``.
        """
        self._dispatcher = dispatcher
        self._excused = excused
        # The longest pause of working deliveries: a single record waits for the longest backoff or
        # Retry-After, and its next attempt times out.
        longest_backoff_seconds = settings.consumer_retry_max_interval_ms / 1000
        longest_wait = max(MAX_RETRY_AFTER_SECONDS, longest_backoff_seconds)
        self.stall_seconds = longest_wait + settings.external_logger_timeout_seconds + 30.0
        self.intake_stall_seconds = intake_stall_seconds
        self._clock = clock
        self._intake_fault: str | None = None
        self._intake_stopped_at = float("inf")
        self._consumer_silent_at = float("inf")
        self._nothing_due_at = clock()
        self.assigned_partitions = 0
        self.unfinished = 0
        self.kafka_seen_at = float("-inf")

    def note_intake(self, fault: str | None, *, consumer_answered: bool = True) -> None:
        """Store the state of the intake; to be called every few seconds.

        Args:
            fault: What stands still without a known reason; None: nothing.
            consumer_answered: Whether a broker answers the consumer's own client.
        """
        now = self._clock()
        self._intake_fault = fault
        self._intake_stopped_at = min(self._intake_stopped_at, now) if fault else float("inf")
        silent_at = min(self._consumer_silent_at, now)
        self._consumer_silent_at = float("inf") if consumer_answered else silent_at

    def live(self) -> Report:
        """Fail when the intake or the deliveries stand still without a known reason.

        Deliveries stand still when work waits, the breaker is closed and nothing moves. Work is
        every unfinished record, read or not; finished records that wait for their commit are not.
        While Kafka does not answer, only records already read count: a restart would not bring
        Kafka back.

        Call it every few seconds. The time counts from the last call that saw nothing to do, or a
        reason to wait: the first order after a quiet hour has all of it.
        """
        now = self._clock()
        waiting = self._dispatcher.queued or (self.unfinished if self.kafka_answers() else 0)
        sends = self._dispatcher.breaker.closed and not self._dispatcher.paused
        if not waiting or not sends or self._excused():
            self._nothing_due_at = now
        idle_seconds = now - max(self._dispatcher.last_activity, self._nothing_due_at)
        stalled = idle_seconds > self.stall_seconds
        reasons: dict[str, object] = {
            "work_waiting": waiting,
            "idle_seconds": round(idle_seconds, 1),
            "stalled_after_seconds": self.stall_seconds,
            "breaker_closed": sends,
        }
        intake_idle_seconds = self.intake_stopped_seconds()
        if self._intake_fault is not None:
            reasons["intake"] = self._intake_fault
            reasons["intake_idle_seconds"] = round(intake_idle_seconds, 1)
            reasons["intake_stalled_after_seconds"] = self.intake_stall_seconds
        return Report(not stalled and intake_idle_seconds <= self.intake_stall_seconds, reasons)

    def intake_stopped_seconds(self) -> float:
        """Return for how long a step of the intake has stood still; 0 while all move."""
        return max(self._clock() - self._intake_stopped_at, 0.0)

    def ready(self) -> Report:
        """Succeed when partitions are assigned and Kafka answers producer and consumer."""
        reasons: dict[str, object] = {
            "assigned_partitions": self.assigned_partitions,
            "producer_connected": self._producer_connected(),
        }
        if not self._consumer_connected():
            reasons["consumer_connected"] = False
        return Report(bool(self.assigned_partitions) and self.kafka_answers(), reasons)

    def kafka_answers(self) -> bool:
        """Return whether Kafka answered the producer and the consumer's client lately."""
        return self._producer_connected() and self._consumer_connected()

    def _producer_connected(self) -> bool:
        return self._clock() - self.kafka_seen_at < KAFKA_FRESH_SECONDS

    def _consumer_connected(self) -> bool:
        return self._clock() - self._consumer_silent_at < KAFKA_FRESH_SECONDS


class StandsStill(Exception):
    """The worker has work and makes no progress."""


async def end_at_standstill(health: Health, end: Callable[[StandsStill], Awaitable[None]]) -> None:
    """Wait until the worker is not live, then end it, so that its supervisor starts it again.

    Args:
        health: Answers ``/health/live``.
        end: Ends the worker, with status 1.
    """
    failed = 0
    while True:
        report = health.live()
        failed = 0 if report.ok else failed + 1
        # Twice in a row: after SIGSTOP and SIGCONT, what ended meanwhile is seen after the first.
        if failed > 1:
            break
        await asyncio.sleep(STANDSTILL_INTERVAL_SECONDS)
    line = LogLine("Worker stands still, it ends to be started again")
    line.fields.update(report.reasons)
    logger.error(line)
    await end(StandsStill(str(line)))
