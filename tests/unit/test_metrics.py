"""The catalogue of metrics: every name of the design, from the start, and the counting."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.delivery.observer import DeliveryObserver
from app.delivery.retry import Verdict
from app.operations.metrics import DEAD_LETTER_REASONS, Metrics

# Names, kinds and labels of the design, of its delivering half.
CATALOGUE = {
    "order_relay_deliveries": ("counter", {"outcome"}),
    "order_relay_delivery_attempts": ("counter", {"result"}),
    "order_relay_delivery_attempt_seconds": ("histogram", set()),
    "order_relay_paid_to_delivered_seconds": ("histogram", set()),
    "order_relay_in_flight": ("gauge", set()),
    "order_relay_consumer_lag": ("gauge", {"topic", "partition"}),
    "order_relay_oldest_unfinished_seconds": ("gauge", set()),
    "order_relay_dead_letters": ("counter", {"reason"}),
    "order_relay_breaker_state": ("gauge", set()),
}


@pytest.fixture
def metrics() -> Metrics:
    """The metrics of a worker that has just begun."""
    return Metrics()


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"order_relay_{name}", labels)


def test_every_name_of_the_design_is_there_from_the_start(metrics: Metrics) -> None:
    """Dashboards find every metric on a worker that has not yet done anything."""
    text = generate_latest(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}

    assert {name: families[name].type for name in CATALOGUE} == {
        name: kind for name, (kind, _) in CATALOGUE.items()
    }
    assert all(family.documentation for family in families.values())
    assert all(name.startswith("order_relay_") for name in families)


def test_the_labels_are_those_of_the_design(metrics: Metrics) -> None:
    """Each metric has the labels that the design names, and no other: they are bounded."""
    metrics.lag.labels("order-paid-events", "0").set(0)
    found = {
        family.name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in metrics.registry.collect()
    }

    assert {name: found[name] for name in CATALOGUE} == {
        name: labels for name, (_, labels) in CATALOGUE.items()
    }


def test_every_known_label_is_0_at_the_start(metrics: Metrics) -> None:
    """Rates and alerts need the 0 before the first event."""
    for result in Verdict:
        assert _value(metrics, "delivery_attempts_total", result=result) == 0
    for reason in DEAD_LETTER_REASONS:
        assert _value(metrics, "dead_letters_total", reason=reason) == 0
    for outcome in ("delivered", "dead_lettered", "abandoned"):
        assert _value(metrics, "deliveries_total", outcome=outcome) == 0
    assert _value(metrics, "delivery_retries_total") == 0


def test_attempts_are_counted_and_timed(metrics: Metrics) -> None:
    """Each verdict counts under its own name, and all attempts in one histogram."""
    observer: DeliveryObserver = metrics
    for verdict in Verdict:
        observer.attempted(verdict.value, 0.03)
    observer.attempted("success", 12.0)

    assert _value(metrics, "delivery_attempts_total", result="success") == 2
    assert _value(metrics, "delivery_attempts_total", result="outage") == 1
    assert _value(metrics, "delivery_attempt_seconds_count") == len(Verdict) + 1
    assert _value(metrics, "delivery_attempt_seconds_sum") == pytest.approx(12.12)
    assert _value(metrics, "delivery_attempt_seconds_bucket", le="0.05") == len(Verdict)


def test_ends_are_counted(metrics: Metrics) -> None:
    """Delivered, dead-lettered and given up records count under their outcome."""
    metrics.delivered(0.2)
    metrics.delivered(7200.0)
    for reason in DEAD_LETTER_REASONS:
        metrics.dead_lettered(reason)
    metrics.abandoned(5)
    metrics.retrying()

    assert _value(metrics, "deliveries_total", outcome="delivered") == 2
    assert _value(metrics, "deliveries_total", outcome="dead_lettered") == len(DEAD_LETTER_REASONS)
    assert _value(metrics, "deliveries_total", outcome="abandoned") == 5
    assert _value(metrics, "dead_letters_total", reason="tombstone") == 1
    assert _value(metrics, "delivery_retries_total") == 1
    assert _value(metrics, "paid_to_delivered_seconds_bucket", le="0.25") == 1
    assert _value(metrics, "paid_to_delivered_seconds_sum") == pytest.approx(7200.2)


def test_gauges_are_read_when_they_are_scraped(metrics: Metrics) -> None:
    """Gauges show what is at the moment of the scrape, not at that of the last event."""
    now = {"in_flight": 1, "held": 2, "state": 0, "oldest": 0.5}
    metrics.watch(
        in_flight=lambda: int(now["in_flight"]),
        held=lambda: int(now["held"]),
        breaker_state=lambda: int(now["state"]),
        oldest_unfinished_seconds=lambda: now["oldest"],
    )
    now.update(in_flight=7, held=9, state=2, oldest=61.5)

    assert _value(metrics, "in_flight") == 7
    assert _value(metrics, "held_records") == 9
    assert _value(metrics, "breaker_state") == 2
    assert _value(metrics, "oldest_unfinished_seconds") == 61.5


def test_workers_in_one_process_do_not_mix() -> None:
    """Each worker counts in a registry of its own."""
    one, two = Metrics(), Metrics()
    one.retrying()

    assert _value(two, "delivery_retries_total") == 0
