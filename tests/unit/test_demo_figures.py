"""Small figures: delivery times, a stalled run, and texts for numbers."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Message

from demo.collector import Collector
from demo.command_line import Options
from demo.logger import SampleLogger
from demo.shop import Order
from demo.view import duration

DEFAULTS = Options()


class Run(Collector):
    """A collector whose time the test sets."""

    def __init__(self, options: Options = DEFAULTS) -> None:
        self.now = 1000.0
        super().__init__(options, SampleLogger(1), clock=lambda: self.now)

    def paid_at(self, event_id: str, now: float) -> None:
        """An order that was paid then."""
        self.now = now
        self.paid(Order(event_id, 1, "", b"", broken=False))

    def logged_at(self, event_id: str, now: float) -> None:
        """The logger's answer then."""
        self.now = now
        self.logged(event_id)


def test_percentiles_are_nearest_ranks() -> None:
    """Out of 1 to 100 seconds the 50th, 95th and 99th; nothing at first."""
    run = Run()
    assert run.percentiles() == {}
    for seconds in range(1, 101):
        run.paid_at(f"{seconds}", 1000.0 - seconds)
        run.logged_at(f"{seconds}", 1000.0)
    assert run.percentiles() == {"p50": 50, "p95": 95, "p99": 99}


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
    assert run.percentiles() == {"p50": 2.5, "p95": 2.5, "p99": 2.5}


@pytest.mark.parametrize("left", [(0, "closed"), (1, "open"), (1, "half_open")])
def test_a_run_is_not_given_up_while_the_worker_tries_records(left: tuple[int, str]) -> None:
    """A hopeless order is retried for longer than a run may stall; then the limit counts.

    Behind an open breaker it is tried for ever, if no other order comes.
    """

    def figures(held: int, breaker: str) -> dict[str, Any]:
        return {"order_logging": {"held": held, "breaker": {"state": breaker}}}

    run = Run(Options(orders=2, give_up_after=120.0))
    run.paid_at("hopeless", 1100.0)
    assert not run.is_stalled()
    run.stats = figures(1, "closed")
    for run.now in (1500.0, 2000.0):
        assert not run.is_stalled()
    run.stats = figures(*left)
    for run.now, stalled in ((2119.0, False), (2121.0, True)):
        assert run.is_stalled() is stalled
    run.logged_at("hopeless", 2122.0)
    assert not run.is_stalled()


def test_a_run_whose_worker_never_starts_is_given_up() -> None:
    """Its start may take a minute; then the limit counts, but not in a run without end."""
    for run, at_last in ((Run(Options(orders=2, give_up_after=4.0)), True), (Run(), False)):
        for run.now, stalled in ((1059.0, False), (1064.1, at_last), (10_000.0, at_last)):
            assert run.is_stalled() is stalled


def test_a_run_waits_for_its_slowest_consumer() -> None:
    """An order is open until every consumer has accounted for it."""
    run = Run(Options(consumers=("order_logging", "coupons")))
    run.paid_at("a", 1100.0)
    run.logged_at("a", 1101.0)
    (coupons,) = run.consumers
    assert run.open == 1
    assert not coupons.tell({"deliveries": {"delivered": 0}, "partitions": []})
    assert coupons.tell({"deliveries": {"delivered": 1}, "partitions": []})
    assert run.open == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 ms"), (0.0341, "34 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (59.94, "59.9 s"),
     (59.96, "1 min 00 s"), (125.4, "2 min 05 s")],
)  # fmt: skip
def test_durations_read_well(seconds: float, words: str) -> None:
    """The unit fits the size."""
    assert duration(seconds) == words
