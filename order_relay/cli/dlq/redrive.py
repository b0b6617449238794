"""``faust -A app dlq-redrive``."""

from __future__ import annotations

import signal
from typing import Any

import click
from faust.cli.base import option

from order_relay.cli.command import (
    ALL_OPTION,
    CONSUMER_OPTION,
    DRY_RUN_OPTION,
    JSON_OPTION,
    YES_OPTION,
    RelayCommand,
    handling_signals,
    open_producer,
    options,
)
from order_relay.cli.confirm import must_confirm, refused
from order_relay.cli.dlq.filters import (
    FILTER_OPTIONS,
    LIMIT_RANGE,
    POSITIONS_ARGUMENT,
    LetterPosition,
    check_selection,
    letter_filter,
)
from order_relay.cli.dlq.formatting import letters_table
from order_relay.cli.dlq.open_topic import OpenTopic, open_topic, read_redriven
from order_relay.cli.dlq.selection import Selection
from order_relay.cli.output import (
    ChangeReport,
    count_of,
    flush_stdout,
    json_line,
    plain,
    stdout_console,
)
from order_relay.dead_letters.redrive import LetterResult, Redrive, RedriveResult
from order_relay.dead_letters.redriven import RedriveProgress
from order_relay.errors import RelayError, TopicUnusable
from order_relay.model.byte_text import to_text


class dlq_redrive(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Publish dead letters to the orders' topic again: by position, by filters, or --all.

    Each goes out as its record came, with the event-id it had, and is not redriven again by a
    later run. The exit status is 1 when one was not redriven that was named by its position, or
    Kafka refused one.
    """

    options = options(
        POSITIONS_ARGUMENT,
        ALL_OPTION,
        *FILTER_OPTIONS,
        option("--limit", type=LIMIT_RANGE, default=None, help="The first so many of them."),
        option(
            "--max-redrives",
            type=click.IntRange(1, 1000),
            default=3,
            help="Leave letters that were redriven so often; by default 3.",
        ),
        option(
            "--rate",
            type=click.FloatRange(0, 1_000_000, min_open=True),
            default=None,
            help="At most so many letters a second.",
        ),
        DRY_RUN_OPTION,
        YES_OPTION,
        CONSUMER_OPTION,
        JSON_OPTION,
    )

    async def work(
        self,
        *,
        positions: tuple[LetterPosition, ...],
        everything: bool,
        limit: int | None,
        max_redrives: int,
        rate: float | None,
        dry_run: bool,
        yes: bool,
        as_json: bool,
        **filters: Any,
    ) -> int:
        """Redrive the letters."""
        wanted = letter_filter(**filters)
        check_selection(positions, everything, wanted)
        needs_yes = "" if positions else "filters and --all need"
        asks = must_confirm(yes=yes, dry_run=dry_run, needs_yes=needs_yes)
        to_topic = self.settings.order_paid_topic
        report = RedriveReport(to_topic, as_json=as_json, named=bool(positions), dry_run=dry_run)
        async with open_topic(self.app, self.settings) as topic:
            selection = Selection(positions, wanted, limit, max_redrives)
            await selection.read(topic)
            for result in selection.skipped:
                report.add(result)
            if dry_run:
                for position in selection.positions():
                    report.add(LetterResult(*position, RedriveResult.REDRIVEN))
                return report.close(selection)
            if not selection.count:
                return report.close()
            if asks:
                question = f"Redrive {count_of(selection.count, 'letter')} to {to_topic}?"
                if status := refused(question, "Nothing was redriven"):
                    return status
            received = await self._redrive(topic, selection, report, rate)
        status = report.close()
        return 128 + received if received else status

    async def _redrive(
        self, topic: OpenTopic, selection: Selection, report: RedriveReport, rate: float | None
    ) -> int:
        """Redrive the selection; returns the signal that stopped it early, or 0."""
        to_topic = self.settings.order_paid_topic
        received: list[int] = []
        async with (
            open_producer(self.settings) as producer,
            topic.group.membership(topic.extents) as membership,
        ):
            partitions = await producer.partition_count(to_topic)
            if not partitions:
                raise TopicUnusable(to_topic, "it does not exist")
            # Read again: another dlq-redrive may have ended since.
            extents, redriven = await read_redriven(topic.log, topic.group)
            topic.check_same(extents)
            chosen, skipped = selection.still_open(redriven)
            for result in skipped:
                report.add(result)
            progress = {
                partition: RedriveProgress(
                    redriven[partition], selection.letters[partition], extent.end
                )
                for partition, extent in topic.extents.items()
            }
            redrive = Redrive(
                topic.log,
                producer,
                membership,
                topic=to_topic,
                partitions=partitions,
                consumer=self.consumer.name,
                rate=rate,
            )

            def stop(number: signal.Signals) -> None:
                received.append(number)
                redrive.stop("stopped by a signal; run it again for the rest")

            with handling_signals(stop), report.counts.showing_progress(selection.count):
                try:
                    async for result in redrive.run(chosen, progress):
                        report.add(result)
                except RelayError as error:
                    redrive.stop(f"stopped: {error}")
            report.remark = redrive.remark
        return received[0] if received else 0


class RedriveReport:
    """Prints the result of each letter as JSON, or a report at the end.

    Attributes:
        counts: The letters that were redriven, and the others.
        remark: Why the redrive ended early; empty if it did not.
    """

    def __init__(self, topic: str, *, as_json: bool, named: bool, dry_run: bool = False) -> None:
        """Report on letters for ``topic``; ``named``: they were selected by their positions."""
        self.counts = ChangeReport("letter", "redriven", dry_run=dry_run)
        self.remark = ""
        self._topic = topic
        self._as_json = as_json
        self._named = named
        self._dry_run = dry_run
        self._failed = 0

    def add(self, result: LetterResult) -> None:
        """Count the result of one letter, and print it as JSON if that is asked for."""
        self.counts.add(f"{result.partition}:{result.offset}", result.reason)
        self._failed += result.result is RedriveResult.FAILED
        if self._as_json:
            fields = _fields(result)
            if self._dry_run and result.result is RedriveResult.REDRIVEN:
                fields["dry_run"] = True
            json_line(fields)
            flush_stdout()  # also at a slow rate its reader sees each line at once

    def close(self, selection: Selection | None = None) -> int:
        """Print the report, of a dry run with the first selected letters; return the status."""
        if not self._as_json:
            first = [(letter, False) for letter in selection.first] if selection else []
            self.counts.print(letters_table(first, with_state=False), to=f"to {self._topic}")
            if self.remark:
                stdout_console().print(plain(self.remark))
        elif not self._dry_run:
            counts = {
                RedriveResult.REDRIVEN.value: self.counts.done,
                RedriveResult.SKIPPED.value: self.counts.skipped - self._failed,
                RedriveResult.FAILED.value: self._failed,
            }
            json_line({"type": "summary", **counts, "stopped": self.remark or None})
        named_left = self._named and self.counts.skipped
        return 1 if named_left or self._failed or self.remark else 0


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
