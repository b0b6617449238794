"""What is shown: a live panel in a terminal, plain lines anywhere else; the ledgers at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from demo.collector import Collector, Phase, WorkerState
from demo.ledger import ConsumerLedger
from demo.logger import Kind, LoggerScript
from demo.worker import SHOWN_WARNINGS

LINE_EVERY_SECONDS = 2.0
# A list longer than this is cut on the terminal; the count still tells all.
SHOWN_IDS = 100
_NAME_WIDTH = len("Saved for replay")


_WORKER_STYLE = {
    WorkerState.READY: "green",
    WorkerState.STARTING: "yellow",
    WorkerState.DRAINING: "yellow",
}
_BREAKER_STYLE = {"closed": "green", "half-open": "yellow", "open": "bold red"}


@contextmanager
def view_on(console: Console) -> Iterator[Callable[[Collector], None]]:
    """Give a function that shows one moment; it may be called many times a second."""
    if console.is_terminal and not console.is_dumb_terminal:
        # On the terminal's other screen, typed keys and a new window size leave no traces.
        with Live(
            console=console,
            auto_refresh=False,
            screen=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live:
            yield lambda now: live.update(render(now), refresh=True)
    else:
        last = -math.inf

        def show(now: Collector) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_EVERY_SECONDS:
                last = time.monotonic()
                print_lines(console, plain_line(now))

        yield show


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are: no markup, no colours, no line breaks of our own."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def plain_line(now: Collector) -> str:
    """Say how things are, in one line."""
    if now.phase is Phase.STARTING:
        return f"{clock(now.elapsed_seconds)}  worker {now.worker}"
    balance, stats, goal = now.ledger.balance(), now.stats, now.options.orders
    reasons = parts(balance.dead_letter_reasons)
    fields = [
        clock(now.elapsed_seconds),
        f"paid {balance.paid:,}" + (f"/{goal:,}" if goal is not None else ""),
        f"delivered {balance.delivered:,}",
        f"dead-lettered {balance.dead_lettered:,}" + (f" ({reasons})" if reasons else ""),
        f"saved {balance.saved:,}",
        f"in flight {count(stats.get('in_flight'))}",
        f"retried {count(stats.get('retries'))}",
        f"lag {_lags(stats)}",
        f"breaker {_breaker(stats) or '-'}",
        f"worker {now.worker}",
    ]
    fields += [
        f"{one.name} {one.handled:,}, dead-lettered {one.dead_lettered:,} of {one.published:,}"
        for one in now.consumers
    ]
    if times := now.recent_times:
        fields.append("p50/p95/p99 " + " / ".join(duration(seconds) for seconds in times))
    fields += ["Kafka is down"] * now.kafka_is_down + ["the logger is down"] * now.logger.is_down
    return "  ".join(fields)


def render(now: Collector) -> RenderableType:
    """Draw the panel; it fits into 80 by 24."""
    rows: list[RenderableType] = [_stations(now), Rule(style="dim"), _orders(now)]
    if goal := now.options.orders:
        finished = now.ledger.balance().finished
        progress = Table.grid(padding=(0, 1), expand=True)
        progress.add_column(ratio=1)
        bar = ProgressBar(total=goal, completed=finished)
        progress.add_row(bar, f"{finished:,} of {goal:,} accounted for")
        rows.append(progress)
    rows += [Rule(style="dim"), _parties(now), Rule(style="dim"), *_last_lines(now)]
    ending = now.phase in {Phase.CLOSING, Phase.STOPPING}
    hint = "Ctrl-C again ends it at once" if ending else "Ctrl-C stops it and prints the ledger"
    return Panel(
        Group(*rows),
        border_style="cyan",
        title=f"[bold]Order relay[/]  {clock(now.elapsed_seconds)}  {now.phase}",
        title_align="left",
        subtitle=f"[dim]{hint}",
        subtitle_align="right",
        padding=(0, 1),
    )


def _stations(now: Collector) -> RenderableType:
    """The four stations that an order passes, and how each is."""
    breaker, lag = _breaker(now.stats) or "unknown", _lag(now.stats)
    table = Table.grid(padding=(0, 1), expand=True)
    for ratio in (4, 0, 4, 0, 5, 0, 5):
        table.add_column(ratio=ratio or None, no_wrap=True)
    worker, down = _WORKER_STYLE.get(now.worker, "bold red"), "[bold red]DOWN"
    for between, *cells in (
        (
            "[dim]─▶",
            *(f"[bold]{name}" for name in ("Order shop", "Kafka", "Worker", "External logger")),
        ),
        (
            "",
            f"{now.rates[0]:.1f} paid/s",
            down if now.kafka_is_down else "in memory only",
            f"[{worker}]{now.worker}",
            down if now.logger.is_down else "[green]answers",
        ),
        (
            "",
            "SQLite outbox",
            f"lag {sum(lag):,}" if lag else "lag -",
            f"[{_BREAKER_STYLE.get(breaker, 'dim')}]breaker {breaker}",
            f"outages so far: {now.logger.outages:,}",
        ),
    ):
        first, *others = cells
        table.add_row(first, *(text for cell in others for text in (between, cell)))
    return table


def _orders(now: Collector) -> RenderableType:
    """The ledger so far, one line a figure."""
    balance = now.ledger.balance()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", min_width=9, no_wrap=True, style="bold")
    table.add_column(no_wrap=True, overflow="ellipsis")

    def add(name: str, style: str, figure: int, remark: str) -> None:
        table.add_row(Text(name, style), Text(f"{figure:,}", style), Text(remark))

    refused = f", the database refused {balance.refusals:,}" if balance.refusals else ""
    add("Paid", "", balance.paid, f"{balance.broken:,} of them broken messages{refused}")
    rate = f"{now.rates[1]:.1f}/s, {balance.duplicates:,} duplicates"
    add("Delivered", "green", balance.delivered, rate)
    red = "red" if balance.dead_lettered else ""
    add("Dead-lettered", red, balance.dead_lettered, parts(balance.dead_letter_reasons))
    later = f"{balance.replayed:,} reached Kafka later, outages so far: {now.kafka_outages:,}"
    add("Saved for replay", "yellow" if balance.saved else "", balance.saved, later)
    oldest = now.stats.get("oldest_unfinished_seconds")
    age = f"the oldest for {duration(oldest)}" if oldest else ""
    add("On the way", "yellow", balance.open, age)
    for one in now.consumers:
        name = one.name if len(one.name) <= _NAME_WIDTH else f"{one.name[: _NAME_WIDTH - 1]}…"
        of = f"of {one.published:,} handled, {one.dead_lettered:,} dead letters, {one.open:,} open"
        table.add_row(name, f"[green]{one.handled:,}", of)
    return table


def _parties(now: Collector) -> RenderableType:
    """What the delivery looks like from each side."""
    stats = now.stats
    replayed = stats["fallback"]["replayed"]["published"] if stats else None
    numbers = (stats.get("in_flight"), stats.get("held"), stats.get("retries"), replayed)
    words = ("in flight", "in hand", "retried", "replayed")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim", min_width=len("Delivery time"))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("Delivery time", f"{percentiles(now.recent_times)}   (last minute)")
    table.add_row("Lag", f"{_lags(stats)}   (records not committed yet, by partition)")
    table.add_row(
        "Worker", ", ".join(f"{count(n)} {what}" for n, what in zip(numbers, words, strict=True))
    )
    table.add_row("Logger", f"{now.logger.requests:,} requests: {answers(now.logger)}")
    table.add_row("", parts(now.logger.failures) or "no failures so far")
    return table


def _last_lines(now: Collector) -> list[RenderableType]:
    """The last warnings, always as many lines, and where to read on."""
    lines = [f"[yellow]{escape(warning)}" for warning in now.warnings]
    lines = lines or ["[dim]no warnings from the worker so far"]
    room = max(SHOWN_WARNINGS - len(now.consumers), 0)  # each has a line of its own above
    lines = lines[max(len(lines) - room, 0) :] + [""] * (room - len(lines))
    lines += [f"[dim]{name:<15}{escape(place)}" for name, place in now.places.items()]
    texts = [Text.from_markup(line, overflow="ellipsis") for line in lines]
    for text in texts:
        text.no_wrap = True
    return [*texts]


def closes(now: Collector) -> bool:
    """Whether the orders that were to be paid are, and each is accounted for."""
    balance = now.ledger.balance()
    return balance.closes and now.options.orders in {None, balance.paid}


def report(now: Collector, *, interrupted: bool) -> list[str]:
    """Write the ledger, line by line.

    Args:
        now: What there is to tell.
        interrupted: It was stopped while orders could still be waiting. What waits is then not
            lost: the next worker would read it.
    """
    balance, logger, goal = now.ledger.balance(), now.logger, now.options.orders
    later = f"reached Kafka later: {balance.replayed:,}"
    lines = [
        f"Ledger after {duration(now.open_seconds)}",
        _row("paid, in the shop's database", balance.paid, f"of them broken: {balance.broken:,}"),
        _row("= delivered, the logger said 2xx", balance.delivered),
        _row("+ dead-lettered", balance.dead_lettered),
        *_parts(balance.dead_letter_reasons),
        _row("+ saved for replay", balance.saved, later),
        *_open(balance.open, interrupted=interrupted),
        *_if_any("orders that the database refused", balance.refusals),
        _row("duplicates, 2xx beyond the first", balance.duplicates),
        *_if_any("dead letters beyond the first", balance.repeated_dead_letters),
        *_if_any("delivered and dead-lettered", balance.in_both),
        f"  delivery time: {percentiles(now.times.percentiles())}",
        f"  the logger: {logger.requests:,} requests, {answers(logger)}",
        *_parts(logger.failures),
        *_parts({"full outages": logger.outages, "slow answers": logger.slow}),
        f"  Kafka: {now.kafka_outages:,} outage" + "s" * (now.kafka_outages != 1),
    ]
    if not interrupted:
        lines += _ids("not accounted for", now.ledger.missing())
    lines += _ids("never paid, or delivered though broken", now.ledger.wrong())
    of_goal = f" of {goal:,}" if goal and goal != balance.paid else ""
    sides = f"{balance.paid:,}{of_goal} paid, {balance.finished:,} accounted for."
    if closes(now):
        return [*lines, f"The ledger closes: {sides}"]
    if interrupted and not balance.goes_wrong:
        return [*lines, f"Stopped before the end: {sides}"]
    return [*lines, f"THE LEDGER DOES NOT CLOSE: {sides}"]


def consumer_report(ledger: ConsumerLedger, *, interrupted: bool) -> list[str]:
    """Write the ledger of a consumer beside order_logging, as ``report`` does."""
    name = ledger.name
    received = "" if ledger.received is None else f"its service said 2xx: {ledger.received:,}"
    lines = [
        f"Ledger of {name}",
        _row(f"published to {ledger.topic}", ledger.published),
        _row("= handled, says the worker", ledger.handled, received),
        _row("+ not handled again", ledger.not_handled_again),
        _row("+ dead-lettered", ledger.dead_lettered),
        *_open(ledger.open, interrupted=interrupted),
        *_if_any("dead letters beyond the first", ledger.repeated_dead_letters),
    ]
    sides = f"{ledger.published:,} published, {ledger.finished:,} accounted for."
    if ledger.closes:
        return [*lines, f"The ledger of {name} closes: {sides}"]
    if interrupted and not ledger.goes_wrong:
        return [*lines, f"Stopped before the end of {name}: {sides}"]
    return [*lines, f"THE LEDGER OF {name} DOES NOT CLOSE: {sides}"]


def _row(label: str, number: int, remark: str = "") -> str:
    return f"  {label:<34}{number:>9,}" + (f"   {remark}" if remark else "")


def _if_any(label: str, number: int) -> list[str]:
    return [_row(label, number)] if number else []


def _open(number: int, *, interrupted: bool) -> list[str]:
    return _if_any("+ waiting in Kafka" if interrupted else "  NOT ACCOUNTED FOR", number)


def _parts(numbers: Mapping[str, int]) -> list[str]:
    text = parts(numbers)
    return [f"      {text}"] if text else []


def _ids(what: str, ids: Sequence[str]) -> list[str]:
    lines = [f"  {what}: {event_id}" for event_id in ids[:SHOWN_IDS]]
    if len(ids) > SHOWN_IDS:
        lines.append(f"  {what}: and {len(ids) - SHOWN_IDS:,} more")
    return lines


def duration(seconds: float) -> str:
    """A short time: ``34 ms``, ``1.2 s``, ``2 min 05 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def clock(seconds: float) -> str:
    """A running time: ``02:05``, ``1:02:05``."""
    hours, rest = divmod(int(seconds), 3600)
    return (f"{hours}:" if hours else "") + f"{rest // 60:02d}:{rest % 60:02d}"


