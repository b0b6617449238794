"""The catalogue of metrics: every name of the design exists at the start, and counts."""

import math
import platform
from collections.abc import Callable
from functools import partial

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from order_relay.delivery.answer import STATUS_CLASSES, Answer, Verdict, judge
from order_relay.delivery.batch_results import item_answers
from order_relay.delivery.outcome import DeliveryObserver
from order_relay.delivery.target_health import Target, TargetState
from order_relay.fallback.store import FallbackStats
from order_relay.monitoring.metrics import (
    ATTEMPT_RESULTS,
    CLOSED_REASONS,
    DEAD_LETTER_REASONS,
    GAUGES,
    OF_PARTITION,
    ConsumerMetrics,
    Metrics,
)
from order_relay.version import VERSION
from tests.support.targets import target

# Names, kinds and labels of the delivering half; each has the label "consumer", too.
CATALOGUE = {
    "order_relay_deliveries": ("counter", {"outcome"}),
    "order_relay_delivery_attempts": ("counter", {"result", "status"}),
    "order_relay_delivery_attempt_seconds": ("histogram", set()),
    "order_relay_paid_to_delivered_seconds": ("histogram", set()),
    "order_relay_in_flight": ("gauge", set()),
    "order_relay_consumer_lag": ("gauge", {"topic", "partition"}),
    "order_relay_transaction_open_seconds": ("gauge", {"topic", "partition"}),
    "order_relay_near_deletion_records": ("gauge", {"topic", "partition"}),
    "order_relay_deleted_records": ("counter", set()),
    "order_relay_oldest_unfinished_seconds": ("gauge", set()),
    "order_relay_dead_letters": ("counter", {"reason"}),
    "order_relay_breaker_state": ("gauge", set()),
    "order_relay_target_state": ("gauge", {"state"}),
    "order_relay_target_rate_limit": ("gauge", set()),
    "order_relay_concurrency_limit": ("gauge", set()),
    "order_relay_first_attempts_failed_ratio": ("gauge", set()),
    "order_relay_left_in_kafka_records": ("gauge", set()),
}


@pytest.fixture
def metrics() -> ConsumerMetrics:
    """The metrics of a consumer of a worker that has just started."""
    return Metrics().of("order_logging")


