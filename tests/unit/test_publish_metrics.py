"""The producing half's metrics: DESIGN's names, and nothing unbounded."""

import pytest

from order_relay.fallback.store import FallbackStats
from order_relay.monitoring.metrics import Metrics


def labels_of(metrics: Metrics, name: str) -> dict[str, float]:
    """The values of a metric by its only label."""
    return {
        next(iter(sample.labels.values())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_every_label_stands_there_from_the_start() -> None:
    """A dashboard shows 0 rather than nothing."""
    metrics = Metrics()
    results = {"published", "saved", "refused", "busy", "failed"}
    assert set(labels_of(metrics, "order_relay_published_total")) == results
    replayed = {"published", "retry", "failed"}
    assert set(labels_of(metrics, "order_relay_fallback_replayed_total")) == replayed
    statuses = {"pending", "published", "failed"}
    assert set(labels_of(metrics, "order_relay_fallback_messages")) == statuses


@pytest.mark.parametrize(
    ("told", "label"),
    [
        ("acknowledged", "published"),
        ("saved", "saved"),
        ("invalid", "refused"),
        ("too_large", "refused"),
        ("busy", "busy"),
        ("failed", "failed"),
        ("something new", "failed"),
    ],
)
def test_results_of_publishing(told: str, label: str) -> None:
    """Each result is counted once under its label; an unknown one makes no new label."""
    metrics = Metrics()
    metrics.published(told)
    counted = labels_of(metrics, "order_relay_published_total")
    assert {name for name, value in counted.items() if value} == {label}
    assert len(counted) == 5


@pytest.mark.parametrize(
    ("told", "label"), [("published", "published"), ("retried", "retry"), ("failed", "failed")]
)
def test_results_of_replaying(told: str, label: str) -> None:
    """Each row that is tried is counted once under its label."""
    metrics = Metrics()
    metrics.replayed(told)
    counted = labels_of(metrics, "order_relay_fallback_replayed_total")
    assert {name for name, value in counted.items() if value} == {label}


def test_figures_of_the_table() -> None:
    """What the table counted is what is shown."""
    metrics = Metrics()
    metrics.counted(FallbackStats(2, 45, 1, 61.5), works=True)
    assert labels_of(metrics, "order_relay_fallback_messages") == {
        "pending": 2,
        "published": 45,
        "failed": 1,
    }
    sample = metrics.registry.get_sample_value
    assert sample("order_relay_fallback_oldest_pending_seconds") == 61.5
    assert sample("order_relay_fallback_database_up") == 1
