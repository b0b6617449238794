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

from demo.collector import READY, Collector, Phase
from demo.command_line import ORDER_LOGGING
from demo.ledger import ConsumerLedger
from demo.logger import Kind, LoggerScript
from demo.worker import SHOWN_WARNINGS

LINE_EVERY_SECONDS = 2.0
RECENT_SECONDS = 60.0
# A list longer than this is cut on the terminal; the count still tells all.
SHOWN_IDS = 100
_NAME_WIDTH = len("Saved for replay")
_WORKER_STYLE = {READY: "green", "starting": "yellow", "finishing": "yellow"}
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
    balance, goal = now.ledger.balance(), now.options.orders
    reasons = parts(balance.dead_letter_reasons)
    fields = [
        clock(now.elapsed_seconds),
        f"paid {balance.paid:,}" + (f"/{goal:,}" if goal is not None else ""),
        f"delivered {balance.delivered:,}",
        f"dead-lettered {balance.dead_lettered:,}" + (f" ({reasons})" if reasons else ""),
        f"saved {balance.saved:,}",
        f"worker {now.worker}",
        *(
            f"{one.name} {one.handled:,}, dead-lettered {one.dead_lettered:,} of {one.published:,}"
            for one in now.consumers
        ),
    ]
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
    hint = "Ctrl-C stops it and prints the ledger"
    if now.phase is Phase.STOPPING:
        hint = "Ctrl-C again ends it at once"
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
    breaker, lag = _breaker(_stats(now)) or "unknown", _lag(_stats(now))
    table = Table.grid(padding=(0, 1), expand=True)
    for ratio in (4, 0, 4, 0, 5, 0, 5):
        table.add_column(ratio=ratio or None, no_wrap=True)
    worker, down = _WORKER_STYLE.get(now.worker, "bold red"), "[bold red]DOWN"
    breaker_style = _BREAKER_STYLE.get(breaker, "dim")
    arrow = "[dim]─▶"
    table.add_row(
        *("[bold]Order shop", arrow, "[bold]Kafka", arrow),
        *("[bold]Worker", arrow, "[bold]External logger"),
    )
    table.add_row(
        *(f"{now.rates[0]:.1f} paid/s", "", down if now.kafka_is_down else "in memory only", ""),
        *(f"[{worker}]{now.worker}", "", down if now.logger.is_down else "[green]answers"),
    )
    table.add_row(
        *("SQLite outbox", "", f"lag {sum(lag):,}" if lag else "lag -", ""),
        *(f"[{breaker_style}]breaker {breaker}", "", f"outages so far: {now.logger.outages:,}"),
    )
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

    add("Paid", "", balance.paid, f"{balance.broken:,} of them broken messages")
    rate = f"{now.rates[1]:.1f}/s, {balance.duplicates:,} duplicates"
    add("Delivered", "green", balance.delivered, rate)
    red = "red" if balance.dead_lettered else ""
    add("Dead-lettered", red, balance.dead_lettered, parts(balance.dead_letter_reasons))
    later = f"{balance.replayed:,} reached Kafka later, outages so far: {now.kafka_outages:,}"
    add("Saved for replay", "yellow" if balance.saved else "", balance.saved, later)
    oldest = _stats(now).get("oldest_unfinished_seconds")
    age = f"the oldest for {duration(oldest)}" if oldest else ""
    add("On the way", "yellow", balance.open, age)
    for one in now.consumers:
        name = one.name if len(one.name) <= _NAME_WIDTH else f"{one.name[: _NAME_WIDTH - 1]}…"
        of = f"of {one.published:,} handled, {one.dead_lettered:,} dead letters, {one.open:,} open"
        table.add_row(name, f"[green]{one.handled:,}", of)
    return table


