"""The state of the target as figures: a section of ``/stats``, and gauges.

The dispatcher notes a new state when it is read, so the state is read every second.
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
    """Return the section of ``/stats``; missing figures are ``None``."""
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
    """Read the state at every interval until cancelled, to note when it began."""
    while True:
        target()
        await asyncio.sleep(interval_seconds)


class TargetCollector(Collector):
    """Gauges of targets, read together at a scrape: one state is 1, the others are 0."""

    def __init__(self, prefix: str, label: str) -> None:
        """Begin without targets; ``label`` is the consumer's."""
        self._prefix = prefix
        self._label = label
        self._targets: dict[str, Callable[[], Target] | None] = {}

    def show(self, consumer: str, target: Callable[[], Target] | None) -> None:
        """Show the target of a consumer; ``None``: not known yet, no state is 1."""
        self._targets[consumer] = target

    def collect(self) -> Iterator[Metric]:
        """Read the targets."""
        states = self._gauge(
            "target_state",
            "1 for the state of the target, 0 for the others: works, throttles, "
            "fails_for_some, down, refuses_us.",
            "state",
        )
        # NaN without a limit: Grafana leaves a gap, min() over workers skips it, and no comparison
        # of an alert is true. +Inf would stretch the axis and spoil sums.
        rate = self._gauge(
            "target_rate_limit",
            "Attempts a second that the target allows, while it throttles; else NaN.",
        )
        concurrency = self._gauge(
            "concurrency_limit",
            "Highest number of attempts at a time: MAX_IN_FLIGHT, and fewer after time-outs.",
        )
        failed = self._gauge(
            "first_attempts_failed_ratio",
            "Share of first attempts at records that failed, in the last minute.",
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

    describe = collect  # gives their names, so that single ones can be asked for

    def _gauge(self, name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=(self._label, *labels))


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)
