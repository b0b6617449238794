"""What the target does, as figures: a section of ``/stats``, and gauges.

A target's state begins when somebody first sees it, so it is looked at every second.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from order_relay.delivery.target_health import Target, TargetState

LOOK_SECONDS = 1.0
STATES = tuple(state.name.lower() for state in TargetState)


def figures(target: Target) -> dict[str, Any]:
    """Return the section of ``/stats``; what there is not is ``None``."""
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


async def watch_target(
    target: Callable[[], Target], interval_seconds: float = LOOK_SECONDS
) -> None:
    """Look at the target at every interval, so that "since" is right, until cancelled."""
    while True:
        target()
        await asyncio.sleep(interval_seconds)


class TargetCollector(Collector):
    """Gauges of targets, all of one scrape from one look: one state is 1, the others are 0."""

    def __init__(self, prefix: str, label: str) -> None:
        """Begin without any; ``label`` names the consumer."""
        self._prefix = prefix
        self._label = label
        self._targets: dict[str, Callable[[], Target] | None] = {}

    def show(self, consumer: str, target: Callable[[], Target] | None) -> None:
        """Show what the target of a consumer does; ``None``: nothing is known, no state is 1."""
        self._targets[consumer] = target

    def describe(self) -> Iterator[Metric]:
        """Name the gauges, so that single ones can be asked for."""
        yield from self.collect()

    def collect(self) -> Iterator[Metric]:
        """Look at the targets."""
        states = self._gauge(
            "target_state",
            "1 for what the target does now, 0 for the others: works, throttles, "
            "fails_for_some, down, refuses_us.",
            "state",
        )
        # NaN without a limit: Grafana leaves a gap there and min() over workers skips it, where
        # +Inf would stretch the axis and be added to sums; no comparison of an alert is true of it.
        rate = self._gauge(
            "target_rate_limit",
            "Attempts a second that the target bears, while it throttles; else NaN.",
        )
        concurrency = self._gauge(
            "concurrency_limit",
            "Attempts at a time that the target is sent at most: MAX_IN_FLIGHT, and fewer "
            "after time-outs.",
        )
        failed = self._gauge(
            "first_attempts_failed_ratio",
            "Share of the first attempts at records that failed, of the last minute.",
        )
        for consumer, ask in self._targets.items():
            target = ask() if ask is not None else None
            state = target.state.name.lower() if target is not None else None
            for one in STATES:
                states.add_metric((consumer, one), one == state)
            limit = math.nan if target is None or target.rate is None else target.rate
            rate.add_metric((consumer,), limit)
            concurrency.add_metric((consumer,), 0 if target is None else target.concurrency)
            failed.add_metric((consumer,), 0 if target is None else target.share_failed)
        yield from (states, rate, concurrency, failed)

    def _gauge(self, name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=(self._label, *labels))


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)
