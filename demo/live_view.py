"""The panel in the terminal: one frame from one snapshot. It fits into 80 by 24."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from demo import formatting
from demo.snapshot import Phase, Snapshot, WorkerState
from demo.worker_log import SHOWN_WARNINGS

_WORKER_STYLE = {
    WorkerState.READY: "green",
    WorkerState.STARTING: "yellow",
    WorkerState.DRAINING: "yellow",
}
_BREAKER_STYLE = {"closed": "green", "half-open": "yellow", "open": "bold red"}


_NAME_WIDTH = len("Saved for replay")


def render(now: Snapshot) -> RenderableType:
    """Draw one frame."""
    rows: list[RenderableType] = [_way(now), Rule(style="dim"), _orders(now)]
    if now.goal is not None:
        rows.append(_progress(now, now.goal))
    rows += [Rule(style="dim"), _parties(now), Rule(style="dim"), *_warnings(now)]
    return Panel(
        Group(*rows),
        box=box.ROUNDED,
        border_style="cyan",
        title=Text.assemble(
            ("Order relay", "bold"), f"  {formatting.clock(now.elapsed_seconds)}  {now.phase}"
        ),
        title_align="left",
        subtitle=Text(
            "Ctrl-C again ends it at once"
            if now.phase in {Phase.CLOSING, Phase.STOPPING}
            else "Ctrl-C stops it and prints the ledger",
            "dim",
        ),
        subtitle_align="right",
        padding=(0, 1),
    )


def _way(now: Snapshot) -> RenderableType:
    """The four stations that an order passes, and how each is."""
    breaker, lag = now.metrics.breaker or "unknown", now.metrics.lag
    table = Table.grid(padding=(0, 1), expand=True)
    for ratio in (4, 0, 4, 0, 5, 0, 5):
        table.add_column(ratio=ratio or None, no_wrap=True)
    arrow = Text("─▶", "dim")
    table.add_row(
        Text("Order shop", "bold"),
        arrow,
        Text("Kafka", "bold"),
        arrow,
        Text("Worker", "bold"),
        arrow,
        Text("External logger", "bold"),
    )
    table.add_row(
        f"{now.paid_per_second:.1f} paid/s",
        "",
        Text("DOWN", "bold red") if now.kafka_is_down else Text("in memory only"),
        "",
        Text(str(now.worker), _WORKER_STYLE.get(now.worker, "bold red")),
        "",
        Text("DOWN", "bold red") if now.logger.is_down else Text("answers", "green"),
    )
    table.add_row(
        "SQLite outbox",
        "",
        Text(f"lag {sum(lag.values()):,}" if lag else "lag -"),
        "",
        Text(f"breaker {breaker}", _BREAKER_STYLE.get(breaker, "dim")),
        "",
        f"outages so far: {now.logger.outages:,}",
    )
    return table


def _orders(now: Snapshot) -> RenderableType:
    """The ledger so far, one line a figure."""
    balance = now.balance
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", min_width=9, no_wrap=True, style="bold")
    table.add_column(no_wrap=True, overflow="ellipsis")
    refused = f", the database refused {balance.refusals:,}" if balance.refusals else ""
    table.add_row(
        "Paid", f"{balance.paid:,}", Text(f"{balance.broken:,} of them broken messages{refused}")
    )
    table.add_row(
        Text("Delivered", "green"),
        Text(f"{balance.delivered:,}", "green"),
        f"{now.delivered_per_second:.1f}/s, {balance.duplicates:,} duplicates",
    )
    table.add_row(
        Text("Dead-lettered", "red" if balance.dead_lettered else ""),
        Text(f"{balance.dead_lettered:,}", "red" if balance.dead_lettered else ""),
        Text(formatting.parts(balance.dead_letter_reasons)),
    )
    saved = "yellow" if balance.saved else ""
    table.add_row(
        Text("Saved for replay", saved),
        Text(f"{balance.saved:,}", saved),
        f"{balance.replayed:,} reached Kafka later, outages so far: {now.kafka_outages:,}",
    )
    oldest = now.metrics.oldest_unfinished_seconds
    age = f"the oldest for {formatting.duration(oldest)}" if oldest else ""
    table.add_row(Text("On the way", "yellow"), Text(f"{balance.open:,}", "yellow"), age)
    for one in now.consumers:
        table.add_row(
            Text(one.name if len(one.name) <= _NAME_WIDTH else f"{one.name[: _NAME_WIDTH - 1]}…"),
            Text(f"{one.handled:,}", "green"),
            f"of {one.published:,} handled, {one.dead_lettered:,} dead letters, {one.open:,} open",
        )
    return table


def _progress(now: Snapshot, goal: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row(
        ProgressBar(total=goal, completed=now.balance.finished),
        f"{now.balance.finished:,} of {goal:,} accounted for",
    )
    return grid


def _parties(now: Snapshot) -> RenderableType:
    """What the delivery looks like from each side."""
    logger, metrics = now.logger, now.metrics
    failures = formatting.parts(logger.failures)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim", min_width=len("Delivery time"))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("Delivery time", f"{formatting.percentiles(now.times)}   (last minute)")
    table.add_row(
        "Lag", f"{formatting.lag(metrics.lag)}   (records not committed yet, by partition)"
    )
    table.add_row(
        "Worker",
        f"{formatting.number(metrics.in_flight)} in flight, "
        f"{formatting.number(metrics.queued)} in hand, "
        f"{formatting.number(metrics.retries)} retried, "
        f"{formatting.number(metrics.published)} replayed",
    )
    table.add_row(
        "Logger",
        f"{logger.requests:,} requests: {logger.accepted:,} accepted, "
        f"{logger.refused:,} refused, {logger.failed:,} failed",
    )
    table.add_row("", Text(failures or "no failures so far"))
    return table


def _warnings(now: Snapshot) -> list[RenderableType]:
    """The last warnings, always as many lines, and where to read on."""
    lines = [Text(str(warned), "yellow") for warned in now.warnings]
    lines = lines or [Text("no warnings from the worker so far", "dim")]
    room = max(SHOWN_WARNINGS - len(now.consumers), 1)  # each has a line of its own above
    lines = lines[-room:] + [Text("")] * (room - len(lines))
    lines += [
        Text(f"{name:<15}{place}", "dim")
        for name, place in (
            ("Worker's log", now.log_path),
            ("Its console", now.console_url),
        )
    ]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return [*lines]
