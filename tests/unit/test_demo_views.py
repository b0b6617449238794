"""Views: the panel fits a small terminal; the lines and the ledger are complete."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from demo.collector import Collector, Phase
from demo.command_line import Options
from demo.ledger import ConsumerLedger, Ledger
from demo.logger import Kind, SampleLogger
from demo.shop import Order
from demo.view import SHOWN_IDS, closes, plain_line, render, report

NOW = 45_296.0


def ledger_of(delivered: int, dead: int = 0, missing: int = 0) -> Ledger:
    """A ledger with so many orders of each kind."""
    ledger = Ledger()
    for number in range(delivered + dead + missing):
        event_id = f"event-{number}"
        ledger.paid(event_id)
        if number < delivered:
            ledger.delivered(event_id)
        elif number < delivered + dead:
            ledger.dead_lettered(event_id, ("rejected", "retries_exhausted")[number % 2])
    return ledger


def with_saved(ledger: Ledger, saved: int, replayed: int) -> Ledger:
    """The same, with so many more orders in the table, and so many replayed."""
    ids = [f"saved-{number}" for number in range(saved + replayed)]
    for event_id in ids:
        ledger.paid(event_id)
    ledger.saved_for_replay(ids)
    ledger.saved_for_replay(ids[:saved])
    for event_id in ids[saved:]:
        ledger.delivered(event_id)
    return ledger


def busy_logger() -> SampleLogger:
    """A logger that has done much, and is down."""
    script = SampleLogger(1, 0, clock=lambda: NOW)
    script.answer("an order that begins an outage")
    script.requests, script.slow, script.outages = 71_900, 2700, 12
    answers = {Kind.ACCEPTED: 60_200, Kind.REFUSED: 700, Kind.UNAVAILABLE: 6700, Kind.RESET: 4_300}
    script.answers = Counter(answers)
    return script


def busy() -> Collector:
    """A run of several consumers, with large figures everywhere."""
    at = 0.0
    now = Collector(Options(orders=500_000), busy_logger(), clock=lambda: at)
    for seconds, count in ((0.034, 50), (1.2, 45), (125.0, 5)):
        for number in range(count):
            event_id = f"{seconds}-{number}"
            at = NOW - seconds
            now.paid(Order(event_id, 1, "", b"", broken=False))
            at = NOW
            now.logged(event_id)
    now.phase = Phase.RUNNING
    now.ledger = with_saved(ledger_of(1378, 40, 14), 2_004, 122)
    now.answer = "does not answer"
    lags = ((1, 4000), (0, 5000), (2, 6000), (3, 5000), (4, None))
    figures = {
        "in_flight": 256, "held": 1256, "retries": 12_345, "breaker": {"state": "half_open"},
        "partitions": [{"partition": partition, "lag": lag} for partition, lag in lags],
        "fallback": {"replayed": {"published": 23_456}},
    }  # fmt: skip
    now.stats = {"order_logging": figures}
    now.kafka_is_down, now.kafka_outages = True, 12
    now.places = {
        "Worker's log": "/tmp/order-relay-abcdefgh/worker.log",  # noqa: S108 - a name, not a file
        "Its console": "http://127.0.0.1:6066/",
        "Its commands": ". /tmp/order-relay-abcdefgh/commands.sh",
    }
    in_kafka = now.ledger.balance().paid - now.ledger.balance().saved
    now.consumers = [
        ConsumerLedger(name, now.ledger, handled=in_kafka - 341, dead_lettered=7)
        for name in ("notifications", "a_name_that_is_rather_long")
    ]
    return now


BUSY = busy()
QUIET = Collector(Options(), SampleLogger(1), clock=lambda: NOW)
QUIET.places = BUSY.places


def drawn(now: Collector, width: int) -> str:
    """The lines of one frame."""
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=False)
    with console.capture() as capture:
        console.print(render(now))
    return capture.get()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("now", [BUSY, QUIET], ids=["busy", "quiet"])
def test_the_panel_fits_the_terminal(now: Collector, width: int) -> None:
    """No frame is higher than 24 lines or wider than the terminal."""
    lines = drawn(now, width).splitlines()
    assert len(lines) <= 24
    assert max(len(line) for line in lines) == width
    assert not any("…" in line for line in lines)


def test_the_panel_cuts_no_figure_short() -> None:
    """At 80 columns all large figures of a busy run are readable."""
    text = drawn(BUSY, 80)
    for figure in (
        "12:34:56", "0.1 paid/s into SQLite", "lag 20,000", "5,000 4,000 6,000 5,000",
        "does not answer", "breaker half-open", "DOWN", "full outages 12", "Kafka: 12 outages",
        "3,558", "delivery time:", "1,500", "2,004", "reached Kafka later: 122",
        "rejected 20, retries_exhausted 20", "p50 34 ms   p95 1.2 s   p99 2 min 05 s",
        "256 in flight", "12,345 retried", "23,456 replayed", "71,900 requests", "11,000 failed",
        "3,544 of 500,000 accounted for", BUSY.places["Worker's log"],
        "  notifications 1,213, dead-lettered 7 of 1,554",
    ):  # fmt: skip
        assert figure in text


def test_the_plain_line_says_the_same() -> None:
    """Without a terminal there is one line with the figures of the orders."""
    line = plain_line(BUSY)
    assert "\n" not in line
    for figure in ("paid 3,558/500,000", "delivered 1,500", "dead-lettered 40", "rejected 20",
                   "saved 2,004", "Kafka is down", "worker does not answer", "logger is down",
                   "  notifications 1,213, dead-lettered 7 of 1,554"
                   "  a_name_that_is_rather_long 1,213"):  # fmt: skip
        assert figure in line
    assert plain_line(QUIET) == "0:00:00  worker starting"


def closing(ledger: Ledger, goal: int | None = None) -> Collector:
    """A run that has ended with this ledger."""
    at = NOW - 23.4
    now = Collector(Options(orders=goal), busy_logger(), clock=lambda: at)
    now.ledger = ledger
    at = NOW
    now.kafka_outages = 1
    return now


def test_a_ledger_that_closes() -> None:
    """The figures are one below the other, and the last line says that it closes."""
    lines = report(closing(with_saved(ledger_of(479, 11), 4, 6)), interrupted=False)
    assert lines[0] == "Ledger after 23.4 s"
    assert lines[1].split()[-5:] == ["500", "of", "them", "broken:", "0"]
    text = "\n".join(lines)
    assert "= delivered, the logger said 2xx        485" in text
    assert "rejected 5, retries_exhausted 6" in text or "retries_exhausted 6, rejected 5" in text
    assert "+ saved for replay                        4   reached Kafka later: 6" in text
    assert "Kafka: 1 outage" in text.splitlines()[-2]
    assert lines[-1] == "The ledger closes: 500 paid, 500 accounted for."
    assert max(len(line) for line in lines) <= 80


def test_a_ledger_that_does_not_close_names_the_ids() -> None:
    """Every missing id is named; a very long list is cut and counted."""
    lines = report(closing(ledger_of(10, 0, 2)), interrupted=False)
    assert "  not accounted for: event-10" in lines
    assert "  not accounted for: event-11" in lines
    lines = report(closing(ledger_of(0, 0, SHOWN_IDS + 5)), interrupted=False)
    assert "  not accounted for: and 5 more" in lines


@pytest.mark.parametrize(
    ("run", "interrupted", "last", "does_close"),
    [
        (closing(ledger_of(10, 0, 2)), False,
         "THE LEDGER DOES NOT CLOSE: 12 paid, 10 accounted for.", False),
        # Nothing lost is not enough: the orders that were asked for must have been paid.
        (closing(ledger_of(10), goal=12), False,
         "THE LEDGER DOES NOT CLOSE: 10 of 12 paid, 10 accounted for.", False),
        (closing(ledger_of(12), goal=12), False,
         "The ledger closes: 12 paid, 12 accounted for.", True),
        # What waited when the user stopped it is not lost.
        (closing(ledger_of(10, 1, 3)), True,
         "Stopped before the end: 14 paid, 11 accounted for.", False),
    ],
)  # fmt: skip
def test_the_last_line(run: Collector, interrupted: bool, last: str, does_close: bool) -> None:
    """It says whether the ledger closes; after Ctrl-C a line says what waits."""
    lines = report(run, interrupted=interrupted)
    assert lines[-1] == last
    assert ("  + waiting in Kafka                        3" in lines) == interrupted
    assert closes(run) == does_close


def test_oddities_are_told() -> None:
    """Duplicates, unknown events and events in both places have own lines."""
    ledger = ledger_of(2)
    ledger.delivered("event-0")
    ledger.dead_lettered("event-1", "rejected")
    ledger.dead_lettered("event-1", "rejected")
    ledger.delivered("stranger")
    text = "\n".join(report(closing(ledger), interrupted=True))
    for words in (
        "duplicates, 2xx beyond the first          1",
        "dead letters beyond the first             1",
        "delivered and dead-lettered               1",
        "never paid, or delivered though broken: stranger",
        "THE LEDGER DOES NOT CLOSE",
    ):
        assert words in text
