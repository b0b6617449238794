"""A worker's figures: the page ``/stats``, and the hourly log line ``Delivery stats``.

Every figure that is a metric too is read from the metrics' registry, so that both always agree.
Nothing here asks Kafka or the database.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from order_relay.delivery.breaker import BreakerState
from order_relay.delivery.target_health import Target
from order_relay.logs.log_line import FiguresLine
from order_relay.monitoring.metrics import CONSUMER, PREFIX, ConsumerMetrics
from order_relay.settings import Settings
from order_relay.version import VERSION

if TYPE_CHECKING:
    from order_relay.delivery.dispatcher import Dispatcher
    from order_relay.kafka.consumer import RelayConsumer

logger = logging.getLogger(__name__)

QUANTILES = {"p50_seconds": 0.5, "p95_seconds": 0.95, "p99_seconds": 0.99}


@dataclass(eq=False)
class Stats:
    """Figures of one consumer and its worker since the start, which is when this is made."""

    metrics: ConsumerMetrics
    settings: Settings
    reader: RelayConsumer
    dispatcher: Dispatcher
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._logged_at: float | None = None

    async def log_regularly(self, interval_seconds: float) -> None:
        """Log ``Delivery stats`` at every interval, until cancelled."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                self.log()
            except Exception:
                logger.exception("Delivery stats failed with an unexpected error")

    def log(self) -> None:
        """Log ``Delivery stats``."""
        self._logged_at = self.wall_clock()
        samples = self._samples()
        ended = samples.by_label("deliveries_total", "outcome")
        logger.info(
            FiguresLine(
                "Delivery stats",
                delivered=ended["delivered"],
                dead_lettered=ended["dead_lettered"],
                duplicates=ended["duplicate"],
                lag=sum(partition["lag"] or 0 for partition in self._of_partitions(samples)),
                oldest_unfinished_seconds=_rounded(samples.number("oldest_unfinished_seconds")),
                breaker=_state(samples),
                target=str(self.dispatcher.target()),
            )
        )

    def figures(self) -> dict[str, Any]:
        """Return all figures; docs/reference/web.md explains each."""
        samples = self._samples()
        number, by_label = samples.number, samples.by_label
        near, transactions = (
            by_label(name, "partition")
            for name in ("near_deletion_records", "transaction_open_seconds")
        )
        open_letters = by_label("dead_letters_open", "reason")
        return {
            "version": VERSION,
            "time": _iso(self.wall_clock()),
            "uptime_seconds": round(self.clock() - self._started, 1),
            "consumer": self.metrics.consumer,
            "group": self.settings.consumer_group_id,
            "worker": {
                "url": str(self.settings.own_url),
                "host": socket.gethostname(),
                "pid": os.getpid(),
            },
            "paused": self.dispatcher.paused,
            "kafka_up": bool(number("kafka_up")),
            "topic_partitions": number("topic_partitions"),
            "partitions": self._of_partitions(samples),
            "group_problem": self.reader.group_problem,
            "deleted_records": number("deleted_records_total"),
            "near_deletion_records": sum(one or 0 for one in near.values()),
            "transaction_open_seconds": _rounded(
                max([one or 0 for one in transactions.values()], default=0)
            ),
            "deliveries": by_label("deliveries_total", "outcome"),
            "attempts": by_label("delivery_attempts_total", "result"),
            "retries": number("delivery_retries_total"),
            "in_flight": number("in_flight"),
            "held": number("held_records"),
            "left_in_kafka": number("left_in_kafka_records"),
            "oldest_unfinished_seconds": _rounded(number("oldest_unfinished_seconds")),
            "intake_stopped_seconds": _rounded(number("intake_stopped_seconds")),
            "breaker": {
                "state": _state(samples),
                "failed_probes": self.dispatcher.breaker.failed_probes,
                "next_probe_seconds": _rounded(self.dispatcher.breaker.probe_in_seconds),
            },
            "target": _target_figures(self.dispatcher.target()),
            "dead_letters": by_label("dead_letters_total", "reason"),
            "dead_letters_saved": number("dead_letters_saved_total"),
            "open_dead_letters": {
                "total": None if None in open_letters.values() else sum(open_letters.values()),
                "by_reason": open_letters,
                "oldest_seconds": _rounded(number("dead_letters_open_oldest_seconds")),
                "deleted": number("dead_letters_open_deleted_total"),
            },
            "paid_to_delivered": samples.distribution("paid_to_delivered_seconds"),
            "attempt": samples.distribution("delivery_attempt_seconds"),
            "published": by_label("published_total", "result"),
            "fallback": {
                "database_up": bool(number("fallback_database_up")),
                "files_replaced": number("fallback_files_replaced_total"),
                **by_label("fallback_messages", "status"),
                "oldest_pending_seconds": _rounded(number("fallback_oldest_pending_seconds")),
                "oldest_failed_seconds": _rounded(number("fallback_oldest_failed_seconds")),
                "replayed": by_label("fallback_replayed_total", "result"),
            },
            "deliveries_table": {
                "entries": number("table_entries", table="deliveries"),
                "recovering": bool(number("table_recovering")),
                "partitions_off": number("table_partitions_off"),
                "recovery_seconds": _rounded(number("table_recovery_seconds")),
            },
            "logged_at": _iso(self._logged_at),
        }

    def minute(self) -> dict[str, float]:
        """Return lag, age of the oldest unfinished record, and records delivered."""
        samples = self._samples()
        lag = samples.by_label("consumer_lag", "partition")
        return {
            "lag": sum(part or 0 for part in lag.values()),
            "oldest_seconds": samples.number("oldest_unfinished_seconds") or 0,
            "delivered": samples.number("deliveries_total", outcome="delivered") or 0,
        }

    def _samples(self) -> Samples:
        return Samples(self.metrics.registry, self.metrics.consumer)

    def _of_partitions(self, samples: Samples) -> list[dict[str, Any]]:
        positions = self.reader.positions()
        committed = self.reader.committed_offsets()
        return [
            {
                "topic": one.topic,
                "partition": one.partition,
                "lag": samples.number(
                    "consumer_lag", topic=one.topic, partition=str(one.partition)
                ),
                "committed": committed[one],
                "position": positions.get(one),
            }
            for one in sorted(committed)
        ]