def _parties(now: Collector) -> RenderableType:
    """What the delivery looks like from each side."""
    stats = _stats(now)
    replayed = stats["fallback"]["replayed"]["published"] if stats else None
    in_hand = (
        f"{count(stats.get('in_flight'))} in flight, {count(stats.get('held'))} in hand, "
        f"{count(stats.get('retries'))} retried, {count(replayed)} replayed"
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim", min_width=len("Delivery time"))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row(
        "Delivery time", f"{percentiles(now.percentiles(RECENT_SECONDS))}   (last minute)"
    )
    lags = " ".join(f"{lag:,}" for lag in _lag(stats)) or "-"
    table.add_row("Lag", f"{lags}   (records not committed yet, by partition)")
    table.add_row("Worker", in_hand)
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
    of_goal = f" of {goal:,}" if goal and goal != balance.paid else ""
    others = {"full outages": logger.outages, "slow answers": logger.slow}
    return [
        f"Ledger after {duration(now.open_seconds)}",
        _row("paid, in the shop's database", balance.paid, f"of them broken: {balance.broken:,}"),
        _row("= delivered, the logger said 2xx", balance.delivered),
        _row("+ dead-lettered", balance.dead_lettered),
        *_parts(balance.dead_letter_reasons),
        _row("+ saved for replay", balance.saved, f"reached Kafka later: {balance.replayed:,}"),
        *_open(balance.open, interrupted=interrupted),
        _row("duplicates, 2xx beyond the first", balance.duplicates),
        *_if_any("dead letters beyond the first", balance.repeated_dead_letters),
        *_if_any("delivered and dead-lettered", balance.in_both),
        f"  delivery time: {percentiles(now.percentiles())}",
        f"  the logger: {logger.requests:,} requests, {answers(logger)}",
        *_parts(logger.failures),
        *_parts(others),
        f"  Kafka: {now.kafka_outages:,} outage" + "s" * (now.kafka_outages != 1),
        *_ids("not accounted for", [] if interrupted else now.ledger.missing()),
        *_ids("never paid, or delivered though broken", now.ledger.wrong()),
        _verdict(
            "",
            f"{balance.paid:,}{of_goal} paid, {balance.finished:,} accounted for.",
            closes=closes(now),
            interrupted=interrupted and not balance.wrong,
        ),
    ]


def consumer_report(ledger: ConsumerLedger, *, interrupted: bool) -> list[str]:
    """Write the ledger of a consumer beside order_logging, as ``report`` does."""
    return [
        f"Ledger of {ledger.name}, says the worker",
        _row("orders in Kafka", ledger.published),
        _row("= handled", ledger.handled),
        _row("+ not handled again", ledger.not_handled_again),
        _row("+ dead-lettered", ledger.dead_lettered),
        *_open(ledger.open, interrupted=interrupted),
        _verdict(
            f" of {ledger.name}",
            f"{ledger.published:,} in Kafka, {ledger.finished:,} accounted for.",
            closes=not ledger.open,
            interrupted=interrupted,
        ),
    ]


def _verdict(of: str, sides: str, *, closes: bool, interrupted: bool) -> str:
    if closes:
        return f"The ledger{of} closes: {sides}"
    if interrupted:
        return f"Stopped before the end{of}: {sides}"
    return f"THE LEDGER{of.replace('of', 'OF', 1)} DOES NOT CLOSE: {sides}"


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
    more = [f"  {what}: and {len(ids) - SHOWN_IDS:,} more"] if len(ids) > SHOWN_IDS else []
    return [f"  {what}: {event_id}" for event_id in ids[:SHOWN_IDS]] + more


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


def _stats(now: Collector) -> Mapping[str, Any]:
    """What the worker says of order_logging; empty while it says nothing."""
    return now.stats.get(ORDER_LOGGING, {})


def _breaker(stats: Mapping[str, Any]) -> str:
    return str(stats["breaker"]["state"]).replace("_", "-") if stats else ""


def _lag(stats: Mapping[str, Any]) -> list[int]:
    """Records behind, partition by partition."""
    rows = sorted(stats.get("partitions", ()), key=itemgetter("partition"))
    return [row["lag"] for row in rows if row["lag"] is not None]
