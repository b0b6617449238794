"""The worker's metrics of itself, and all metrics as prometheus-client would show them."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)

from order_relay.delivery.target_health import TargetState
from order_relay.monitoring import metrics
from order_relay.monitoring.history import HOURS, STATES_KEPT, History
from order_relay.monitoring.measurements import (
    LOOP_INTERVAL_SECONDS,
    watch_event_loop,
)
from order_relay.monitoring.metrics import Metrics
from tests.support.targets import target


def test_the_process_is_at_the_workers_own_registry() -> None:
    """CPU, memory, files, the garbage collector and Python's version are there to be scraped."""
    metrics = Metrics()
    metrics.add_process()
    value = metrics.registry.get_sample_value

    for name in (
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ):
        assert (value(name) or 0) > 0, name
    assert value("python_gc_collections_total", {"generation": "2"}) is not None


@pytest.mark.virtual_time
async def test_an_idle_loop_is_not_late() -> None:
    """Each probe of an idle loop reports 0, four times a second."""
    told: list[float] = []
    watch = asyncio.create_task(watch_event_loop(told.append))
    await asyncio.sleep(10 * LOOP_INTERVAL_SECONDS)
    watch.cancel()

    assert 9 <= len(told) <= 10
    assert max(told) == pytest.approx(0)


async def test_what_blocks_the_loop_is_seen() -> None:
    """A blocking call delays the next probe by the rest of its time."""
    told: asyncio.Queue[float] = asyncio.Queue()
    watch = asyncio.create_task(watch_event_loop(told.put_nowait))
    await asyncio.sleep(0)
    time.sleep(2 * LOOP_INTERVAL_SECONDS)  # noqa: ASYNC251 - the subject of this test
    late = await told.get()
    watch.cancel()

    assert late >= LOOP_INTERVAL_SECONDS * 0.9


BOUNDS = metrics.ATTEMPT_BUCKETS
VALUES = metrics.DELIVERY_COUNTERS["delivery_attempts"][2]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(VALUES), st.sampled_from([0.0, *BOUNDS, 1e9]) | st.floats(0.0, 20_000.0)
        )
    )
)
def test_what_is_scraped_is_what_the_clients_own_metrics_show(
    attempts: list[tuple[tuple[str, ...], float]],
) -> None:
    """Names, types, comments, labels, their order, and each value."""
    ours, theirs = Metrics(), CollectorRegistry()
    name = "order_relay_delivery_attempt"
    text, labels, _ = metrics.DELIVERY_COUNTERS["delivery_attempts"]
    counter = Counter(f"{name}s", text, ("consumer", *labels), registry=theirs)
    text, bounds = metrics.DELIVERY_HISTOGRAMS["delivery_attempt_seconds"]
    histogram = Histogram(f"{name}_seconds", text, ("consumer",), buckets=bounds, registry=theirs)
    for consumer in ("coupons", "points"):
        observer, waits = ours.of(consumer), histogram.labels(consumer)
        for values in VALUES:
            counter.labels(consumer, *values)
        for values, seconds in attempts:
            observer.attempted(values[0], values[1], seconds)
            counter.labels(consumer, *values).inc()
            waits.observe(seconds)

    names = [f"{name}{part}" for part in ("s_total", "_seconds_bucket", "_seconds_count")]
    alone = ours.registry.restricted_registry([*names, f"{name}_seconds_sum"])
    assert generate_latest(alone) == generate_latest(theirs)


def test_one_of_them_can_be_asked_for_alone() -> None:
    """A query for some returns no others."""
    worker = Metrics()
    worker.of("coupons").delivered(0.1)
    registry = worker.registry
    (family,) = registry.restricted_registry(["order_relay_deliveries_total"]).collect()
    assert ({"consumer": "coupons", "outcome": "delivered"}, 1) in [
        (sample.labels, sample.value) for sample in family.samples
    ]


class Watched:
    """A history with its own clock, target and figures."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.target = target()
        self.figures: dict[str, float] = {}
        self.history = History(lambda: self.target, lambda: self.figures, lambda: self.now)

    def look(self, seconds: float = 1.0) -> None:
        """Look, some seconds later."""
        self.now += seconds
        self.history.look()


def test_figures_are_kept_once_a_minute_for_six_hours() -> None:
    """One a minute, up to six hours."""
    watched = Watched()
    for second in range(150):
        watched.figures = {"lag": second, "oldest_seconds": 0.5, "delivered": 7}
        watched.look()
    minutes = watched.history.as_json()["minutes"]
    assert [one["lag"] for one in minutes] == [0, 60, 120]
    assert minutes[0] == {"at": 1001.0, "lag": 0, "oldest_seconds": 0.5, "delivered": 7}
    for _ in range(HOURS * 60 + 5):
        watched.look(60)
    assert len(watched.history.as_json()["minutes"]) == HOURS * 60


def test_a_change_of_the_target_is_noted_once() -> None:
    """From works to down and back: three entries, each with its line."""
    watched = Watched()
    for state in (TargetState.WORKS, TargetState.DOWN, TargetState.WORKS):
        watched.target = target(state=state)
        watched.look()
        watched.look()
    changes = watched.history.as_json()["target"]
    assert [one["state"] for one in changes] == ["works", "down", "works"]
    assert [one["at"] for one in changes] == [1001.0, 1003.0, 1005.0]
    assert changes[1]["said"] == str(target(state=TargetState.DOWN))


def test_a_target_that_flaps_fills_no_memory() -> None:
    """Only the latest changes are kept."""
    watched = Watched()
    for number in range(3 * STATES_KEPT):
        state = TargetState.DOWN if number % 2 else TargetState.WORKS
        watched.target = target(state=state)
        watched.look()
    assert len(watched.history.as_json()["target"]) == STATES_KEPT