def percentiles(times: Sequence[float]) -> str:
    """The three figures in one line."""
    names = ("p50", "p95", "p99")
    return "   ".join(f"{n} {duration(t)}" for n, t in zip(names, times, strict=False)) or "-"


def answers(logger: LoggerScript) -> str:
    """The logger's answers in one line."""
    accepted, refused = logger.answers[Kind.ACCEPTED], logger.answers[Kind.REFUSED]
    failed = sum(logger.failures.values())
    return f"{accepted:,} accepted, {refused:,} refused, {failed:,} failed"


def parts(numbers: Mapping[str, int]) -> str:
    """What a sum is made of: ``rejected 7, invalid_json 1``."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items() if number)


def count(value: int | None) -> str:
    """A count, or a dash where there is none."""
    return "-" if value is None else f"{value:,}"


def _breaker(stats: Mapping[str, Any]) -> str:
    return str(stats["breaker"]["state"]).replace("_", "-") if stats else ""


def _lag(stats: Mapping[str, Any]) -> list[int]:
    """Records behind, partition by partition."""
    rows = sorted(stats.get("partitions", ()), key=itemgetter("partition"))
    return [row["lag"] for row in rows if row["lag"] is not None]


def _lags(stats: Mapping[str, Any]) -> str:
    return " ".join(f"{lag:,}" for lag in _lag(stats)) or "-"