def _value(metrics: ConsumerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(
        f"order_relay_{name}", {"consumer": metrics.consumer, **labels}
    )


def _by_label(metrics: ConsumerMetrics | Metrics, name: str, label: str) -> dict[str, float]:
    """The values of a worker's metric by its only label."""
    return {
        sample.labels[label]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"order_relay_{name}"
    }


def test_every_name_and_label_of_the_design_is_there(metrics: ConsumerMetrics) -> None:
    """Dashboards find every metric on a new worker; its labels are those of the design."""
    for name in GAUGES[OF_PARTITION]:
        metrics.of_partition(name, "order-paid-events", 0, 0)
    text = generate_latest(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    found = {
        name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le", "consumer"},
        )
        for name, family in families.items()
    }

    assert {name: found[name] for name in CATALOGUE} == CATALOGUE
    assert all(sample.labels["consumer"] for name in CATALOGUE for sample in families[name].samples)
    assert all(family.documentation for family in families.values())
    assert all(name.startswith("order_relay_") for name in families)


def test_every_known_label_is_0_at_the_start(metrics: ConsumerMetrics) -> None:
    """Rates and alerts need the 0 before the first event."""
    assert ATTEMPT_RESULTS.keys() == set(Verdict)
    for result, statuses in ATTEMPT_RESULTS.items():
        for status in statuses:
            name = "delivery_attempts_total"
            assert _value(metrics, name, result=result, status=status) == 0
    for state in TargetState:
        assert _value(metrics, "target_state", state=state.name.lower()) == 0
    for reason in DEAD_LETTER_REASONS:
        assert _value(metrics, "dead_letters_total", reason=reason) == 0
    worker = {
        "web_connections_closed_total": ("reason", CLOSED_REASONS),
        "published_total": ("result", ["published", "saved", "refused", "busy", "failed"]),
        "fallback_replayed_total": ("result", ["published", "retry", "failed"]),
    }
    for name, (label, values) in worker.items():
        assert _by_label(metrics, name, label) == dict.fromkeys(values, 0)
    assert set(_by_label(metrics, "fallback_messages", "status")) == {
        "pending",
        "published",
        "failed",
    }
    for outcome in ("delivered", "dead_lettered", "duplicate", "skipped", "abandoned"):
        assert _value(metrics, "deliveries_total", outcome=outcome) == 0
    assert _value(metrics, "delivery_retries_total") == 0
    assert _value(metrics, "deleted_records_total") == 0


def test_attempts_are_counted_and_timed(metrics: ConsumerMetrics) -> None:
    """Each verdict counts under its own name, and all attempts in one histogram."""
    observer: DeliveryObserver = metrics
    for verdict, statuses in ATTEMPT_RESULTS.items():
        observer.attempted(verdict, statuses[0], 0.03)
    observer.attempted("success", "2xx", 12.0)
    observer.attempted("retryable", "timeout", 0.03)

    attempts = "delivery_attempts_total"
    assert _value(metrics, attempts, result="success", status="2xx") == 2
    assert _value(metrics, attempts, result="outage", status="3xx") == 1
    assert _value(metrics, attempts, result="retryable", status="timeout") == 1
    assert _value(metrics, attempts, result="retryable", status="5xx") == 0
    assert _value(metrics, "delivery_attempt_seconds_count") == len(Verdict) + 2
    assert _value(metrics, "delivery_attempt_seconds_sum") == pytest.approx(12.0 + 0.03 * 8)
    assert _value(metrics, "delivery_attempt_seconds_bucket", le="0.05") == len(Verdict) + 1


def test_every_status_has_its_class() -> None:
    """The verdict and class of any answer are in the catalogue."""
    answers = [
        Answer(judge(status, retry_after=retry_after), status)
        for status in range(100, 1000)
        for retry_after in (False, True)
    ]
    answers += item_answers(Answer(Verdict.SUCCESS, 207), 2, str)  # no results
    assert [one for one in answers if one.status_class not in ATTEMPT_RESULTS[one.verdict]] == []
    assert {one for statuses in ATTEMPT_RESULTS.values() for one in statuses} == set(STATUS_CLASSES)


def test_outcomes_are_counted(metrics: ConsumerMetrics) -> None:
    """Delivered, dead-lettered, skipped and abandoned records are counted."""
    metrics.delivered(0.2)
    metrics.delivered(7200.0)
    for reason in DEAD_LETTER_REASONS:
        metrics.dead_lettered(reason)
    metrics.skipped()
    metrics.abandoned(5)
    metrics.retrying()

    assert _value(metrics, "deliveries_total", outcome="delivered") == 2
    assert _value(metrics, "deliveries_total", outcome="dead_lettered") == len(DEAD_LETTER_REASONS)
    assert _value(metrics, "deliveries_total", outcome="skipped") == 1
    assert _value(metrics, "deliveries_total", outcome="abandoned") == 5
    assert _value(metrics, "dead_letters_total", reason="tombstone") == 1
    assert _value(metrics, "delivery_retries_total") == 1
    assert _value(metrics, "paid_to_delivered_seconds_bucket", le="0.25") == 1
    assert _value(metrics, "paid_to_delivered_seconds_sum") == pytest.approx(7200.2)


def test_gauges_are_read_when_they_are_scraped(metrics: ConsumerMetrics) -> None:
    """Gauges show the values at the scrape, not those at the last event."""
    now = dict.fromkeys((*GAUGES["consumer",], "table_entries"), 0.0)
    metrics.watch(**{name: partial(now.__getitem__, name) for name in now})
    now.update({name: number + 0.5 for number, name in enumerate(now)})

    of_table = {"table": "deliveries"}
    for name, value in now.items():
        assert _value(metrics, name, **(of_table if name == "table_entries" else {})) == value


@pytest.mark.parametrize("state", TargetState)
def test_the_target_is_in_one_state(metrics: ConsumerMetrics, state: TargetState) -> None:
    """The current state is 1, the others are 0.

    Without a limit its rate is NaN, which no sum, axis or alert uses.
    """
    metrics.target = lambda: target(state, rate=None)
    assert {
        one: _value(metrics, "target_state", state=one.name.lower()) for one in TargetState
    } == {one: one is state for one in TargetState}
    assert math.isnan(_value(metrics, "target_rate_limit") or 0)


def test_the_target_is_looked_at_once_in_a_scrape(metrics: ConsumerMetrics) -> None:
    """A scrape shows the target at one moment, with limits and shares."""
    looks: list[str] = []

    def look() -> Target:
        looks.append("one")
        return target(TargetState.THROTTLES, rate=48.5, share_failed=0.25, concurrency=17)

    metrics.target = look
    metrics.watch(left_in_kafka_records=lambda: 2_060)
    found = {
        sample.name.removeprefix("order_relay_"): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
    }

    assert looks == ["one"]
    assert found["target_rate_limit"] == 48.5
    assert found["concurrency_limit"] == 17
    assert found["first_attempts_failed_ratio"] == 0.25
    assert found["left_in_kafka_records"] == 2_060


def test_consumers_of_one_worker_do_not_mix() -> None:
    """Each counts under its own name; each family exists once."""
    metrics = Metrics()
    one, two = metrics.of("coupons"), metrics.of("order_logging")
    assert metrics.of("coupons") is one
    one.delivered(0.2)
    one.attempted("success", "function", 0.03)
    one.dead_lettered("rejected")
    one.of_partition("consumer_lag", "orders", 0, 7)
    one.target = lambda: target(TargetState.DOWN)
    one.watch(left_in_kafka_records=lambda: 3)

    another_worker = Metrics().of("coupons")
    for consumer, expected in ((one, 1), (two, 0), (another_worker, 0)):
        assert _value(consumer, "deliveries_total", outcome="delivered") == expected
        assert _value(consumer, "dead_letters_total", reason="rejected") == expected
        assert _value(consumer, "paid_to_delivered_seconds_count") == expected
        assert _value(consumer, "target_state", state="down") == expected
    assert _value(two, "consumer_lag", topic="orders", partition="0") is None
    one.of_partition("consumer_lag", "orders", 0, None)
    assert _value(one, "consumer_lag", topic="orders", partition="0") is None
    text = generate_latest(metrics.registry).decode()
    assert text.count("# TYPE order_relay_deliveries_total ") == 1


@pytest.mark.parametrize(
    ("count", "name", "told", "label"),
    [
        (Metrics.published, "published", "acknowledged", "published"),
        (Metrics.published, "published", "saved", "saved"),
        (Metrics.published, "published", "invalid", "refused"),
        (Metrics.published, "published", "too_large", "refused"),
        (Metrics.published, "published", "busy", "busy"),
        (Metrics.published, "published", "failed", "failed"),
        (Metrics.published, "published", "something new", "failed"),
        (Metrics.replayed, "fallback_replayed", "published", "published"),
        (Metrics.replayed, "fallback_replayed", "retried", "retry"),
        (Metrics.replayed, "fallback_replayed", "failed", "failed"),
    ],
)
def test_results_of_publishing_and_replaying(
    count: Callable[[Metrics, str], None], name: str, told: str, label: str
) -> None:
    """Each result is counted once under its label; an unknown one makes no new label."""
    metrics = Metrics()
    labels = _by_label(metrics, f"{name}_total", "result").keys()
    count(metrics, told)
    counted = _by_label(metrics, f"{name}_total", "result")
    assert counted == dict.fromkeys(labels, 0) | {label: 1}


def test_figures_of_the_fallback_table() -> None:
    """The gauges show the table's counts."""
    metrics = Metrics()
    metrics.counted(FallbackStats(2, 45, 1, 61.5, 7.5), works=True)
    assert _by_label(metrics, "fallback_messages", "status") == {
        "pending": 2,
        "published": 45,
        "failed": 1,
    }
    sample = metrics.registry.get_sample_value
    assert sample("order_relay_fallback_oldest_pending_seconds") == 61.5
    assert sample("order_relay_fallback_oldest_failed_seconds") == 7.5
    assert sample("order_relay_fallback_database_up") == 1


def test_the_version_is_a_metric() -> None:
    """One series with the value 1 has the versions of the relay and of Python as labels."""
    labels = {"version": VERSION, "python": platform.python_version()}
    value = Metrics().registry.get_sample_value("order_relay_build_info", labels)
    assert value == 1
