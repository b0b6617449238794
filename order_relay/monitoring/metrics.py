"""The catalogue of the relay's metrics: every name, label and bucket, once.

Base units; labels are bounded, never an order id. Each worker has a registry of its own. What is
about one consumer has the label ``consumer``.
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

from order_relay.delivery.target_health import Target
from order_relay.fallback.store import FallbackStats
from order_relay.monitoring.loop_metrics import LoopCounter, LoopHistogram
from order_relay.monitoring.target_figures import TargetCollector

PREFIX = "order_relay"
CONSUMER = "consumer"
# An attempt takes from a loopback's millisecond to the target's time-out.
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
OUTCOMES = ("delivered", "dead_lettered", "duplicate", "skipped", "abandoned")
_DELIVERED, _DEAD_LETTERED, _DUPLICATE, _SKIPPED, _ABANDONED = ((outcome,) for outcome in OUTCOMES)
# Why the web server closed a connection.
CLOSED_REASONS = ("silent", "crowded")
# Every result of an attempt (``Verdict``), and the status classes it comes with.
ATTEMPT_RESULTS = {
    "success": ("2xx", "function"),
    "retryable": ("4xx", "5xx", "timeout", "connect", "reset", "tls", "other", "function"),
    "throttled": ("429", "5xx", "function"),
    "outage": ("3xx", "4xx", "tls", "function"),
    "gone": ("4xx",),
    "rejected": ("4xx", "function"),
    "local": ("local",),
}
# The results of ``Publisher``, of its page and of ``Replay``, and the label of each.
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
    """The metrics of one worker."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register the whole catalogue, every known label at 0; consumers follow with ``of``."""
        # The time of creation beside every counter says nothing that is not known otherwise.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        self._families = _Families(self.registry)
        self._consumers: dict[str, ConsumerMetrics] = {}
        self._published = _counter(
            self.registry,
            "published",
            "Events given to this worker to publish: published (Kafka has it), saved (Kafka "
            "refused, the fallback table has it), refused (no event, or too large), busy "
            "(too many at once, the caller was told to come again), failed (neither has it, the "
            "caller was told).",
            "result",
        )
        self._replayed = _counter(
            self.registry,
            "fallback_replayed",
            "Rows of the fallback table that this worker tried: published, retry (refused, to be "
            "tried again), failed (refused for good, for a person).",
            "result",
        )
        self._fallback_messages = _gauge(
            self.registry,
            "fallback_messages",
            "Rows of the fallback table by status. Every worker shows the same table: take the "
            "maximum, never the sum. NaN while the database does not answer.",
            "status",
        )
        self._fallback_oldest = _gauge(
            self.registry,
            "fallback_oldest_pending_seconds",
            "Age of the oldest pending row of the fallback table, 0 without one; NaN while the "
            "database does not answer.",
        )
        self._fallback_up = _gauge(
            self.registry,
            "fallback_database_up",
            "1 when the fallback table's database took a write when last tried, else 0.",
        )
        self._fallback_replaced = _counter(
            self.registry,
            "fallback_files_replaced",
            "Times that this worker found the fallback table's SQLite file deleted or replaced "
            "while it was open: the rows in it are lost, unless the file still is somewhere.",
        )
        self._loop_lag = _histogram(
            self.registry,
            "event_loop_lag_seconds",
            "How much later than asked the event loop woke a task, measured four times a second.",
            LOOP_LAG_BUCKETS,
        )
        self._web_closed = _counter(
            self.registry,
            "web_connections_closed",
            "Connections that the web server closed: silent (no whole request came in time), "
            "crowded (there were too many, and its client had been silent for longest).",
            "reason",
        )
        for reason in CLOSED_REASONS:
            self._web_closed.labels(reason)
        self._log_lines_left_out = _counter(
            self.registry,
            "log_lines_left_out",
            "Log lines that were left out since nobody read the log.",
        )
        for result in PUBLISH_RESULTS.values():
            self._published.labels(result)
        for result in REPLAY_RESULTS.values():
            self._replayed.labels(result)
        self.counted(None, works=False)

    def of(self, consumer: str) -> ConsumerMetrics:
        """Return a consumer's metrics, made when they are first asked for."""
        if consumer not in self._consumers:
            self._consumers[consumer] = ConsumerMetrics(self._families, consumer, self.registry)
        return self._consumers[consumer]

    def loop_lagged(self, seconds: float) -> None:
        """The event loop woke a task so much later than asked."""
        self._loop_lag.observe(seconds)

    def web_connection_closed(self, reason: str) -> None:
        """The web server closed a connection, see ``CLOSED_REASONS``."""
        self._web_closed.labels(reason).inc()

    def log_line_left_out(self) -> None:
        """A log line had no room, since nobody reads the log; called by any thread."""
        self._log_lines_left_out.inc()

    # --- publishing, and the fallback table's figures -------------------------------------------

    def published(self, result: str) -> None:
        """A publish ended; see ``Publisher``."""
        self._published.labels(PUBLISH_RESULTS.get(result, "failed")).inc()

    def replayed(self, result: str) -> None:
        """A claimed row was tried; see ``Replay``."""
        self._replayed.labels(REPLAY_RESULTS.get(result, "failed")).inc()

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


