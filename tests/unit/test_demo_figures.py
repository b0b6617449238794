"""The small figures: delivery times, rates, the worker's log, words for numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.collector import Collector, DeliveryTimes
from demo.command_line import Options
from demo.logger import LoggerScript
from demo.view import clock, duration
from demo.worker import WorkerLog


def test_percentiles_are_nearest_ranks_of_the_window() -> None:
    """Out of 1 to 100 seconds the 50th, 95th and 99th; older ones only without a window."""
    times = DeliveryTimes()
    for seconds in range(1, 101):
        times.paid(f"{seconds}", 1000.0 - seconds)
        times.ended(f"{seconds}", 1000.0, delivered=True)
    assert times.percentiles() == [50, 95, 99]
    times.paid("late", 2000.0)
    times.ended("late", 2000.5, delivered=True)
    assert times.percentiles(since=1940.0) == [0.5, 0.5, 0.5]
    assert times.percentiles(since=2000.5) == []


def test_orders_that_end_otherwise_have_no_delivery_time() -> None:
    """Dead letters and unknown ids do not count."""
    times = DeliveryTimes()
    times.paid("dead", 1.0)
    times.ended("dead", 1.5, delivered=False)
    times.ended("dead", 2.0, delivered=True)
    times.ended("unknown", 2.0, delivered=True)
    assert times.percentiles() == []


def test_rates_are_over_the_last_frames() -> None:
    """The window moves on; the first reading has no rate yet."""
    now = 0.0
    collector = Collector(Options(), LoggerScript(1), clock=lambda: now)
    collector.measure_rates()
    rates = [collector.rates]
    for frame in range(1, 21):
        now = frame / 2
        for number in range(10 if frame <= 10 else 0):
            collector.ledger.paid(f"{frame}-{number}")
        collector.ledger.delivered(f"{min(frame, 10)}-0")
        collector.measure_rates()
        rates.append(collector.rates)
    assert rates[:11] == [(0, 0), *[(20, 2)] * 10]
    assert rates[15:] == [(10, 1), (8, 0.8), (6, 0.6), (4, 0.4), (2, 0.2), (0, 0)]


def test_follows_the_log_and_keeps_one_warning_of_each_kind(tmp_path: Path) -> None:
    """Lines are taken whole, colours go, a storm of one kind does not hide another."""
    path = tmp_path / "worker.log"
    log = WorkerLog(path)
    log.read_on()
    assert log.warnings == []
    start = "[2025-12-19 10:30:0{},123] [4711] [{}] "
    with path.open("w") as file:
        file.write(start.format(0, "INFO") + "[^Worker]: Ready\n")
        file.write(start.format(1, "ERROR") + "Breaker open: the target fails\n")
        file.write(start.format(2, "WARNING") + "\x1b[33mRetrying message topic=orders ")
        file.flush()
        log.read_on()
        assert log.warnings == ["10:30:01 Breaker open: the target fails"]
        rest = "partition=1 offset=5 event_id=cb165dcd-2be4-46b5-ae49-647688f9de7f failures=1"
        file.write(rest + "\x1b[0m \n")
        for second in range(3, 9):
            file.write(start.format(second, "WARNING") + f"Retrying message topic=orders {rest}\n")
    log.read_on()
    assert log.warnings == [
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
    assert list(log.tail) == [f"line {number}" for number in range(985, 1000)]


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
    assert duration(seconds) == words


def test_clock_reads_well() -> None:
    """Hours appear when there are any."""
    assert (clock(125), clock(3725.9)) == ("02:05", "1:02:05")
