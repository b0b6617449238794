"""Counters and histograms that only the event loop's thread changes: without locks.

prometheus-client takes a lock for each change and looks through a histogram's buckets one by one:
2.6 us a delivery, in place of 0.5. Names, labels and values are shown as its own metrics show them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class LoopCounter(Collector):
    """A counter with labels, all of whose values are known from the start.

    Attributes:
        counts: By the labels' values, in the order of their names; add to them.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        values: Iterable[tuple[str, ...]],
        registry: CollectorRegistry,
    ) -> None:
        """Register it, with 0 for each of ``values``."""
        self._name = name
        self._text = text
        self._labels = labels
        self.counts = dict.fromkeys(values, 0)
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Name it, so that it can be asked for alone."""
        yield from self.collect()

    def collect(self) -> Iterator[Metric]:
        """Return it as it is now."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self.counts.items():
            family.add_metric(values, count)
        yield family


class LoopHistogram(Collector):
    """A histogram without labels."""

    def __init__(
        self, name: str, text: str, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        """Register it; ``buckets`` are upper bounds in ascending order, without infinity."""
        self._name = name
        self._text = text
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, amount: float) -> None:
        """Count an amount."""
        self._sum += amount
        self._counts[bisect_left(self._bounds, amount)] += 1

    def describe(self) -> Iterator[Metric]:
        """Name it, so that it can be asked for alone."""
        yield from self.collect()

    def collect(self) -> Iterator[Metric]:
        """Return it as it is now."""
        family = HistogramMetricFamily(self._name, self._text)
        below = 0
        buckets = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            label = floatToGoString(bound)  # type: ignore[no-untyped-call]
            buckets.append((label, below))
        family.add_metric((), buckets, self._sum)
        yield family
