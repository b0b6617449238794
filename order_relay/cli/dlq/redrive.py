"""``order-relay dlq redrive``, ``dlq discard`` and ``dlq purge``."""

from __future__ import annotations

import math
import signal
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from order_relay.cli import command, output
from order_relay.cli.dlq.letters import (
    FILTERS,
    LIMIT_RANGE,
    POSITION,
    TIME,
    check_selection,
    letter_filter,
    letters_table,
)
from order_relay.cli.fallback.rows import write_entry
from order_relay.dead_letters.letter import LetterPosition
from order_relay.dead_letters.open_topic import OpenTopic, open_topic
from order_relay.dead_letters.redrive import LetterResult, Redrive, RedriveResult, Selection
from order_relay.model.byte_text import to_text
from order_relay.tracing.switch import running_tracing

if TYPE_CHECKING:
    from order_relay.settings.consumers import ConfiguredConsumer

NAMED = 5  # letters in the audit log
SELECTION = (
    click.argument("positions", nargs=-1, type=POSITION, metavar="[PARTITION:OFFSET]..."),
    command.ALL,
    *FILTERS,
    click.option("--limit", type=LIMIT_RANGE, help="At most so many."),
)
BECAUSE = click.option("--because", default="", help="Why, for the audit log.")


HOW = (command.DRY_RUN, command.YES, command.CONSUMER, command.JSON)


@command.define(
    *SELECTION,
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
    *HOW,
)
async def redrive(**given: Any) -> int:
    """Publish dead letters to the orders' topic again: by position, by filters, or --all.

    Each keeps its event-id. A later run does not redrive it again. Exit status: 1 if one that you
    named was not redriven, or Kafka refused one.
    """
    return await _change(RedriveResult.REDRIVEN, **given)


@command.define(*SELECTION, BECAUSE, *HOW)
async def discard(**given: Any) -> int:
    """Close dead letters without delivering them: by position, by filters, or --all.

    It needs --because. They stay in the topic until they are purged. Exit status: 1 if one that you
    named was not discarded.
    """
    return await _change(RedriveResult.DISCARDED, max_redrives=None, rate=None, **given)


