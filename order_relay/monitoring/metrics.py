"""The catalogue of the relay's metrics: every name, label and bucket, once.

Base units; labels are bounded, never an order id. Each worker has its own registry. Metrics of a
consumer have the label ``consumer``.
"""

from __future__ import annotations

import math
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from order_relay.dead_letters.open_letters import OpenFigures
from order_relay.delivery.target_health import Target, TargetState
from order_relay.fallback.store import FallbackStats
from order_relay.version import VERSION

PREFIX = "order_relay"
CONSUMER = "consumer"
# From a millisecond on the loopback to the target's time-out.
ATTEMPT_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Backoffs take seconds, outages minutes and hours.
DELIVERY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
                    900.0, 3600.0, 14400.0)  # fmt: skip
# The loop's timer is precise to a millisecond; from a second on the worker seems to hang.
LOOP_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DEAD_LETTER_REASONS = (
    "tombstone",
    "invalid_utf8",
    "invalid_json",
    "invalid_event",
    "rejected",
    "retries_exhausted",
)
# Of dead letters that other programs wrote.
OTHER_REASON = "other"
OUTCOMES = ("delivered", "dead_lettered", "duplicate", "skipped", "abandoned")
_DELIVERED, _DEAD_LETTERED, _DUPLICATE, _SKIPPED, _ABANDONED = ((outcome,) for outcome in OUTCOMES)
# Why the web server closed a connection.
CLOSED_REASONS = ("silent", "crowded")
# Every result of an attempt (``Verdict``), and its possible status classes.
ATTEMPT_RESULTS = {
    "success": ("2xx", "function"),
    "retryable": ("2xx", "4xx", "5xx", "timeout", "connect", "reset", "tls", "other", "function"),
    "throttled": ("429", "5xx", "function"),
    "outage": ("3xx", "4xx", "connect", "tls", "function"),
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
OF_PARTITION = (CONSUMER, "topic", "partition")
# The comment of each, by its labels.
COUNTERS: dict[tuple[str, ...], dict[str, str]] = {
    (): {
        "fallback_files_replaced": "Times that the fallback table's SQLite file was deleted or "
        "replaced: its rows are lost.",
        "log_lines_left_out": "Log lines left out because the log was not read.",
    },
    ("result",): {
        "published": "Events to publish: published (in Kafka), saved (in the fallback table), "
        "refused (invalid or too large), busy (answered with 429), failed (in neither).",
        "fallback_replayed": "Rows that this worker tried: published, retry (refused, tried again "
        "later), failed (waits for a person).",
    },
    ("reason",): {
        "web_connections_closed": "Connections closed: silent (no whole request in time), "
        "crowded (too many).",
    },
    (CONSUMER,): {
        "delivery_retries": "Failed attempts that are tried again.",
        "dead_letters_saved": "Dead letters that Kafka refused and the fallback table keeps.",
        "deleted_records": "Records that Kafka deleted before they were delivered: they are lost.",
        "dead_letters_auto_redriven": "Dead letters that DLQ_AUTO_REDRIVE redrove.",
        "dead_letters_open_deleted": "Open dead letters deleted by retention, by a purge "
        "or with their topic.",
    },
    (CONSUMER, "reason"): {
        "dead_letters": "Records that became dead letters, also saved ones.",
    },
}
GAUGES: dict[tuple[str, ...], dict[str, str]] = {
    (): {
        "fallback_oldest_pending_seconds": "Age of the oldest PENDING row.",
        "fallback_oldest_failed_seconds": "How long the oldest FAILED row has waited.",
        "fallback_database_up": "1 if the database took the last write, else 0.",
    },
    ("version", "python"): {
        "build_info": "Always 1.",
    },
    ("status",): {
        "fallback_messages": "Rows of the fallback table.",
    },
    (CONSUMER,): {
        "in_flight": "Attempts and dead letters in flight.",
        "held_records": "Records read and not finished.",
        "left_in_kafka_records": "Records without room in memory: read again later.",
        "breaker_state": "0 closed, 1 half-open, 2 open.",
        "oldest_unfinished_seconds": "Age of the oldest held record.",
        "assigned_partitions": "Source partitions that this worker owns.",
        "topic_partitions": "Source partitions; 0: not found, or not asked for yet.",
        "kafka_up": "1 if Kafka answered this worker in the last 30 s, else 0.",
        "intake_stopped_seconds": "How long the intake has stood still while Kafka answers.",
        "table_recovering": "1 while the table is read from its changelog, else 0.",
        "table_recovery_seconds": "How long the last reading of the table took.",
        "table_partitions_off": "Partitions whose store failed, until the next rebalance.",
        "dead_letters_open_oldest_seconds": "Age of the oldest open dead letter.",
    },
    (CONSUMER, "reason"): {
        "dead_letters_open": "Dead letters neither redriven nor discarded.",
    },
    (CONSUMER, "table"): {
        "table_entries": "Entries of the table on this worker; estimated for RocksDB.",
    },
    OF_PARTITION: {
        "consumer_lag": "Records from the committed offset to the end, also behind an open "
        "transaction.",
        "transaction_open_seconds": "How long a producer's open transaction has blocked the "
        "partition.",
        "near_deletion_records": "Unfinished records older than three quarters of the topic's "
        "retention.ms.",
    },
}
# Every record changes these, in the event loop's thread alone, so they need no lock. Each is its
# comment, its labels beside the consumer's, and their values.
DELIVERY_COUNTERS: dict[str, tuple[str, tuple[str, ...], list[tuple[str, ...]]]] = {
    "deliveries": (
        "Records by their final result.", ("outcome",), [(outcome,) for outcome in OUTCOMES]
    ),
    "delivery_attempts": (
        "Attempts by result, and by class of status or kind of failure.",
        ("result", "status"),
        [(result, status) for result, of in ATTEMPT_RESULTS.items() for status in of],
    ),
}  # fmt: skip
# Likewise: comment and buckets.
DELIVERY_HISTOGRAMS = {
    "delivery_attempt_seconds": ("Time from POST to answer.", ATTEMPT_BUCKETS),
    "paid_to_delivered_seconds": (
        "Time from paidAt (the record's timestamp if it has no zone) to the 2xx.",
        DELIVERY_BUCKETS,
    ),
}
# Of the target of a consumer.
TARGET_GAUGES = {
    "target_state": "1 for the state of the target, 0 for the others.",
    # NaN without a limit: Grafana leaves a gap, min() over workers skips it, and no comparison of
    # an alert is true. +Inf would stretch the axis and spoil sums.
    "target_rate_limit": "Attempts a second that a throttling target accepts; NaN if unknown.",
    "concurrency_limit": "Attempts at a time, with batches orders; fewer after time-outs.",
    "first_attempts_failed_ratio": "Share of first attempts that failed in the last minute.",
}


class Metrics:
    """The metrics of one worker.

    Attributes:
        registry: All of them.
        counters: Those of ``COUNTERS`` by name.
        gauges: Those of ``GAUGES`` by name.
        loop_lag: How much later than asked the event loop woke a task, in seconds.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register the whole catalogue, every known label at 0; consumers follow with ``of``."""
        # The creation time of each counter is of no use here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        self.counters = {
            name: Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)
            for labels, texts in COUNTERS.items()
            for name, text in texts.items()
        }
        self.gauges = {
            name: Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)
            for labels, texts in GAUGES.items()
            for name, text in texts.items()
        }
        self.loop_lag = Histogram(
            f"{PREFIX}_event_loop_lag_seconds",
            "How late the event loop is, measured four times a second.",
            registry=self.registry,
            buckets=LOOP_LAG_BUCKETS,
        )
        self._consumers: dict[str, ConsumerMetrics] = {}
        self.registry.register(_DeliveryCollector(self._consumers))
        for name, values in (
            ("web_connections_closed", CLOSED_REASONS),
            ("published", PUBLISH_RESULTS.values()),
            ("fallback_replayed", REPLAY_RESULTS.values()),
        ):
            for value in values:
                self.counters[name].labels(value)
        self.gauges["build_info"].labels(VERSION, platform.python_version()).set(1)
        self.counted(None, works=False)

    def of(self, consumer: str) -> ConsumerMetrics:
        """Return a consumer's metrics, made at the first call."""
        if consumer not in self._consumers:
            self._consumers[consumer] = ConsumerMetrics(self, consumer)
        return self._consumers[consumer]

    def add_process(self) -> None:
        """Add ``process_…`` (on Linux), ``python_gc_…`` and ``python_info``.

        prometheus-client has them in its global registry, which no worker serves.
        """
        for collector in (ProcessCollector, GCCollector, PlatformCollector):
            collector(registry=self.registry)

    def web_connection_closed(self, reason: str) -> None:
        """Count a connection that the web server closed, see ``CLOSED_REASONS``."""
        self.counters["web_connections_closed"].labels(reason).inc()

    # --- publishing, and the fallback table's figures -------------------------------------------

    def published(self, result: str) -> None:
        """A publish ended; see ``Publisher``."""
        self.counters["published"].labels(PUBLISH_RESULTS.get(result, "failed")).inc()

    def replayed(self, result: str) -> None:
        """A claimed row was tried; see ``Replay``."""
        self.counters["fallback_replayed"].labels(REPLAY_RESULTS.get(result, "failed")).inc()

    def counted(self, stats: FallbackStats | None, *, works: bool) -> None:
        """Show the figures of the fallback table (``None``: unknown), and whether it works."""
        self.gauges["fallback_database_up"].set(works)
        for status in ("pending", "published", "failed"):
            rows = math.nan if stats is None else getattr(stats, status)
            self.gauges["fallback_messages"].labels(status).set(rows)
        for age in ("oldest_pending_seconds", "oldest_failed_seconds"):
            self.gauges[f"fallback_{age}"].set(math.nan if stats is None else getattr(stats, age))


