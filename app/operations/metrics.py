"""The catalogue of the relay's metrics: every name, label and bucket, once.

Base units; labels are bounded, never an order id. Each worker has a registry of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from app.delivery.target_health import Target
from app.operations.loop_metrics import LoopCounter, LoopHistogram
from app.operations.target_figures import TargetCollector
from app.operations.web_connections import CLOSED_REASONS
from app.publishing.fallback import FallbackStats

PREFIX = "order_relay"
# An attempt takes from a loopback's millisecond to the logger's time-out.
ATTEMPT_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# From paid to delivered: backoffs are seconds, outages minutes and hours.
DELIVERY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
                    900.0, 3600.0, 14400.0)  # fmt: skip
# The loop's own timer is good to a millisecond; from a second on the worker seems to hang.
LOOP_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DEAD_LETTER_REASONS = (
    "tombstone",
    "invalid_utf8",
    "invalid_json",
    "invalid_event",
    "rejected",
    "retries_exhausted",
)
OUTCOMES = ("delivered", "dead_lettered", "duplicate", "abandoned")
_DELIVERED, _DEAD_LETTERED, _DUPLICATE, _ABANDONED = ((outcome,) for outcome in OUTCOMES)
# Every result of an attempt (app.delivery.retry.Verdict), and the status classes it comes with.
ATTEMPT_RESULTS = {
    "success": ("2xx",),
    "retryable": ("4xx", "5xx", "timeout", "connect", "reset", "tls", "other"),
    "throttled": ("429", "5xx"),
    "outage": ("3xx", "4xx", "tls"),
    "gone": ("4xx",),
    "rejected": ("4xx",),
    "local": ("local",),
}
# What the publishing half (its PublishObserver) and the page before it say, and the label it is
# counted under.
PUBLISH_RESULTS = {
    "acknowledged": "published",
    "saved": "saved",
    "invalid": "refused",
    "too_large": "refused",
    "busy": "busy",
    "failed": "failed",
}
REPLAY_RESULTS = {"published": "published", "retried": "retry", "failed": "failed"}


class Metrics:
    """The metrics of one worker; also the observer of both halves, which counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register the whole catalogue, every known label at 0."""
        # The time of creation beside every counter says nothing that is not known otherwise.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        # What changes with every record is changed by the event loop's thread alone.
        self._deliveries = LoopCounter(
            f"{PREFIX}_deliveries",
            "Records by how they ended in this worker.",
            ("outcome",),
            [(outcome,) for outcome in OUTCOMES],
            self.registry,
        )
        self._attempts = LoopCounter(
            f"{PREFIX}_delivery_attempts",
            "POSTs to the external logger by their result, and by the class of the status (or the "
            "kind of failure without one).",
            ("result", "status"),
            [(result, status) for result, of in ATTEMPT_RESULTS.items() for status in of],
            self.registry,
        )
        self._retries = self._counter(
            "delivery_retries", "Attempts that failed and are to be made again."
        )
        self._dead_letters = self._counter(
            "dead_letters",
            "Records acknowledged by the dead-letter topic, or else saved in the fallback table.",
            "reason",
        )
        self._dead_letters_saved = self._counter(
            "dead_letters_saved",
            "Those of the dead letters that Kafka refused and the fallback table keeps.",
        )
        self._attempt_seconds = LoopHistogram(
            f"{PREFIX}_delivery_attempt_seconds",
            "Time from POST to answer.",
            ATTEMPT_BUCKETS,
            self.registry,
        )
        self._paid_to_delivered = LoopHistogram(
            f"{PREFIX}_paid_to_delivered_seconds",
            "Time from paidAt (the record's timestamp where paidAt has no zone) to the 2xx.",
            DELIVERY_BUCKETS,
            self.registry,
        )
        self._in_flight = self._gauge("in_flight", "POSTs and dead letters under way.")
        self._held = self._gauge(
            "held_records", "Records taken and not finished: in flight, in backoff, or queued."
        )
        self._left = self._gauge(
            "left_in_kafka_records",
            "Records that were read and had no room: they are left in Kafka and read again.",
        )
        self._breaker = self._gauge("breaker_state", "0 closed, 1 half-open, 2 open.")
        self._target = TargetCollector(PREFIX)  # four gauges, with their comments
        self.registry.register(self._target)
        self._oldest = self._gauge(
            "oldest_unfinished_seconds", "Age of the oldest record read and not finished."
        )
        self.lag = self._gauge(
            "consumer_lag",
            "Records from the committed offset to the end of the partition, those behind an open "
            "transaction too.",
            "topic",
            "partition",
        )
        self.transaction_open = self._gauge(
            "transaction_open_seconds",
            "How long one open transaction of a producer has held back what stands behind it; 0 "
            "without one.",
            "topic",
            "partition",
        )
        self.near_deletion = self._gauge(
            "near_deletion_records",
            "Unfinished records that are older than three quarters of the topic's retention: Kafka "
            "deletes them soon.",
            "topic",
            "partition",
        )
        self._deleted = self._counter(
            "deleted_records",
            "Records that Kafka deleted before they were delivered: retention was shorter than the "
            "wait. They are lost.",
        )
        self._published = self._counter(
            "published",
            "Events given to this worker to publish: published (Kafka has it), saved (Kafka "
            "refused, the fallback table has it), refused (no event, or too large), busy "
            "(too many at once, the caller was told to come again), failed (neither has it, the "
            "caller was told).",
            "result",
        )
        self._replayed = self._counter(
            "fallback_replayed",
            "Rows of the fallback table that this worker tried: published, retry (refused, to be "
            "tried again), failed (refused for good, for a person).",
            "result",
        )
        self._fallback_messages = self._gauge(
            "fallback_messages",
            "Rows of the fallback table by status. Every worker shows the same table: take the "
            "maximum, never the sum. NaN while the database does not answer.",
            "status",
        )
        self._fallback_oldest = self._gauge(
            "fallback_oldest_pending_seconds",
            "Age of the oldest pending row of the fallback table, 0 without one; NaN while the "
            "database does not answer.",
        )
        self._fallback_up = self._gauge(
            "fallback_database_up",
            "1 when the fallback table's database took a write when last tried, else 0.",
        )
        self._fallback_replaced = self._counter(
            "fallback_files_replaced",
            "Times that this worker found the fallback table's SQLite file deleted or replaced "
            "while it was open: the rows in it are lost, unless the file still is somewhere.",
        )
        self._assigned = self._gauge(
            "assigned_partitions",
            "Partitions of the source topic that this worker owns; 0 while the group rebalances.",
        )
        self._topic_partitions = self._gauge(
            "topic_partitions",
            "Partitions of the source topic, which the workers of the group share; 0 until Kafka "
            "was first asked. The same from every worker.",
        )
        self._kafka_up = self._gauge(
            "kafka_up", "1 when Kafka answered this worker in the last 30 s, else 0."
        )
        self._intake_stopped = self._gauge(
            "intake_stopped_seconds",
            "How long a step of the intake has stood still while Kafka answers; 0 while all move.",
        )
        self._loop_lag = self._histogram(
            "event_loop_lag_seconds",
            "How much later than asked the event loop woke a task, measured four times a second.",
            LOOP_LAG_BUCKETS,
        )
        self._table_entries = self._gauge(
            "table_entries",
            "Entries of the table on this worker, estimated for RocksDB; 0 when it is off.",
            "table",
        )
        self._table_entries.labels("deliveries")
        self._table_recovering = self._gauge(
            "table_recovering", "1 while the table is read from its changelog, else 0."
        )
        self._table_recovery_seconds = self._gauge(
            "table_recovery_seconds", "How long the last reading of the table took."
        )
        self._web_closed = self._counter(
            "web_connections_closed",
            "Connections that the web server closed: silent (no whole request came in time), "
            "crowded (there were too many, and its client had been silent for longest).",
            "reason",
        )
        for reason in CLOSED_REASONS:
            self._web_closed.labels(reason)
        self._log_lines_left_out = self._counter(
            "log_lines_left_out", "Log lines that were left out since nobody read the log."
        )
        for result in PUBLISH_RESULTS.values():
            self._published.labels(result)
        for result in REPLAY_RESULTS.values():
            self._replayed.labels(result)
        self.counted(None, works=False)
        for reason in DEAD_LETTER_REASONS:
            self._dead_letters.labels(reason)

    def watch(
        self,
        *,
        in_flight: Callable[[], int],
        held: Callable[[], int],
        breaker_state: Callable[[], int],
        oldest_unfinished_seconds: Callable[[], float],
    ) -> None:
        """Read these gauges from their owners at every scrape."""
        self._in_flight.set_function(in_flight)
        self._held.set_function(held)
        self._breaker.set_function(breaker_state)
        self._oldest.set_function(oldest_unfinished_seconds)

    def watch_target(
        self, *, target: Callable[[], Target], left_in_kafka: Callable[[], int]
    ) -> None:
        """Read at every scrape what the target does, and what had no room meanwhile."""
        self._target.target = target
        self._left.set_function(left_in_kafka)

    def watch_group(
        self, *, assigned_partitions: Callable[[], int], kafka_answers: Callable[[], bool]
    ) -> None:
        """Read at every scrape what this worker has of the group, and whether Kafka is there."""
        self._assigned.set_function(assigned_partitions)
        self._kafka_up.set_function(kafka_answers)

    def watch_intake(self, stopped_seconds: Callable[[], float]) -> None:
        """Read at every scrape for how long the intake has stood still."""
        self._intake_stopped.set_function(stopped_seconds)

    def topic_partitions(self, partitions: int) -> None:
        """Kafka says that the source topic has so many partitions."""
        self._topic_partitions.set(partitions)

    def loop_lagged(self, seconds: float) -> None:
        """The event loop woke a task so much later than asked."""
        self._loop_lag.observe(seconds)

    def web_connection_closed(self, reason: str) -> None:
        """The web server closed a connection, see ``CLOSED_REASONS``."""
        self._web_closed.labels(reason).inc()

    def log_line_left_out(self) -> None:
        """A log line had no room, since nobody reads the log; called by any thread."""
        self._log_lines_left_out.inc()

    def watch_table(self, *, entries: Callable[[], int], recovering: Callable[[], bool]) -> None:
        """Read the gauges of the table ``deliveries`` from its owner at every scrape."""
        self._table_entries.labels("deliveries").set_function(entries)
        self._table_recovering.set_function(recovering)

    def recovered(self, seconds: float) -> None:
        """The table was read from its changelog."""
        self._table_recovery_seconds.set(seconds)

    # --- DeliveryObserver -----------------------------------------------------------------------

    def attempted(self, result: str, status_class: str, seconds: float) -> None:
        """See ``DeliveryObserver``."""
        self._attempts.counts[result, status_class] += 1
        self._attempt_seconds.observe(seconds)

    def retrying(self) -> None:
        """See ``DeliveryObserver``."""
        self._retries.inc()

    def delivered(self, paid_to_delivered_seconds: float) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries.counts[_DELIVERED] += 1
        self._paid_to_delivered.observe(paid_to_delivered_seconds)

    def duplicate(self) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries.counts[_DUPLICATE] += 1

    def dead_lettered(self, reason: str) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries.counts[_DEAD_LETTERED] += 1
        self._dead_letters.labels(reason).inc()

    def abandoned(self, records: int) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries.counts[_ABANDONED] += records

    def deleted(self, records: int) -> None:
        """Kafka deleted so many records before they were delivered."""
        self._deleted.inc(records)

    # --- PublishObserver, and the fallback table's figures --------------------------------------

    def published(self, result: str) -> None:
        """See ``PublishObserver``."""
        self._published.labels(PUBLISH_RESULTS.get(result, "failed")).inc()

    def replayed(self, result: str) -> None:
        """See ``PublishObserver``."""
        self._replayed.labels(REPLAY_RESULTS.get(result, "failed")).inc()

    def dead_letter_saved(self) -> None:
        """Kafka refused a dead letter, and the fallback table keeps it."""
        self._dead_letters_saved.inc()

    def fallback_replaced(self) -> None:
        """The fallback table's file was deleted or replaced."""
        self._fallback_replaced.inc()

    def counted(self, stats: FallbackStats | None, *, works: bool) -> None:
        """Show the figures of the fallback table (``None``: unknown), and whether it works."""
        self._fallback_up.set(works)
        for status in ("pending", "published", "failed"):
            rows = math.nan if stats is None else getattr(stats, status)
            self._fallback_messages.labels(status).set(rows)
        self._fallback_oldest.set(math.nan if stats is None else stats.oldest_pending_seconds)

    # --- construction ---------------------------------------------------------------------------

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, buckets=buckets, registry=self.registry)
