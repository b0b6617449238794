"""The small figures: delivery times, rates, the worker's metrics and log, words for numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import formatting
from demo.delivery_times import DeliveryTimes, Percentiles
from demo.snapshot import RateMeter
from demo.worker_log import WorkerLog
from demo.worker_metrics import WorkerMetrics, parse_metrics

METRICS = """\
# HELP order_relay_delivery_retries_total Attempts that failed and are to be made again.
# TYPE order_relay_delivery_retries_total counter
order_relay_delivery_retries_total 61.0
# TYPE order_relay_in_flight gauge
order_relay_in_flight 3.0
# TYPE order_relay_held_records gauge
order_relay_held_records 17.0
# TYPE order_relay_breaker_state gauge
order_relay_breaker_state 2.0
# TYPE order_relay_oldest_unfinished_seconds gauge
order_relay_oldest_unfinished_seconds 1.25
# TYPE order_relay_consumer_lag gauge
order_relay_consumer_lag{partition="10",topic="orders"} 4.0
order_relay_consumer_lag{partition="2",topic="orders"} 7.0
order_relay_consumer_lag{partition="0",topic="others"} 9.0
# TYPE order_relay_fallback_replayed_total counter
order_relay_fallback_replayed_total{result="published"} 41.0
order_relay_fallback_replayed_total{result="retry"} 2.0
# TYPE order_relay_fallback_messages gauge
order_relay_fallback_messages{status="pending"} NaN
# TYPE faust_total_events counter
faust_total_events 5.0
"""


OF_ANOTHER = """\
order_relay_in_flight{consumer="coupons"} 90.0
order_relay_breaker_state{consumer="coupons"} 1.0
order_relay_consumer_lag{consumer="coupons",partition="2",topic="orders"} 70.0
"""


def test_percentiles_are_nearest_ranks_of_the_window() -> None:
    """Out of 1 to 100 seconds the 50th, 95th and 99th; older ones only without a window."""
    times = DeliveryTimes()
    for seconds in range(1, 101):
        times.paid(f"{seconds}", 1000.0 - seconds)
        times.delivered(f"{seconds}", 1000.0)
    assert times.percentiles() == Percentiles(50, 95, 99)
    times.paid("late", 2000.0)
    times.delivered("late", 2000.5)
    assert times.percentiles(since=1940.0) == Percentiles(0.5, 0.5, 0.5)
    assert times.percentiles(since=2000.5) is None


def test_orders_that_end_otherwise_have_no_delivery_time() -> None:
    """Dead letters and unknown ids do not count."""
    times = DeliveryTimes()
    times.paid("dead", 1.0)
    times.ended_otherwise("dead")
    times.delivered("dead", 2.0)
    times.delivered("unknown", 2.0)
    assert times.percentiles() is None


def test_rates_are_over_the_last_seconds() -> None:
    """The window moves on; the first reading has no rate yet."""
    meter = RateMeter(window_seconds=5)
    assert meter.read(0, 0) == 0
    assert meter.read(2, 40) == 20
    assert meter.read(4, 80) == 20
    assert meter.read(8, 80) == 0


def test_reads_the_workers_metrics() -> None:
    """The figures of order_logging are picked out by name, the lag by partition, in order."""
    metrics = parse_metrics(METRICS + OF_ANOTHER, "orders")
    assert metrics == WorkerMetrics(
        in_flight=3,
        queued=17,
        retries=61,
        oldest_unfinished_seconds=1.25,
        breaker="open",
        lag={2: 7, 10: 4},
        published=41,
    )
    assert list(metrics.lag) == [2, 10]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>502 Bad Gateway</html>",
        "order_relay_in_flight NaN\n",
        "order_relay_in_flight +Inf\n",
        "order_relay_breaker_state 7\n",
        'order_relay_consumer_lag{topic="orders"} 3\n',
    ],
)
def test_missing_or_unreadable_metrics_are_empty(text: str) -> None:
    """A worker that says nothing, or nonsense, is shown as saying nothing."""
    assert parse_metrics(text, "orders") == WorkerMetrics()


def shown(log: WorkerLog) -> list[str]:
    """The warnings as they are shown."""
    return [str(warned) for warned in log.warnings]


def test_follows_the_log_and_keeps_one_warning_of_each_kind(tmp_path: Path) -> None:
    """Lines are taken whole, colours go, a storm of one kind does not hide another."""
    path = tmp_path / "worker.log"
    log = WorkerLog(path)
    log.read_on()
    assert log.warnings == ()
    start = "[2025-12-19 10:30:0{},123] [4711] [{}] "
    with path.open("w") as file:
        file.write(start.format(0, "INFO") + "[^Worker]: Ready\n")
        file.write(start.format(1, "ERROR") + "Breaker open: the target fails\n")
        file.write(start.format(2, "WARNING") + "\x1b[33mRetrying message topic=orders ")
        file.flush()
        log.read_on()
        assert shown(log) == ["10:30:01 Breaker open: the target fails"]
        rest = "partition=1 offset=5 event_id=cb165dcd-2be4-46b5-ae49-647688f9de7f failures=1"
        file.write(rest + "\x1b[0m \n")
        for second in range(3, 9):
            file.write(start.format(second, "WARNING") + f"Retrying message topic=orders {rest}\n")
    log.read_on()
    assert shown(log) == [
        "10:30:01 Breaker open: the target fails",
        "10:30:08 7 times Retrying message event_id=cb165dcd failures=1",
    ]
    assert log.tail[0].endswith("[^Worker]: Ready")


def test_the_logs_tail_is_bounded(tmp_path: Path) -> None:
    """Only the last lines are kept, a traceback's among them."""
    path = tmp_path / "worker.log"
    path.write_text("\n".join(f"line {number}" for number in range(1000)) + "\n")
    log = WorkerLog(path)
    log.read_on()
    assert log.tail == tuple(f"line {number}" for number in range(985, 1000))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 ms"),
        (0.0341, "34 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125.4, "2 min 05 s"),
    ],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    """The unit fits the size."""
    assert formatting.duration(seconds) == words


def test_clock_reads_well() -> None:
    """Hours appear when there are any."""
    assert (formatting.clock(125), formatting.clock(3725.9)) == ("02:05", "1:02:05")
