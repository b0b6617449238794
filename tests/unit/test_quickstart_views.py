"""What is shown: the panel fits a small terminal, the lines and the ledger say all."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from demo.consumer_ledger import ConsumerBalance
from demo.delivery_times import Percentiles
from demo.ledger import Ledger
from demo.ledger_report import SHOWN_IDS, Closing, report
from demo.live_view import render
from demo.plain_view import plain_line
from demo.snapshot import LoggerFigures, Phase, Snapshot, WorkerState
from demo.worker_log import Warned
from demo.worker_metrics import WorkerMetrics


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
    """The same, with so many more orders in the table, and so many that were there."""
    ids = [f"saved-{number}" for number in range(saved + replayed)]
    for event_id in ids:
        ledger.paid(event_id)
    ledger.saved_for_replay(ids)
    ledger.saved_for_replay(ids[:saved])
    for event_id in ids[saved:]:
        ledger.delivered(event_id)
    return ledger


LOGGER = LoggerFigures(
    requests=71_900,
    accepted=60_200,
    refused=700,
    failures={"503": 6700, "429": 500, "connection reset": 3_200, "no answer": 600},
    slow=2700,
    outages=12,
    is_down=True,
)
BUSY = Snapshot(
    elapsed_seconds=45_296.0,
    goal=500_000,
    phase=Phase.STOPPING,
    balance=with_saved(ledger_of(1378, 40, 14), 2_004, 122).balance(),
    paid_per_second=1000.0,
    delivered_per_second=987.6,
    times=Percentiles(0.034, 1.2, 125.0),
    worker=WorkerState.SILENT,
    metrics=WorkerMetrics(
        in_flight=256,
        queued=1256,
        retries=12_345,
        oldest_unfinished_seconds=61.5,
        breaker="half-open",
        lag={0: 5000, 1: 4000, 2: 6000, 3: 5000},
        published=23_456,
    ),
    logger=LOGGER,
    kafka_is_down=True,
    kafka_outages=12,
    warnings=tuple(Warned("10:30:00", "a warning that is long " * 20, n) for n in (1, 2, 3)),
    log_path="/tmp/order-relay-abcdefgh/worker.log",  # noqa: S108 - a name, not a file
    console_url="http://127.0.0.1:6066/",
)
QUIET = dataclasses.replace(
    BUSY,
    elapsed_seconds=0.0,
    goal=None,
    phase=Phase.STARTING,
    balance=Ledger().balance(),
    times=None,
    worker=WorkerState.STARTING,
    metrics=WorkerMetrics(),
    logger=LoggerFigures(0, 0, 0, {}, 0, 0, is_down=False),
    kafka_is_down=False,
    kafka_outages=0,
    warnings=(),
)


SEVERAL = dataclasses.replace(
    BUSY,
    consumers=tuple(
        ConsumerBalance(name, "order-paid-events", 60_200, 58_266, 0, 700, 0, None)
        for name in ("notifications", "a_name_that_is_rather_long")
    ),
)


def drawn(snapshot: Snapshot, width: int) -> list[str]:
    """The lines of one frame."""
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=False)
    with console.capture() as capture:
        console.print(render(snapshot))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("snapshot", [BUSY, QUIET, SEVERAL], ids=["busy", "quiet", "several"])
def test_the_panel_fits_the_terminal(snapshot: Snapshot, width: int) -> None:
    """No frame is higher than 24 lines or wider than the terminal."""
    lines = drawn(snapshot, width)
    assert len(lines) <= 24
    assert max(len(line) for line in lines) == width


def test_the_panel_cuts_no_figure_short() -> None:
    """At 80 columns the large figures of a busy run are all there to read."""
    text = "\n".join(drawn(BUSY, 80))
    for figure in (
        "12:34:56",
        "1000.0 paid/s",
        "lag 20,000",
        "5,000 4,000 6,000 5,000",
        "does not answer",
        "breaker half-open",
        "DOWN",
        "outages so far: 12",
        "SQLite outbox",
        "3,558",
        "Delivery time",
        "1,500",
        "2,004",
        "122 reached Kafka later, outages so far: 12",
        "rejected 20, retries_exhausted 20",
        "p50 34 ms   p95 1.2 s   p99 2 min 05 s",
        "256 in flight",
        "12,345 retried",
        "23,456 replayed",
        "71,900 requests",
        "11,000 failed",
        "3,544 of 500,000 accounted for",
        "/tmp/order-relay-abcdefgh/worker.log",  # noqa: S108 - a name, not a file
    ):
        assert figure in text


def test_the_plain_line_says_the_same() -> None:
    """Without a terminal there is one line with all the figures."""
    line = plain_line(BUSY)
    assert "\n" not in line
    for figure in ("paid 3,558/500,000", "delivered 1,500", "dead-lettered 40", "rejected 20",
                   "saved 2,004", "Kafka is down", "in flight 256", "retried 12,345",
                   "lag 5,000 4,000 6,000 5,000",
                   "breaker half-open", "worker does not answer", "34 ms / 1.2 s / 2 min 05 s",
                   "logger is down"):  # fmt: skip
        assert figure in line
    assert plain_line(QUIET) == "00:00  worker starting"


def test_each_further_consumer_has_a_line_and_a_field() -> None:
    """Name and figures of each are in the panel, in the place of warnings, and in the line."""
    lines = drawn(SEVERAL, 80)
    figures = "58,266  of 60,200 handled, 700 dead letters, 1,234 open"
    assert any("notifications" in line and figures in line for line in lines)
    assert any("a_name_that_is_…" in line and figures in line for line in lines)
    assert len(lines) == len(drawn(BUSY, 80))
    assert "notifications 58,266, dead-lettered 700 of 60,200" in plain_line(SEVERAL)


def closing(ledger: Ledger, goal: int | None = None) -> Closing:
    """The last page of a ledger."""
    return Closing(
        goal=goal,
        balance=ledger.balance(),
        seconds=23.4,
        times=Percentiles(0.03, 1.0, 6.0),
        logger=LOGGER,
        kafka_outages=1,
        missing=ledger.missing(),
        wrong=ledger.wrong(),
    )


def test_a_ledger_that_closes() -> None:
    """The figures stand one below the other, and the last line says that it closes."""
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
    assert lines[-1] == "THE LEDGER DOES NOT CLOSE: 12 paid, 10 accounted for."
    lines = report(closing(ledger_of(0, 0, SHOWN_IDS + 5)), interrupted=False)
    assert "  not accounted for: and 5 more" in lines


def test_a_run_that_pays_too_few_orders_does_not_close() -> None:
    """Nothing lost is not enough: the orders that were asked for must have been paid."""
    short = closing(ledger_of(10), goal=12)
    assert not short.closes
    assert report(short, interrupted=False)[-1] == (
        "THE LEDGER DOES NOT CLOSE: 10 of 12 paid, 10 accounted for."
    )
    assert closing(ledger_of(12), goal=12).closes


def test_a_ledger_after_ctrl_c_tells_what_waits() -> None:
    """What was waiting when the user stopped it is no loss, and is not called one."""
    lines = report(closing(ledger_of(10, 1, 3)), interrupted=True)
    assert "  + waiting in Kafka                        3" in lines
    assert lines[-1] == "Stopped before the end: 14 paid, 11 accounted for."


def test_oddities_are_told() -> None:
    """Refusals, duplicates, strangers and events in both places have lines of their own."""
    ledger = ledger_of(2)
    ledger.refused()
    ledger.delivered("event-0")
    ledger.dead_lettered("event-1", "rejected")
    ledger.dead_lettered("event-1", "rejected")
    ledger.delivered("stranger")
    text = "\n".join(report(closing(ledger), interrupted=True))
    for words in (
        "orders that the database refused          1",
        "duplicates, 2xx beyond the first          1",
        "dead letters beyond the first             1",
        "delivered and dead-lettered               1",
        "never paid, or delivered though broken: stranger",
        "THE LEDGER DOES NOT CLOSE",
    ):
        assert words in text
