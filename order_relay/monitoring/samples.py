"""The present values of metrics, read from the registry of ``/metrics``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from order_relay.monitoring.metrics import CONSUMER, PREFIX

QUANTILES = {"p50_seconds": 0.5, "p95_seconds": 0.95, "p99_seconds": 0.99}


class Samples:
    """The values of some metrics at one moment; names are without the prefix.

    NaN (as of a database that did not answer) is ``None``.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        consumer: str,
        names: Iterable[str],
        histograms: Iterable[str] = (),
    ) -> None:
        """Read these metrics of one consumer, and of the worker.

        The label ``consumer`` is left out.
        """
        self._values: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        parts = (f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count"))
        wanted = registry.restricted_registry([f"{PREFIX}_{name}" for name in (*names, *parts)])
        for family in wanted.collect():
            for sample in family.samples:
                name = sample.name.removeprefix(f"{PREFIX}_")
                labels = dict(sample.labels)
                if labels.pop(CONSUMER, consumer) == consumer:
                    self._values.setdefault(name, []).append((labels, sample.value))

    def number(self, name: str, **labels: str) -> float | int | None:
        """Return the value with these labels; ``None`` if it does not exist."""
        for given, value in self._values.get(name, ()):
            if given == labels:
                return _plain(value)
        return None

    def by_label(self, name: str, label: str) -> dict[str, float | int | None]:
        """Return the values of a metric by one of its labels, summed over the others."""
        values: dict[str, float] = {}
        for given, value in self._values.get(name, ()):
            values[given[label]] = values.get(given[label], 0.0) + value
        return {name: _plain(value) for name, value in values.items()}

    def distribution(self, name: str) -> dict[str, Any]:
        """Return count, average and percentiles of a histogram; ``None`` without observations.

        Percentiles are estimated within their bucket, as Prometheus' ``histogram_quantile`` does.
        """
        count = self.number(f"{name}_count") or 0
        total = self.number(f"{name}_sum") or 0.0
        buckets = [
            (float(given["le"]), value) for given, value in self._values.get(f"{name}_bucket", ())
        ]
        return {
            "count": count,
            "average_seconds": round(total / count, 4) if count else None,
            **{key: quantile(buckets, part) for key, part in QUANTILES.items()},
        }


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
