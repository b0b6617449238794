"""What is shown: a live panel in a terminal, plain lines anywhere else; the ledgers at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from demo.collector import READY, Collector, Phase
from demo.command_line import ORDER_LOGGING
from demo.ledger import ConsumerLedger
from demo.logger import Kind

FRAME_SECONDS = 0.5
LINE_SECONDS = 2.0
# A list longer than this is cut on the terminal; the count still tells all.
SHOWN_IDS = 100
HEIGHT = 24
# What the orders are that are not accounted for, by whether the run was interrupted.
_STILL_OPEN = {False: "  NOT ACCOUNTED FOR", True: "+ waiting in Kafka"}


async def show(now: Collector, console: Console) -> NoReturn:
    """Show how things are, again and again, until this is cancelled."""
    if console.is_terminal and not console.is_dumb_terminal:
        # On the terminal's other screen, typed keys and a new window size leave no traces.
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(render(now), refresh=True)
                await asyncio.sleep(FRAME_SECONDS)
    while True:
        print_lines(console, plain_line(now))
        await asyncio.sleep(LINE_SECONDS)


def print_lines(console: Console, *lines: str) -> None:
    """Print lines as they are: no markup, no colours, no line breaks of our own."""
    console.out(*lines, sep="\n", highlight=False)


def plain_line(now: Collector) -> str:
    """Say how things are, in one line."""
    if now.phase is Phase.STARTING:
        return f"{clock(now.elapsed_seconds)}  worker {now.worker}"
    balance, goal = now.ledger.balance(), now.options.orders
    reasons = "".join(parts(balance.dead_letter_reasons)).strip()
    fields = [
        clock(now.elapsed_seconds),
        f"paid {balance.paid:,}" + (f"/{goal:,}" if goal is not None else ""),
        f"delivered {balance.delivered:,}",
        f"dead-lettered {balance.dead_lettered:,}" + (f" ({reasons})" if reasons else ""),
        f"saved {balance.saved:,}",
        f"worker {now.worker}",
        *_consumers(now),
    ]
    fields += ["Kafka is down"] * now.kafka_is_down + ["the logger is down"] * now.logger.is_down
    return "  ".join(fields)


def _consumers(now: Collector) -> list[str]:
    """What the consumers beside order_logging have done, as the worker says."""
    return [
        f"{one.name} {one.handled:,}, dead-lettered {one.dead_lettered:,} of {one.published:,}"
        for one in now.consumers
    ]


def render(now: Collector) -> RenderableType:
    """Draw the panel: the parties, the ledger so far, where to read on. It fits 80 by 24."""
    lines = [Text.from_markup(line) for line in _parties(now)]
    lines += map(Text, ("", *figures(now, "+ on the way")))
    lines += [Text(f"  {line}") for line in _consumers(now)]
    if goal := now.options.orders:
        lines += [Text(f"  {now.ledger.balance().finished:,} of {goal:,} accounted for")]
    lines += [Text(f"{name:<15}{place}", "dim") for name, place in now.places.items()]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Panel(
        Group(*lines),
        border_style="cyan",
        title=f"[bold]Order relay[/]  {clock(now.elapsed_seconds)}  {now.phase}",
        title_align="left",
        subtitle="[dim]Ctrl-C stops it and prints the ledger, again ends it at once",
        subtitle_align="right",
        padding=(0, 1),
        height=HEIGHT,
    )


def _parties(now: Collector) -> list[str]:
    """How the shop, Kafka, the logger and the worker are."""
    stats = now.stats.get(ORDER_LOGGING)
    kafka, answers = (
        "[bold red]DOWN[/]" if down else "[green]answers[/]"
        for down in (now.kafka_is_down, now.logger.is_down)
    )
    rate = now.ledger.balance().paid / max(now.elapsed_seconds, 1.0)
    shop = f"{rate:.1f} paid/s into SQLite"
    lines = [f"[bold]Order shop[/] {shop}   [bold]Kafka[/] {kafka}   [bold]Logger[/] {answers}"]
    worker = f"[{'green' if now.worker == READY else 'yellow'}]{now.worker}[/]"
    if not stats:
        return [*lines, f"[bold]Worker[/] {worker}"]
    breaker = str(stats["breaker"]["state"]).replace("_", "-")
    rows = sorted(stats["partitions"], key=itemgetter("partition"))
    lag = [row["lag"] for row in rows if row["lag"] is not None]
    by_partition = " ".join(f"{one:,}" for one in lag)
    return [
        *lines,
        f"[bold]Worker[/] {worker}   breaker {breaker}   "
        f"{stats['in_flight']:,} in flight, {stats['held']:,} in hand",
        f"  {stats['retries']:,} retried, {stats['fallback']['replayed']['published']:,} replayed, "
        f"lag {sum(lag):,} ({by_partition})",
    ]


def closes(now: Collector) -> bool:
    """Whether the orders that were to be paid are, and each is accounted for."""
    balance = now.ledger.balance()
    return balance.closes and now.options.orders in {None, balance.paid}


def figures(now: Collector, still_open: str) -> list[str]:
    """Write the ledger's figures; ``still_open`` names orders that are not accounted for."""
    balance, script = now.ledger.balance(), now.logger
    failed = sum(script.failures.values())
    accepted, refused = script.answers[Kind.ACCEPTED], script.answers[Kind.REFUSED]
    times = now.percentiles().items()
    return [
        _row("paid, in the shop's database", balance.paid, f"of them broken: {balance.broken:,}"),
        _row("= delivered, the logger said 2xx", balance.delivered),
        _row("+ dead-lettered", balance.dead_lettered),
        *parts(balance.dead_letter_reasons),
        _row("+ saved for replay", balance.saved, f"reached Kafka later: {balance.replayed:,}"),
        *_if_any(still_open, balance.open),
        _row("duplicates, 2xx beyond the first", balance.duplicates),
        *_if_any("dead letters beyond the first", balance.repeated_dead_letters),
        *_if_any("delivered and dead-lettered", balance.in_both),
        "  delivery time: " + ("   ".join(f"{n} {duration(t)}" for n, t in times) or "-"),
        f"  the logger: {script.requests:,} requests, "
        f"{accepted:,} accepted, {refused:,} refused, {failed:,} failed",
        *parts(script.failures),
        *parts({"full outages": script.outages, "slow answers": script.slow}),
        f"  Kafka: {now.kafka_outages:,} outage" + "s" * (now.kafka_outages != 1),
    ]