class Observations:
    """The observations of a histogram.

    Attributes:
        sum: Their sum.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        """Begin with none; ``bounds`` are upper bounds in ascending order."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, amount: float) -> None:
        """Add an observation."""
        self.sum += amount
        self._counts[bisect_left(self._bounds, amount)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """Return the number of observations up to each bound."""
        bounds = map(floatToGoString, (*self._bounds, math.inf))
        return list(zip(bounds, accumulate(self._counts), strict=True))


class _DeliveryCollector(Collector):
    """What every record changes, and the targets, each of which is asked once in a scrape.

    prometheus-client's own counters and histograms take a lock for each change and search the
    buckets one by one: 2.6 us a delivery, here 0.5.
    """

    def __init__(self, consumers: Mapping[str, ConsumerMetrics]) -> None:
        self._consumers = consumers

    def collect(self) -> Iterator[Metric]:
        """Return the present values."""
        for name, (text, labels, _) in DELIVERY_COUNTERS.items():
            counter = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=(CONSUMER, *labels))
            for consumer, metrics in self._consumers.items():
                for values, count in metrics.counts[name].items():
                    counter.add_metric((consumer, *values), count)
            yield counter
        for name, (text, _) in DELIVERY_HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=(CONSUMER,))
            for consumer, metrics in self._consumers.items():
                seen = metrics.observed[name]
                histogram.add_metric((consumer,), seen.buckets(), seen.sum)
            yield histogram
        yield from self._targets()

    def _targets(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(
                f"{PREFIX}_{name}", text, labels=(CONSUMER, *["state"] * (name == "target_state"))
            )
            for name, text in TARGET_GAUGES.items()
        }
        states, rate, concurrency, failed = families.values()
        for consumer, metrics in self._consumers.items():
            target = metrics.target() if metrics.target is not None else None
            for state in TargetState:
                is_this = target is not None and target.state is state
                states.add_metric((consumer, state.name.lower()), is_this)
            limit = target.rate if target is not None else None
            rate.add_metric((consumer,), math.nan if limit is None else limit)
            concurrency.add_metric((consumer,), target.concurrency if target is not None else 0)
            failed.add_metric((consumer,), target.share_failed if target is not None else 0)
        yield from families.values()

    describe = collect  # gives their names, so that single ones can be asked for


