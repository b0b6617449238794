"""``faust -A app dlq-redrive``."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import click
from faust.cli.base import option

from order_relay.cli.command import (
    CONSUMER_OPTION,
    DRY_RUN_OPTION,
    JSON_OPTION,
    RelayCommand,
    options,
    usage_error,
)
from order_relay.cli.confirm import refused
from order_relay.cli.dlq.filters import (
    LIMIT_RANGE,
    POSITIONS_ARGUMENT,
    YES_OPTION,
    LetterPosition,
    check_choice,
    filter_options,
    letter_filter,
)
from order_relay.cli.dlq.formatting import letters_of
from order_relay.cli.dlq.open_topic import LetterAccess, opened_letters, read_redriven
from order_relay.cli.dlq.redrive_report import RedriveReport
from order_relay.cli.dlq.selection import Selection
from order_relay.dead_letters.redrive import Redrive
from order_relay.dead_letters.redriven import RedriveProgress
from order_relay.errors import RelayError, TopicUnusable
from order_relay.kafka.producer import KafkaProducer


class dlq_redrive(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Publish dead letters to the orders' topic again: by place, by filters, or --all.

    Each goes out as its record came, with the event-id it had, and is not redriven again by a
    later run. The exit status is 1 when one was not redriven that was named by its place, or
    Kafka refused one.
    """

    options = options(
        POSITIONS_ARGUMENT,
        option(
            "--all", "everything", is_flag=True, default=False, help="All that the filters leave."
        ),
        *filter_options(),
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
        **narrowed: Any,
    ) -> int:
        """Redrive the letters."""
        wanted = letter_filter(**narrowed)
        check_choice(positions, everything, wanted)
        asks = not yes and not dry_run
        if asks and not positions and not sys.stdin.isatty():
            raise usage_error(
                "filters and --all need --yes where nobody can be asked, or --dry-run to look"
            )
        topic = self.settings.order_paid_topic
        report = RedriveReport(topic, as_json=as_json or self.json, named=bool(positions))
        async with opened_letters(self.app, self.settings) as access:
            selection = Selection(positions, wanted, limit, max_redrives)
            await selection.read(access)
            for result in selection.left:
                report.add(result)
            if dry_run:
                return report.close_dry_run(selection.positions(), selection.first, selection.count)
            if not selection.count:
                return report.close()
            if asks and sys.stdin.isatty():
                words = letters_of(selection.count)
                if status := refused(f"Redrive {words} to {topic}?", "Nothing was redriven"):
                    return status
            received = await self._redrive(access, selection, report, rate)
        status = report.close()
        return 128 + received if received else status

    async def _redrive(
        self,
        access: LetterAccess,
        selection: Selection,
        report: RedriveReport,
        rate: float | None,
    ) -> int:
        """Redrive what was selected; returns the signal that ended it early, or 0."""
        topic = self.settings.order_paid_topic
        async with (
            self._producer() as producer,
            access.group.membership(access.extents) as membership,
        ):
            partitions = await producer.partition_count(topic)
            if not partitions:
                raise TopicUnusable(topic, "it does not exist")
            # Asked again: somebody else may have redriven since.
            extents, redriven = await read_redriven(access.log, access.group)
            access.check_same(extents)
            chosen, gone = selection.still_open(redriven)
            for result in gone:
                report.add(result)
            progress = {
                partition: RedriveProgress(
                    redriven[partition], selection.letters[partition], extent.end
                )
                for partition, extent in access.extents.items()
            }
            redrive = Redrive(
                access.log,
                producer,
                membership,
                topic=topic,
                partitions=partitions,
                consumer=self.consumer.name,
                rate=rate,
            )
            with _signals(redrive) as received, report.showing(selection.count):
                try:
                    async for result in redrive.run(chosen, progress):
                        report.add(result)
                except RelayError as error:
                    redrive.stop(f"stopped: {error}")
            report.remark = redrive.remark
        return received[0] if received else 0

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[KafkaProducer]:
        producer = KafkaProducer(self.settings)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()


@contextmanager
def _signals(redrive: Redrive) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end it after the batch under way; gives what was received."""
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        redrive.stop("stopped by a signal; run it again for the rest")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
