"""The small figures: delivery times, rates, the worker's log, words for numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Message

from demo.collector import Collector
from demo.command_line import Options
from demo.logger import LoggerScript
from demo.shop import Order
from demo.view import clock, duration
from demo.worker import WorkerLog

DEFAULTS = Options()


class Run(Collector):
    """A collector whose time the test sets."""

    def __init__(self, options: Options = DEFAULTS) -> None:
        self.now = 1000.0
        super().__init__(options, LoggerScript(1), clock=lambda: self.now)

    def paid_at(self, event_id: str, now: float) -> None:
        """An order that was paid then."""
        self.now = now
        self.paid(Order(event_id, 1, "", b"", broken=False))

    def logged_at(self, event_id: str, now: float) -> None:
        """The logger's answer then."""
        self.now = now
        self.logged(event_id)


def test_percentiles_are_nearest_ranks_of_the_window() -> None:
    """Out of 1 to 100 seconds the 50th, 95th and 99th; older ones only without a window."""
    run = Run()
    for seconds in range(1, 101):
        run.paid_at(f"{seconds}", 1000.0 - seconds)
        run.logged_at(f"{seconds}", 1000.0)
    assert run.percentiles() == [50, 95, 99]
    run.paid_at("late", 2000.0)
    run.logged_at("late", 2000.5)
    assert run.percentiles(60) == [0.5, 0.5, 0.5]
    run.now = 2060.5
    assert run.percentiles(60) == []


def test_only_the_first_answer_ends_the_delivery_time() -> None:
    """Duplicates, dead letters and unknown ids have none."""
    run = Run()
    for event_id in ("a", "dead"):
        run.paid_at(event_id, 10.0)
    headers = [("event-id", b"dead"), ("dlq-reason", b"rejected")]
    run.dead_lettered(Message(topic="orders.DLQ", headers=[*headers]))
    run.logged_at("a", 12.5)
    for event_id in ("a", "dead", "unknown"):
        run.logged_at(event_id, 20.0)
    assert run.percentiles() == [2.5, 2.5, 2.5]


@pytest.mark.parametrize("hands", ["in_flight", "held"])
def test_a_run_is_not_given_up_while_the_worker_has_records(hands: str) -> None:
    """A hopeless order is retried for longer than a run may stand still; then the limit counts."""
    run = Run(Options(orders=2, give_up_after=120.0))
    run.paid_at("hopeless", 1100.0)
    assert not run.is_stalled()
    run.stats = {"order_logging": {"in_flight": 0, "held": 0, hands: 1}}
    for run.now in (1500.0, 2000.0):
        assert not run.is_stalled()
    run.stats = {"order_logging": {"in_flight": 0, "held": 0}}
    for run.now, stalled in ((2119.0, False), (2121.0, True)):
        assert run.is_stalled() is stalled
    run.logged_at("hopeless", 2122.0)
    assert not run.is_stalled()


def test_a_run_whose_worker_never_starts_is_given_up() -> None:
    """Its start may take a minute; from then on the limit counts."""
    run = Run(Options(orders=2, give_up_after=4.0))
    for run.now, stalled in ((1059.0, False), (1064.0, True)):
        assert run.is_stalled() is stalled


def test_a_run_without_end_is_never_given_up() -> None:
    """It goes on until Ctrl-C."""
    run = Run()
    run.now = 10_000.0
    assert not run.is_stalled()


def test_rates_are_over_the_last_frames() -> None:
    """The window moves on; the first reading has no rate yet."""
    run = Run()
    run.measure_rates()
    rates = [run.rates]
    for frame in range(1, 21):
        run.now += 0.5
        for number in range(10 if frame <= 10 else 0):
            run.ledger.paid(f"{frame}-{number}")
        run.ledger.delivered(f"{min(frame, 10)}-0")
        run.measure_rates()
        rates.append(run.rates)
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
    with path.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(1000))
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