class ConsumerMetrics:
    """The metrics of one consumer; also the observer of its deliveries.

    Attributes:
        registry: The worker's registry.
        consumer: The consumer's name.
        counters: Those of ``COUNTERS`` that have only the label of the consumer, by name.
        gauges: Those of ``GAUGES``, likewise.
        counts: The numbers of ``DELIVERY_COUNTERS``.
        observed: The observations of ``DELIVERY_HISTOGRAMS``.
        target: Returns the state of the target; None: not known yet.
    """

    def __init__(self, metrics: Metrics, consumer: str) -> None:
        """Show every known label at 0."""
        self.registry = metrics.registry
        self.consumer = consumer
        self.counts = {
            name: dict.fromkeys(values, 0) for name, (_, _, values) in DELIVERY_COUNTERS.items()
        }
        self.observed = {
            name: Observations(bounds) for name, (_, bounds) in DELIVERY_HISTOGRAMS.items()
        }
        self.target: Callable[[], Target] | None = None
        self._deliveries = self.counts["deliveries"]
        self._attempts = self.counts["delivery_attempts"]
        self._attempt_seconds = self.observed["delivery_attempt_seconds"]
        self._paid_to_delivered = self.observed["paid_to_delivered_seconds"]
        self._dead_letters = metrics.counters["dead_letters"]
        for reason in DEAD_LETTER_REASONS:
            self._dead_letters.labels(consumer, reason)
        self.counters = {
            name: metrics.counters[name].labels(consumer) for name in COUNTERS[CONSUMER,]
        }
        self.gauges = {name: metrics.gauges[name].labels(consumer) for name in GAUGES[CONSUMER,]}
        self.gauges["table_entries"] = metrics.gauges["table_entries"].labels(
            consumer, "deliveries"
        )
        self._of_partitions = metrics.gauges
        self._open_letters = metrics.gauges["dead_letters_open"]
        self.open_letters(None)

    def watch(self, **gauges: Callable[[], float]) -> None:
        """Read gauges from these functions at every scrape.

        Args:
            gauges: Functions by the names of ``GAUGES`` of a consumer.
        """
        for name, function in gauges.items():
            self.gauges[name].set_function(function)

    def of_partition(self, name: str, topic: str, partition: int, value: float | None) -> None:
        """Show one of ``GAUGES[OF_PARTITION]``; ``None``: show it no more."""
        labels = self.consumer, topic, str(partition)
        if value is None:
            self._of_partitions[name].remove(*labels)
        else:
            self._of_partitions[name].labels(*labels).set(value)

    def open_letters(self, figures: OpenFigures | None) -> None:
        """Show the open dead letters; ``None``: they are not known now."""
        by_reason = dict.fromkeys((*DEAD_LETTER_REASONS, OTHER_REASON), 0)
        for reason, letters in figures.by_reason.items() if figures else ():
            by_reason[reason if reason in by_reason else OTHER_REASON] += letters
        for reason, letters in by_reason.items():
            value = letters if figures else math.nan
            self._open_letters.labels(self.consumer, reason).set(value)
        age = 0.0 if figures else math.nan
        if figures and figures.oldest is not None:
            age = max(time.time() - figures.oldest, 0.0)
        self.gauges["dead_letters_open_oldest_seconds"].set(age)

    # --- DeliveryObserver -----------------------------------------------------------------------

    def attempted(self, result: str, status_class: str, seconds: float) -> None:
        """See ``DeliveryObserver``."""
        self._attempts[result, status_class] += 1
        self._attempt_seconds.observe(seconds)

    def retrying(self) -> None:
        """See ``DeliveryObserver``."""
        self.counters["delivery_retries"].inc()

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