async def _change(
    done: RedriveResult,
    *,
    positions: tuple[LetterPosition, ...],
    everything: bool,
    limit: int | None,
    max_redrives: int | None,
    rate: float | None,
    because: str,
    dry_run: bool,
    yes: bool,
    consumer: str | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """Redrive or discard letters; ``done`` is the result of each."""
    discards = done is RedriveResult.DISCARDED
    wanted = letter_filter(**filters)
    check_selection(positions, everything, wanted)
    if discards and not because.strip() and not dry_run:
        raise click.UsageError("say why, for the audit log: --because TEXT")
    if rate is not None and math.isnan(rate):  # in click's range
        raise click.UsageError("--rate must be a number")
    needs_yes = "" if positions else "filters and --all need"
    asks = command.must_confirm(yes=yes, dry_run=dry_run, needs_yes=needs_yes)
    chosen = command.consumer_named(consumer)
    to = "" if discards else f"to {chosen.settings.order_paid_topic}"
    selection = Selection(positions, wanted, limit=limit, max_redrives=max_redrives)
    report = output.ChangeReport(
        "letter", done.value, named=bool(positions), as_json=as_json, dry_run=dry_run
    )
    received: list[signal.Signals] = []
    async with open_topic(chosen.settings) as topic:
        await selection.read(topic)
        for result in selection.skipped:
            add_result(report, result)
        for position in selection.positions() if dry_run else ():
            add_result(report, LetterResult(*position, done))
        report.check()
        if selection.count and not dry_run:
            question = f"{'Discard' if discards else 'Redrive'} "
            question += f"{output.count_of(selection.count, 'letter')}{to and ' ' + to}?"
            if asks and (status := command.refused(question, f"Nothing was {done.value}")):
                return status
            which = ", ".join(map(str, positions[:NAMED])) or str(wanted)
            detail = f"{which}; reason: {because}" if because else which
            received = await _run(
                report, topic, selection, chosen, done=done, rate=rate, detail=detail
            )
    if not as_json:
        first = [(letter, False) for letter in selection.first if dry_run]
        report.print(letters_table(first, with_state=False), to=to)
    elif not dry_run:
        counts = {
            done.value: report.done,
            RedriveResult.SKIPPED.value: report.skipped - report.failed,
            RedriveResult.FAILED.value: report.failed,
        }
        output.json_line({"type": "summary", **counts, "stopped": report.remark or None})
    report.check()
    return 128 + received[0] if received else report.status


async def _run(
    report: output.ChangeReport,
    topic: OpenTopic,
    selection: Selection,
    chosen: ConfiguredConsumer,
    *,
    done: RedriveResult,
    rate: float | None,
    detail: str,
) -> list[signal.Signals]:
    """Change the selected letters, and write the audit log; returns the signals received."""
    received: list[signal.Signals] = []
    try:
        async with (
            running_tracing(chosen.settings) as tracing,
            command.open_producer(chosen.settings) as producer,
        ):
            running = Redrive(
                producer,
                topic=chosen.settings.order_paid_topic,
                consumer=chosen.name,
                rate=rate,
                done=done,
                tracing=tracing,
            )

            def stop(number: signal.Signals) -> None:
                received.append(number)
                running.stop("stopped by a signal; run it again for the rest")

            async with topic.redriving(selection, running) as results:
                with command.handling_signals(stop), report.showing_progress(selection.count):
                    async for result in results:
                        add_result(report, result)
                        if report.ended:
                            running.stop(report.ended)
            report.remark = running.remark
    finally:
        if report.done:
            text = f"{detail}; {report.remark}" if report.remark else detail
            action = f"dead letters {done.value}"
            await write_entry(chosen.settings, action, chosen.name, report.done, text)
    return received


def add_result(report: output.ChangeReport, result: LetterResult) -> None:
    """Report the result of one letter."""
    fields: dict[str, Any] = {
        "type": "letter",
        "partition": result.partition,
        "offset": result.offset,
        "result": result.result.value,
        "event_id": to_text(result.event_id) or None,
        "reason": result.reason or None,
        "dry_run": (report.dry_run and not result.reason) or None,
    }
    if result.position is not None:
        fields |= {f"to_{name}": value for name, value in asdict(result.position).items()}
    fields = {name: value for name, value in fields.items() if value is not None}
    failed = result.result is RedriveResult.FAILED
    report.add(f"{result.partition}:{result.offset}", fields, result.reason, failed=failed)


@command.define(
    click.option(
        "--before",
        type=TIME,
        help="Also open letters, up to the first given up then or later; as --since.",
    ),
    click.option("--all", "everything", is_flag=True, help="All letters, also open ones."),
    *HOW,
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
    """Delete dead letters that were redriven or discarded.

    Kafka deletes only from the beginning of a partition: letters behind an open one stay. --before
    and --all delete open letters, too: their events are lost.
    """
    if before is not None and everything:
        raise click.UsageError("give --before or --all, not both")
    asks = command.must_confirm(yes=yes, dry_run=dry_run, needs_yes="it needs")
    chosen = command.consumer_named(consumer)
    async with open_topic(chosen.settings) as topic:
        purges = await topic.deletable(before, everything=everything)
        letters = sum(one.letters for one in purges)
        open_letters = sum(one.open_letters for one in purges)
        counts = f"{output.count_of(letters, 'letter')}, {open_letters:,} of them open"
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
    columns = ("partition", "letters", "open", "first that stays")
    table = output.make_table(columns, right=columns)
    for one in purges:
        numbers = (f"{one.letters:,}", f"{one.open_letters:,}", str(one.before))
        table.add_row(str(one.partition), *numbers)
    console = output.stdout_console()
    console.print(table)
    done = "would be deleted; nothing was changed" if dry_run else "were deleted"
    console.print(f"{counts}: {done}")
    return 0
