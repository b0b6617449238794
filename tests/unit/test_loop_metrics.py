"""Metrics of the event loop's thread: shown as prometheus-client shows its own."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from order_relay.monitoring.loop_metrics import LoopCounter, LoopHistogram

BOUNDS = (0.01, 0.25, 1.0, 14400.0)
VALUES = [("success", "2xx"), ("retryable", "5xx"), ("outage", "4xx")]


@given(
    st.lists(st.sampled_from(VALUES)),
    st.lists(st.sampled_from([0.0, *BOUNDS, 1e9]) | st.floats(0.0, 20_000.0)),
)
def test_what_is_scraped_is_what_the_clients_own_metrics_show(
    counted: list[tuple[str, str]], observed: list[float]
) -> None:
    """Names, types, comments, labels, the order of all, and each value."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    names = ("consumer", "result", "status")
    counter = LoopCounter("results", "Results.", names, VALUES, ours)
    histogram = LoopHistogram("wait_seconds", "Waits.", "consumer", BOUNDS, ours)
    their_counter = Counter("results", "Results.", names, registry=theirs)
    their_histogram = Histogram(
        "wait_seconds", "Waits.", ("consumer",), buckets=BOUNDS, registry=theirs
    )
    for consumer in ("coupons", "points"):
        counts, waits = counter.of(consumer), histogram.of(consumer)
        their_waits = their_histogram.labels(consumer)
        for values in VALUES:
            their_counter.labels(consumer, *values)
        for values in counted:
            counts[values] += 1
            their_counter.labels(consumer, *values).inc()
        for amount in observed:
            waits.observe(amount)
            their_waits.observe(amount)

    assert generate_latest(ours) == generate_latest(theirs)


def test_one_of_them_can_be_asked_for_alone() -> None:
    """A look at some metrics does not collect the others."""
    registry = CollectorRegistry()
    counter = LoopCounter("results", "Results.", ("of", "result"), [("success",)], registry)
    LoopHistogram("wait_seconds", "Waits.", "of", BOUNDS, registry).of("coupons")
    counter.of("coupons")["success",] += 3

    (family,) = registry.restricted_registry(["results_total"]).collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"of": "coupons", "result": "success"}, 3)
    ]
    assert registry.get_sample_value("wait_seconds_count", {"of": "coupons"}) == 0