class _Families:
    """What is about consumers; each consumer's values are in the same families."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # What changes with every record is changed by the event loop's thread alone.
        self.deliveries = LoopCounter(
            f"{PREFIX}_deliveries",
            "Records by how they ended in this worker.",
            (CONSUMER, "outcome"),
            [(outcome,) for outcome in OUTCOMES],
            registry,
        )
        self.attempts = LoopCounter(
            f"{PREFIX}_delivery_attempts",
            "POSTs to the target by their result, and by the class of the status (or the "
            "kind of failure without one).",
            (CONSUMER, "result", "status"),
            [(result, status) for result, of in ATTEMPT_RESULTS.items() for status in of],
            registry,
        )
        self.retries = _counter(
            registry, "delivery_retries", "Attempts that failed and are to be made again.", CONSUMER
        )
        self.dead_letters = _counter(
            registry,
            "dead_letters",
            "Records acknowledged by the dead-letter topic, or else saved in the fallback table.",
            CONSUMER,
            "reason",
        )
        self.dead_letters_saved = _counter(
            registry,
            "dead_letters_saved",
            "Those of the dead letters that Kafka refused and the fallback table keeps.",
            CONSUMER,
        )
        self.attempt_seconds = LoopHistogram(
            f"{PREFIX}_delivery_attempt_seconds",
            "Time from POST to answer.",
            CONSUMER,
            ATTEMPT_BUCKETS,
            registry,
        )
        self.paid_to_delivered = LoopHistogram(
            f"{PREFIX}_paid_to_delivered_seconds",
            "Time from paidAt (the record's timestamp where paidAt has no zone) to the 2xx.",
            CONSUMER,
            DELIVERY_BUCKETS,
            registry,
        )
        self.in_flight = _gauge(
            registry, "in_flight", "POSTs and dead letters under way.", CONSUMER
        )
        self.queued = _gauge(
            registry,
            "held_records",
            "Records taken and not finished: in flight, in backoff, or queued.",
            CONSUMER,
        )
        self.left = _gauge(
            registry,
            "left_in_kafka_records",
            "Records that were read and had no room: they are left in Kafka and read again.",
            CONSUMER,
        )
        self.breaker = _gauge(registry, "breaker_state", "0 closed, 1 half-open, 2 open.", CONSUMER)
        self.target = TargetCollector(PREFIX, CONSUMER)  # four gauges, with their comments
        registry.register(self.target)
        self.oldest = _gauge(
            registry,
            "oldest_unfinished_seconds",
            "Age of the oldest record read and not finished.",
            CONSUMER,
        )
        self.lag = _gauge(
            registry,
            "consumer_lag",
            "Records from the committed offset to the end of the partition, those behind an open "
            "transaction too.",
            CONSUMER,
            "topic",
            "partition",
        )
        self.transaction_open = _gauge(
            registry,
            "transaction_open_seconds",
            "How long one open transaction of a producer has held back what stands behind it; 0 "
            "without one.",
            CONSUMER,
            "topic",
            "partition",
        )
        self.near_deletion = _gauge(
            registry,
            "near_deletion_records",
            "Unfinished records that are older than three quarters of the topic's retention: Kafka "
            "deletes them soon.",
            CONSUMER,
            "topic",
            "partition",
        )
        self.deleted = _counter(
            registry,
            "deleted_records",
            "Records that Kafka deleted before they were delivered: retention was shorter than the "
            "wait. They are lost.",
            CONSUMER,
        )
        self.assigned = _gauge(
            registry,
            "assigned_partitions",
            "Partitions of the source topic that this worker owns; 0 while the group rebalances.",
            CONSUMER,
        )
        self.topic_partitions = _gauge(
            registry,
            "topic_partitions",
            "Partitions of the source topic, which the workers of the group share; 0 until Kafka "
            "was first asked. The same from every worker.",
            CONSUMER,
        )
        self.kafka_up = _gauge(
            registry,
            "kafka_up",
            "1 when Kafka answered this worker in the last 30 s, else 0.",
            CONSUMER,
        )
        self.intake_stopped = _gauge(
            registry,
            "intake_stopped_seconds",
            "How long a step of the intake has stood still while Kafka answers; 0 while all move.",
            CONSUMER,
        )
        self.table_entries = _gauge(
            registry,
            "table_entries",
            "Entries of the table on this worker, estimated for RocksDB; 0 when it is off.",
            CONSUMER,
            "table",
        )
        self.table_recovering = _gauge(
            registry,
            "table_recovering",
            "1 while the table is read from its changelog, else 0.",
            CONSUMER,
        )
        self.table_recovery_seconds = _gauge(
            registry,
            "table_recovery_seconds",
            "How long the last reading of the table took.",
            CONSUMER,
        )


class PartitionGauge:
    """A gauge of one consumer's partitions."""

    def __init__(self, gauge: Gauge, consumer: str) -> None:
        """Show it with the label of ``consumer``."""
        self._gauge = gauge
        self._consumer = consumer

    def labels(self, topic: str, partition: str) -> Gauge:
        """Return the gauge of a partition."""
        return self._gauge.labels(self._consumer, topic, partition)

    def remove(self, topic: str, partition: str) -> None:
        """Show that partition no longer."""
        self._gauge.remove(self._consumer, topic, partition)


