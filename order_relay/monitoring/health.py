"""Liveness by progress, readiness by partitions and producer. Pure; the clock is injected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from order_relay.delivery.retry import MAX_RETRY_AFTER_SECONDS

KAFKA_FRESH_SECONDS = 30.0
# The longest silence of a working intake: a rebalance, a request that is not answered, and again.
INTAKE_STALL_SECONDS = 140.0


class Activity(Protocol):
    """What health asks of the delivering half."""

    last_activity: float

    @property
    def queued(self) -> int:
        """Records taken and not finished."""


@dataclass(frozen=True, slots=True)
class Report:
    """An answer to a health question.

    Attributes:
        ok: The answer.
        reasons: What is wrong, or what was looked at.
    """

    ok: bool
    reasons: dict[str, object]


class Health:
    """Answers ``/health/live`` and ``/health/ready``."""

    def __init__(
        self,
        deliveries: Activity,
        *,
        breaker_closed: Callable[[], bool],
        dead_lettering: Callable[[], int],
        recovering: Callable[[], bool] = lambda: False,
        in_threads: Callable[[], int] = lambda: 0,
        attempt_timeout_seconds: float,
        longest_backoff_seconds: float = 0.0,
        intake_stall_seconds: float = INTAKE_STALL_SECONDS,
        clock: Callable[[], float],
    ) -> None:
        """Watch ``deliveries``.

        Args:
            deliveries: What has to move.
            breaker_closed: Whether deliveries should be moving.
            dead_lettering: Dead letters that wait for Kafka's acknowledgement.
            recovering: Whether deliveries wait for a table to be read.
            in_threads: Calls of a plain function under way. They may take as long as they like: a
                restart would end other consumers' work, too, and this one's would hang again.
            attempt_timeout_seconds: Longest attempt.
            longest_backoff_seconds: Longest wait between two attempts that the target did not
                ask for.
            intake_stall_seconds: How long a working intake may stand still while Kafka answers.
            clock: Monotonic seconds, the same as that of ``deliveries``.
        """
        self._deliveries = deliveries
        self._breaker_closed = breaker_closed
        self._dead_lettering = dead_lettering
        self._recovering = recovering
        self._in_threads = in_threads
        # The longest silence of a working relay: one record, in the longest backoff or told to come
        # back as late as is listened to, whose next attempt times out.
        longest_wait = max(MAX_RETRY_AFTER_SECONDS, longest_backoff_seconds)
        self.stall_seconds = longest_wait + attempt_timeout_seconds + 30.0
        self.intake_stall_seconds = intake_stall_seconds
        self._clock = clock
        self._intake_fault: str | None = None
        self._intake_stopped_at = float("inf")
        self._consumer_silent_at = float("inf")
        self.assigned_partitions = 0
        self.unfinished = 0
        """Records of the assigned partitions from the first unfinished one on, when measured."""
        self.kafka_seen_at = float("-inf")
        """When Kafka last answered the producer, on the injected clock."""

    def note_intake(self, fault: str | None, *, consumer_answered: bool = True) -> None:
        """Take note of what of the intake stands still, if anything does; every few seconds.

        Args:
            fault: What stands still for no reason that is known.
            consumer_answered: Whether a broker answers the consumer's own client.
        """
        now = self._clock()
        self._intake_fault = fault
        self._intake_stopped_at = min(self._intake_stopped_at, now) if fault else float("inf")
        silent_at = min(self._consumer_silent_at, now)
        self._consumer_silent_at = float("inf") if consumer_answered else silent_at

    def live(self) -> Report:
        """Fail when the intake, or deliveries, stand still for no reason that is known.

        Deliveries do when work is waiting and the breaker is closed.
        Work is what is in hand, on its way there, or was not read yet; what is finished and waits
        for its commit is none. While Kafka itself does not answer, only records in hand count: a
        restart would not bring Kafka back.
        """
        waiting = self._deliveries.queued or (self.unfinished if self.kafka_answers() else 0)
        idle_seconds = self._clock() - self._deliveries.last_activity
        stalled = (
            waiting > 0
            and self._breaker_closed()
            and not self._dead_lettering()
            and not self._recovering()
            and not self._in_threads()
            and idle_seconds > self.stall_seconds
        )
        reasons: dict[str, object] = {
            "work_waiting": waiting,
            "idle_seconds": round(idle_seconds, 1),
            "stalled_after_seconds": self.stall_seconds,
            "breaker_closed": self._breaker_closed(),
        }
        intake_idle_seconds = self.intake_stopped_seconds()
        if self._intake_fault is not None:
            reasons["intake"] = self._intake_fault
            reasons["intake_idle_seconds"] = round(intake_idle_seconds, 1)
            reasons["intake_stalled_after_seconds"] = self.intake_stall_seconds
        return Report(not stalled and intake_idle_seconds <= self.intake_stall_seconds, reasons)

    def intake_stopped_seconds(self) -> float:
        """For how long a step of the intake has stood still; 0 while all move."""
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
        """Whether Kafka answered lately: the producer, and the consumer's own client."""
        return self._producer_connected() and self._consumer_connected()

    def _producer_connected(self) -> bool:
        return self._clock() - self.kafka_seen_at < KAFKA_FRESH_SECONDS

    def _consumer_connected(self) -> bool:
        return self._clock() - self._consumer_silent_at < KAFKA_FRESH_SECONDS