def _state(samples: Samples) -> str:
    return BreakerState(int(samples.number("breaker_state") or 0)).name.lower()


def _target_figures(target: Target) -> dict[str, Any]:
    return {
        "state": target.state.name.lower(),
        "since_seconds": round(target.seconds, 1),
        "said": str(target),
        "rate_limit": _rounded(target.rate, 3),
        "concurrency_limit": target.concurrency,
        "share_failed": round(target.share_failed, 4),
        "last_status": target.last_status,
        "last_text": target.last_text,
        "last_seconds": _rounded(target.last_seconds),
        "next_probe_seconds": _rounded(target.next_probe_seconds),
        "opened_because": target.opened_because,
    }


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Samples:
    """The values of metrics at this moment, of one consumer and of the worker.

    Names are without the prefix, and the label ``consumer`` is left out. NaN (as of a database that
    did not answer) is ``None``.
    """

    registry: CollectorRegistry
    consumer: str

    def number(self, name: str, **labels: str) -> float | int | None:
        """Return the value with these labels; ``None`` if it does not exist."""
        return next((_plain(value) for given, value in self._of(name) if given == labels), None)

    def by_label(self, name: str, label: str) -> dict[str, float | int | None]:
        """Return the values of a metric by one of its labels, summed over the others."""
        values: dict[str, float] = {}
        for given, value in self._of(name):
            values[given[label]] = values.get(given[label], 0.0) + value
        return {name: _plain(value) for name, value in values.items()}

    def distribution(self, name: str) -> dict[str, Any]:
        """Return count, average and percentiles of a histogram; ``None`` without observations.

        Percentiles are estimated within their bucket, as Prometheus' ``histogram_quantile`` does.
        """
        count = self.number(f"{name}_count") or 0
        total = self.number(f"{name}_sum") or 0.0
        buckets = [(float(given["le"]), value) for given, value in self._of(f"{name}_bucket")]
        return {
            "count": count,
            "average_seconds": round(total / count, 4) if count else None,
            **{key: quantile(buckets, part) for key, part in QUANTILES.items()},
        }

    def _of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        for family in self.registry.restricted_registry([f"{PREFIX}_{name}"]).collect():
            for sample in family.samples:
                labels = dict(sample.labels)
                if labels.pop(CONSUMER, self.consumer) == self.consumer:
                    yield labels, sample.value


def quantile(buckets: list[tuple[float, float]], part: float) -> float | None:
    """Estimate a quantile from cumulative buckets, each with its upper bound.

    A quantile beyond the last finite bound is that bound.
    """
    if not buckets or not (count := buckets[-1][1]):
        return None
    rank = part * count
    lower = below = 0.0
    for upper, cumulated in buckets:
        if cumulated >= rank:
            if math.isinf(upper):
                return lower
            return round(lower + (upper - lower) * (rank - below) / (cumulated - below), 4)
        lower, below = upper, cumulated
    return lower


def _plain(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value
