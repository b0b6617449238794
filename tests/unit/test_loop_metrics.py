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

from app.operations.loop_metrics import LoopCounter, LoopHistogram

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
    counter = LoopCounter("results", "Results.", ("result", "status"), VALUES, ours)
    histogram = LoopHistogram("wait_seconds", "Waits.", BOUNDS, ours)
    their_counter = Counter("results", "Results.", ("result", "status"), registry=theirs)
    their_histogram = Histogram("wait_seconds", "Waits.", buckets=BOUNDS, registry=theirs)
    for values in VALUES:
        their_counter.labels(*values)
    for values in counted:
        counter.counts[values] += 1
        their_counter.labels(*values).inc()
    for amount in observed:
        histogram.observe(amount)
        their_histogram.observe(amount)

    assert generate_latest(ours) == generate_latest(theirs)


def test_one_of_them_can_be_asked_for_alone() -> None:
    """A look at some metrics does not collect the others."""
    registry = CollectorRegistry()
    counter = LoopCounter("results", "Results.", ("result",), [("success",)], registry)
    LoopHistogram("wait_seconds", "Waits.", BOUNDS, registry)
    counter.counts["success",] += 3

    (family,) = registry.restricted_registry(["results_total"]).collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"result": "success"}, 3)
    ]
    assert registry.get_sample_value("wait_seconds_count") == 0