def report(now: Collector, *, interrupted: bool) -> list[str]:
    """Write the ledger, line by line.

    Args:
        now: What there is to tell.
        interrupted: It was stopped while orders could still be waiting. What waits is then not
            lost: the next worker would read it.
    """
    balance, goal = now.ledger.balance(), now.options.orders
    of_goal = f" of {goal:,}" if goal and goal != balance.paid else ""
    stopped = interrupted and not balance.wrong
    return [
        f"Ledger after {duration(now.elapsed_seconds)}",
        *figures(now, _STILL_OPEN[interrupted]),
        *_ids("not accounted for", [] if interrupted else now.ledger.missing()),
        *_ids("never paid, or delivered though broken", now.ledger.wrong()),
        f"{_verdict('', closes=closes(now), interrupted=stopped)}: "
        f"{balance.paid:,}{of_goal} paid, {balance.finished:,} accounted for.",
    ]


def consumer_report(ledger: ConsumerLedger, *, interrupted: bool) -> list[str]:
    """Write the ledger of a consumer beside order_logging, as ``report`` does."""
    verdict = _verdict(f" of {ledger.name}", closes=not ledger.open, interrupted=interrupted)
    return [
        f"Ledger of {ledger.name}, says the worker",
        _row("orders in Kafka", ledger.published),
        _row("= handled", ledger.handled),
        _row("+ not handled again", ledger.not_handled_again),
        _row("+ dead-lettered", ledger.dead_lettered),
        *_if_any(_STILL_OPEN[interrupted], ledger.open),
        f"{verdict}: {ledger.published:,} in Kafka, {ledger.finished:,} accounted for.",
    ]


def _verdict(of: str, *, closes: bool, interrupted: bool) -> str:
    if closes:
        return f"The ledger{of} closes"
    if interrupted:
        return f"Stopped before the end{of}"
    return f"THE LEDGER{of.replace('of', 'OF', 1)} DOES NOT CLOSE"


def _row(label: str, number: int, remark: str = "") -> str:
    return f"  {label:<34}{number:>9,}" + (f"   {remark}" if remark else "")


def _if_any(label: str, number: int) -> list[str]:
    return [_row(label, number)] if number else []


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
    """A running time: ``0:02:05``."""
    return str(timedelta(seconds=int(seconds)))


def parts(numbers: Mapping[str, int]) -> list[str]:
    """What a sum is made of, in one line if any: ``rejected 7, invalid_json 1``."""
    text = ", ".join(f"{name} {number:,}" for name, number in numbers.items() if number)
    return [f"      {text}"] if text else []
