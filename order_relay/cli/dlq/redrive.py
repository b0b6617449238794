"""``order-relay dlq redrive``, ``dlq discard`` and ``dlq purge``."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from order_relay.cli import command, output
from order_relay.cli.audit_entry import write_entry
from order_relay.cli.dlq.letters import (
    FILTERS,
    LIMIT_RANGE,
    POSITION,
    TIME,
    check_selection,
    letter_filter,
    letters_table,
)
from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter, LetterPosition
from order_relay.dead_letters.open_topic import open_topic
from order_relay.dead_letters.redrive import LetterResult, RedriveResult, Selection
from order_relay.model.byte_text import to_text
from order_relay.tracing.switch import running_tracing

NAMED = 5  # letters in the audit log
POSITIONS = click.argument("positions", nargs=-1, type=POSITION, metavar="[PARTITION:OFFSET]...")
LIMIT = click.option("--limit", type=LIMIT_RANGE, help="The first so many of them.")
BECAUSE = click.option("--because", default="", help="Why, for the audit log.")


@command.define(
    POSITIONS,
    command.ALL,
    *FILTERS,
    LIMIT,
    click.option(
        "--max-redrives",
        type=click.IntRange(1, 1000),
        default=3,
        help="Leave letters that were redriven so often; by default 3.",
    ),
    click.option(
        "--rate",
        type=click.FloatRange(0, 1_000_000, min_open=True),
        help="At most so many letters a second.",
    ),
    BECAUSE,
    command.DRY_RUN,
    command.YES,
    command.CONSUMER,
    command.JSON,
)
async def redrive(
    *,
    positions: tuple[LetterPosition, ...],
    everything: bool,
    limit: int | None,
    max_redrives: int,
    rate: float | None,
    because: str,
    dry_run: bool,
    yes: bool,
    consumer: str | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """Publish dead letters to the orders' topic again: by position, by filters, or --all.

    Each goes out as its record came, with the event-id it had, and is not redriven again by a
    later run. The exit status is 1 when one was not redriven that was named by its position, or
    Kafka refused one.
    """
    wanted = letter_filter(**filters)
    check_selection(positions, everything, wanted)
    asks = _asks(positions, yes=yes, dry_run=dry_run)
    selection = Selection(positions, wanted, limit=limit, max_redrives=max_redrives)
    to_topic = command.consumer_named(consumer).settings.order_paid_topic
    change = Change(RedriveResult.REDRIVEN, "Redrive", f"to {to_topic}", _which(positions, wanted))
    return await _change(
        change,
        selection,
        rate=rate,
        because=because,
        dry_run=dry_run,
        asks=asks,
        consumer=consumer,
        as_json=as_json,
        named=bool(positions),
    )


@command.define(
    POSITIONS,
    command.ALL,
    *FILTERS,
    LIMIT,
    BECAUSE,
    command.DRY_RUN,
    command.YES,
    command.CONSUMER,
    command.JSON,
)
async def discard(
    *,
    positions: tuple[LetterPosition, ...],
    everything: bool,
    limit: int | None,
    because: str,
    dry_run: bool,
    yes: bool,
    consumer: str | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """Count dead letters as dealt with: by position, by filters, or --all.

    They are not delivered. They stay in the topic until they are purged, and are not open any more.
    --because says why. The exit status is 1 when one was not discarded that was named by its
    position.
    """
    wanted = letter_filter(**filters)
    check_selection(positions, everything, wanted)
    if not because and not dry_run:
        raise command.usage_error("say why, for the audit log: --because TEXT")
    asks = _asks(positions, yes=yes, dry_run=dry_run)
    selection = Selection(positions, wanted, limit=limit, discard=True)
    change = Change(RedriveResult.DISCARDED, "Discard", "", _which(positions, wanted))
    return await _change(
        change,
        selection,
        rate=None,
        because=because,
        dry_run=dry_run,
        asks=asks,
        consumer=consumer,
        as_json=as_json,
        named=bool(positions),
    )


@dataclass(frozen=True, slots=True)
class Change:
    """What is done with letters.

    Attributes:
        result: The result of a letter with which it was done.
        name: Its name in a question.
        to: Where the letters go; empty: nowhere.
        which: The selected letters, for the audit log.
    """

    result: RedriveResult
    name: str
    to: str
    which: str


def _asks(positions: Sequence[LetterPosition], *, yes: bool, dry_run: bool) -> bool:
    needs_yes = "" if positions else "filters and --all need"
    return command.must_confirm(yes=yes, dry_run=dry_run, needs_yes=needs_yes)


def _which(positions: Sequence[LetterPosition], wanted: LetterFilter) -> str:
    return ", ".join(map(str, positions[:NAMED])) or str(wanted)


async def _change(
    change: Change,
    selection: Selection,
    *,
    rate: float | None,
    because: str,
    dry_run: bool,
    asks: bool,
    consumer: str | None,
    as_json: bool,
    named: bool,
) -> int:
    chosen = command.consumer_named(consumer)
    report = output.ChangeReport(
        "letter", change.result.value, named=named, as_json=as_json, dry_run=dry_run
    )
    received: list[signal.Signals] = []
    async with open_topic(chosen.settings) as topic:
        await selection.read(topic)
        for result in selection.skipped:
            add_result(report, result)
        if dry_run:
            for position in selection.positions():
                add_result(report, LetterResult(*position, change.result))
            return close(report, change, selection.first)
        if not selection.count:
            return close(report, change)
        if asks:
            to = change.to and f" {change.to}"
            question = f"{change.name} {output.count_of(selection.count, 'letter')}{to}?"
            if status := command.refused(question, f"Nothing was {change.result.value}"):
                return status
        try:
            async with (
                running_tracing(chosen.settings) as tracing,
                command.open_producer(chosen.settings) as producer,
                topic.redriving(
                    selection,
                    producer,
                    topic=chosen.settings.order_paid_topic,
                    consumer=chosen.name,
                    rate=rate,
                    discard=change.result is RedriveResult.DISCARDED,
                    tracing=tracing,
                ) as (running, results),
            ):

                def stop(number: signal.Signals) -> None:
                    received.append(number)
                    running.stop("stopped by a signal; run it again for the rest")

                with command.handling_signals(stop), report.showing_progress(selection.count):
                    async for result in results:
                        add_result(report, result)
                report.remark = running.remark
        finally:
            if report.done:
                action = f"dead letters {change.result.value}"
                detail = "; ".join(
                    filter(None, (change.which, because and f"reason: {because}", report.remark))
                )
                await write_entry(chosen.settings, action, chosen.name, report.done, detail)
    status = close(report, change)
    return 128 + received[0] if received else status


def close(report: output.ChangeReport, change: Change, first: Sequence[Letter] = ()) -> int:
    """Print the report, of a dry run with the first letters; return the exit status."""
    if not report.as_json:
        table = letters_table([(letter, False) for letter in first], with_state=False)
        report.print(table, to=change.to)
    elif not report.dry_run:
        counts = {
            change.result.value: report.done,
            RedriveResult.SKIPPED.value: report.skipped - report.failed,
            RedriveResult.FAILED.value: report.failed,
        }
        output.json_line({"type": "summary", **counts, "stopped": report.remark or None})
    return report.status


def add_result(report: output.ChangeReport, result: LetterResult) -> None:
    """Report the result of one letter."""
    fields = _fields(result)
    if report.dry_run and result.result in (RedriveResult.REDRIVEN, RedriveResult.DISCARDED):
        fields["dry_run"] = True
    failed = result.result is RedriveResult.FAILED
    report.add(f"{result.partition}:{result.offset}", fields, result.reason, failed=failed)


def _fields(result: LetterResult) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": "letter",
        "partition": result.partition,
        "offset": result.offset,
        "result": result.result.value,
    }
    if result.event_id:
        fields["event_id"] = to_text(result.event_id)
    if result.position is not None:
        fields |= {
            "to_topic": result.position.topic,
            "to_partition": result.position.partition,
            "to_offset": result.position.offset,
        }
    if result.reason:
        fields["reason"] = result.reason
    return fields


@command.define(
    click.option(
        "--before",
        type=TIME,
        help="Also open letters, up to the first given up then or later: ISO 8601 (UTC), or "
        "a time span such as 30d.",
    ),
    click.option("--all", "everything", is_flag=True, help="All there is now."),
    command.DRY_RUN,
    command.YES,
    command.CONSUMER,
    command.JSON,
)
async def purge(
    *,
    before: datetime | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
    consumer: str | None,
    as_json: bool,
) -> int:
    """Delete letters that were redriven, from the beginning of each partition.

    Kafka deletes only from the beginning: letters behind an open one stay, unless --before or
    --all say that open ones may go, too. Their events are then nowhere else.
    """
    if before is not None and everything:
        raise command.usage_error("give --before or --all, not both")
    asks = command.must_confirm(yes=yes, dry_run=dry_run, needs_yes="it needs")
    chosen = command.consumer_named(consumer)
    async with open_topic(chosen.settings) as topic:
        purges = await topic.deletable(before, everything=everything)
        letters = sum(one.letters for one in purges)
        open_letters = sum(one.open_letters for one in purges)
        counts = f"{output.count_of(letters, 'letter')}, {open_letters:,} of them not redriven"
        if asks and letters:
            question = f"Delete {counts}, from {topic.log.topic}? This cannot be undone"
            if status := command.refused(question, "Nothing was deleted"):
                return status
        if letters and not dry_run:
            await topic.delete(purges)
            detail = f"{counts}; those before "
            detail += ", ".join(f"{one.partition}:{one.before}" for one in purges if one.letters)
            await write_entry(chosen.settings, "dead letters purged", chosen.name, letters, detail)
    if as_json:
        for one in purges:
            output.json_line(
                {
                    "partition": one.partition,
                    "before": one.before,
                    "letters": one.letters,
                    "open": one.open_letters,
                    "dry_run": dry_run,
                }
            )
        return 0
    columns = ("partition", "letters", "not redriven", "first that stays")
    table = output.make_table(columns, right=columns)
    for one in purges:
        numbers = (f"{one.letters:,}", f"{one.open_letters:,}", str(one.before))
        table.add_row(str(one.partition), *numbers)
    console = output.stdout_console()
    console.print(table)
    done = "would be deleted; nothing was changed" if dry_run else "were deleted"
    console.print(f"{counts}: {done}")
    return 0
