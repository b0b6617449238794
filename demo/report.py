"""The ledgers in print, at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from demo.collector import Collector
from demo.ledger import ConsumerLedger
from demo.view import answers, duration, parts, percentiles

# A list longer than this is cut on the terminal; the count still tells all.
SHOWN_IDS = 100


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