class ConsumerMetrics:
    """The metrics of one consumer; also the observer of its deliveries, which counts.

    Attributes:
        registry: The worker's.
        consumer: The consumer's name.
        lag: By topic and partition.
        transaction_open: By topic and partition.
        near_deletion: By topic and partition.
    """

    def __init__(self, families: _Families, consumer: str, registry: CollectorRegistry) -> None:
        """Show every known label at 0."""
        self.registry = registry
        self.consumer = consumer
        self._deliveries = families.deliveries.of(consumer)
        self._attempts = families.attempts.of(consumer)
        self._attempt_seconds = families.attempt_seconds.of(consumer)
        self._paid_to_delivered = families.paid_to_delivered.of(consumer)
        self._target = families.target
        self._dead_letters = families.dead_letters
        self.lag = PartitionGauge(families.lag, consumer)
        self.transaction_open = PartitionGauge(families.transaction_open, consumer)
        self.near_deletion = PartitionGauge(families.near_deletion, consumer)
        self._table_entries = families.table_entries.labels(consumer, "deliveries")
        for reason in DEAD_LETTER_REASONS:
            self._dead_letters.labels(consumer, reason)
        self._in_flight = families.in_flight.labels(consumer)
        self._held = families.queued.labels(consumer)
        self._left = families.left.labels(consumer)
        self._breaker = families.breaker.labels(consumer)
        self._oldest = families.oldest.labels(consumer)
        self._assigned = families.assigned.labels(consumer)
        self._topic_partitions = families.topic_partitions.labels(consumer)
        self._kafka_up = families.kafka_up.labels(consumer)
        self._intake_stopped = families.intake_stopped.labels(consumer)
        self._table_recovering = families.table_recovering.labels(consumer)
        self._table_recovery_seconds = families.table_recovery_seconds.labels(consumer)
        self._retries = families.retries.labels(consumer)
        self._dead_letters_saved = families.dead_letters_saved.labels(consumer)
        self._deleted = families.deleted.labels(consumer)
        families.target.show(consumer, None)

    def watch(
        self,
        *,
        in_flight: Callable[[], int],
        queued: Callable[[], int],
        breaker_state: Callable[[], int],
        oldest_unfinished_seconds: Callable[[], float],
    ) -> None:
        """Read these gauges from their owners at every scrape."""
        self._in_flight.set_function(in_flight)
        self._held.set_function(queued)
        self._breaker.set_function(breaker_state)
        self._oldest.set_function(oldest_unfinished_seconds)

    def watch_target(
        self, *, target: Callable[[], Target], left_in_kafka: Callable[[], int]
    ) -> None:
        """Read at every scrape what the target does, and what had no room meanwhile."""
        self._target.show(self.consumer, target)
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

    def watch_table(self, *, entries: Callable[[], int], recovering: Callable[[], bool]) -> None:
        """Read the gauges of the table ``deliveries`` from its owner at every scrape."""
        self._table_entries.set_function(entries)
        self._table_recovering.set_function(recovering)

    def recovered(self, seconds: float) -> None:
        """The table was read from its changelog."""
        self._table_recovery_seconds.set(seconds)

    # --- DeliveryObserver -----------------------------------------------------------------------

    def attempted(self, result: str, status_class: str, seconds: float) -> None:
        """See ``DeliveryObserver``."""
        self._attempts[result, status_class] += 1
        self._attempt_seconds.observe(seconds)

    def retrying(self) -> None:
        """See ``DeliveryObserver``."""
        self._retries.inc()

    def delivered(self, paid_to_delivered_seconds: float) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries[_DELIVERED] += 1
        self._paid_to_delivered.observe(paid_to_delivered_seconds)

    def duplicate(self) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries[_DUPLICATE] += 1

    def skipped(self) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries[_SKIPPED] += 1

    def dead_lettered(self, reason: str) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries[_DEAD_LETTERED] += 1
        self._dead_letters.labels(self.consumer, reason).inc()

    def abandoned(self, records: int) -> None:
        """See ``DeliveryObserver``."""
        self._deliveries[_ABANDONED] += records

    def deleted(self, records: int) -> None:
        """Kafka deleted so many records before they were delivered."""
        self._deleted.inc(records)

    def dead_letter_saved(self) -> None:
        """Kafka refused a dead letter, and the fallback table keeps it."""
        self._dead_letters_saved.inc()


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"{PREFIX}_{name}", text, labels, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"{PREFIX}_{name}", text, labels, registry=registry)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(f"{PREFIX}_{name}", text, buckets=buckets, registry=registry)
