"""The ledger in print, at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo import formatting
from demo.consumer_ledger import ConsumerBalance
from demo.delivery_times import Percentiles
from demo.ledger import Balance
from demo.snapshot import LoggerFigures

# A list longer than this is cut on the terminal; the count still tells all.
SHOWN_IDS = 100


@dataclass(frozen=True, slots=True)
class Closing:
    """What the last page of the ledger tells.

    Attributes:
        goal: Orders that were to be paid; ``None`` for as many as there are.
        balance: The figures.
        seconds: From the first payment to the end.
        times: Delivery times of the run.
        logger: What the sample logger did.
        kafka_outages: How often Kafka was out of reach.
        missing: Ids that were paid and are not finished.
        wrong: Ids that should not be where they are.
    """

    goal: int | None
    balance: Balance
    seconds: float
    times: Percentiles | None
    logger: LoggerFigures
    kafka_outages: int
    missing: Sequence[str]
    wrong: Sequence[str]

    @property
    def closes(self) -> bool:
        """The orders that were to be paid are, and each is accounted for."""
        return self.balance.closes and self.goal in {None, self.balance.paid}


def report(closing: Closing, *, interrupted: bool) -> list[str]:
    """Write the ledger, line by line.

    Args:
        closing: What it tells.
        interrupted: It was stopped while orders could still be waiting; what waits is then no
            loss, but what a worker would take up next.
    """
    balance, logger = closing.balance, closing.logger
    lines = [
        f"Ledger after {formatting.duration(closing.seconds)}",
        _row("paid, in the shop's database", balance.paid, f"of them broken: {balance.broken:,}"),
        _row("= delivered, the logger said 2xx", balance.delivered),
        _row("+ dead-lettered", balance.dead_lettered),
        *_parts(balance.dead_letter_reasons),
        _row(
            "+ saved for replay",
            balance.saved,
            f"reached Kafka later: {balance.replayed:,}",
        ),
    ]
    if balance.open:
        lines.append(_row(_open_label(interrupted=interrupted), balance.open))
    if balance.refusals:
        lines.append(_row("orders that the database refused", balance.refusals))
    lines.append(_row("duplicates, 2xx beyond the first", balance.duplicates))
    if balance.repeated_dead_letters:
        lines.append(_row("dead letters beyond the first", balance.repeated_dead_letters))
    if balance.in_both:
        lines.append(_row("delivered and dead-lettered", balance.in_both))
    lines += [
        f"  delivery time: {formatting.percentiles(closing.times)}",
        f"  the logger: {logger.requests:,} requests, {logger.accepted:,} accepted, "
        f"{logger.refused:,} refused, {logger.failed:,} failed",
        *_parts(logger.failures),
        *_parts({"full outages": logger.outages, "slow answers": logger.slow}),
        f"  Kafka: {_outages(closing.kafka_outages)}",
    ]
    if not interrupted:
        lines += _ids("not accounted for", closing.missing)
    lines += _ids("never paid, or delivered though broken", closing.wrong)
    lines.append(_verdict(closing, interrupted=interrupted))
    return lines


def consumer_report(balance: ConsumerBalance, *, interrupted: bool) -> list[str]:
    """Write the ledger of a consumer beside order_logging, as ``report`` does."""
    received = "" if balance.received is None else f"its service said 2xx: {balance.received:,}"
    lines = [
        f"Ledger of {balance.name}",
        _row(f"published to {balance.topic}", balance.published),
        _row("= handled, says the worker", balance.handled, received),
        _row("+ not handled again", balance.not_handled_again),
        _row("+ dead-lettered", balance.dead_lettered),
    ]
    if balance.open:
        lines.append(_row(_open_label(interrupted=interrupted), balance.open))
    if balance.repeated_dead_letters:
        lines.append(_row("dead letters beyond the first", balance.repeated_dead_letters))
    sides = f"{balance.published:,} published, {balance.finished:,} accounted for"
    if balance.closes:
        return [*lines, f"The ledger of {balance.name} closes: {sides}."]
    if interrupted and not balance.goes_wrong:
        return [*lines, f"Stopped before the end of {balance.name}: {sides}."]
    return [*lines, f"THE LEDGER OF {balance.name} DOES NOT CLOSE: {sides}."]


def _open_label(*, interrupted: bool) -> str:
    return "+ waiting in Kafka" if interrupted else "  NOT ACCOUNTED FOR"


def _row(label: str, number: int, remark: str = "") -> str:
    return f"  {label:<34}{number:>9,}" + (f"   {remark}" if remark else "")


def _parts(numbers: Mapping[str, int]) -> list[str]:
    text = formatting.parts(numbers)
    return [f"      {text}"] if text else []


def _ids(what: str, ids: Sequence[str]) -> list[str]:
    lines = [f"  {what}: {event_id}" for event_id in ids[:SHOWN_IDS]]
    if len(ids) > SHOWN_IDS:
        lines.append(f"  {what}: and {len(ids) - SHOWN_IDS:,} more")
    return lines


def _outages(number: int) -> str:
    return f"{number:,} outage" + ("" if number == 1 else "s")


def _verdict(closing: Closing, *, interrupted: bool) -> str:
    balance = closing.balance
    of_goal = "" if closing.goal in {None, balance.paid} else f" of {closing.goal:,}"
    sides = f"{balance.paid:,}{of_goal} paid, {balance.finished:,} accounted for"
    if closing.closes:
        return f"The ledger closes: {sides}."
    if interrupted and not balance.goes_wrong:
        return f"Stopped before the end: {sides}."
    return f"THE LEDGER DOES NOT CLOSE: {sides}."
