"""``order-relay publish``: the command, its progress and its report."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

import click
from rich.progress import Progress

from order_relay.cli import command, output
from order_relay.cli.publish.bulk_publisher import BulkPublisher, LineResult, LineStatus
from order_relay.cli.publish.line_reader import LineReader
from order_relay.errors import RelayError
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import MAX_MESSAGE_BYTES
from order_relay.publishing.publisher import Publisher
from order_relay.settings import Settings, load_settings

SHOWN = 20
SHOWN_REASONS = 10
# Such an event is neither in Kafka nor in the table.
NOT_STORED = (LineStatus.REFUSED, LineStatus.FAILED)
# The results of lines that are only checked.
CHECKED = (LineStatus.PUBLISHED, LineStatus.REFUSED)
SHOW_EVERY_SECONDS = 0.2


@command.define(
    click.argument("file", type=click.File("rb")),
    click.option(
        "--new-ids",
        is_flag=True,
        help="Give every line a new event-id, so that the logger gets it again.",
    ),
    command.DRY_RUN,
    command.JSON,
)
async def publish(*, file: BinaryIO, new_ids: bool, dry_run: bool, as_json: bool) -> int:
    """Publish ORDER_PAID events: one JSON object a line, from FILE or - (stdin).

    The same line always gets the same event-id, so a file may be published again after an
    interruption. Exit status: 0 if every event is in Kafka or saved in the database, else 1.
    """
    settings = load_settings()
    report = PublishReport(settings.order_paid_topic, as_json=as_json, dry_run=dry_run)
    reader = LineReader(file.fileno(), max_line_bytes=MAX_MESSAGE_BYTES)
    if file.isatty():
        _remark("reading events from the terminal, one a line, until Ctrl-D")
    with _showing(reader, report, file.fileno()):
        async with _open_publisher(settings, report, dry_run=dry_run) as publisher:
            bulk = BulkPublisher(publisher, report.add, new_ids=new_ids)
            number, remark = await _publish(bulk, reader, report, dry_run=dry_run)
    report.close(remark)
    if report.unwritable:
        error = f"{report.unwritable}; {report.counts()}"
        _remark(f"{error}; {remark}" if remark else error)
    if number:
        return 128 + number
    return 1 if report.failed_count or remark or report.unwritable else 0


async def _publish(
    bulk: BulkPublisher, reader: LineReader, report: PublishReport, *, dry_run: bool
) -> tuple[int, str]:
    """Publish until the end of the input, a signal, or until stdout takes no more.

    Returns:
        The first signal, or 0; and why reading ended early, or an empty text.
    """
    signals: list[int] = []

    def stop(*received: signal.Signals) -> None:
        if received and not signals and not dry_run:
            _remark("stopping: events begun wait for Kafka or the database, up to a minute")
        signals.extend(received)
        reader.stop()
        bulk.close_soon()  # the lines begun still end

    report.on_unwritable = stop
    remark = ""
    try:
        with command.handling_signals(stop):
            await bulk.publish(reader.batches())
    except OSError as error:
        remark = f"the input cannot be read further: {error.strerror or error}"
    report.on_unwritable = None
    again = "" if dry_run else "publish the file again for the rest"
    if bulk.stopped_at is not None:
        remark = (
            f"stopped after line {bulk.stopped_at:,}: neither Kafka nor the database "
            "takes events; publish the file again when one of them does"
        )
    elif signals:
        begun = f": every event begun is accounted for above; {again}" if again else ""
        remark = f"stopped by a signal{begun}"
    elif report.unwritable:
        remark = f"stopped there; {again}" if again else "stopped there"
    return (signals or [0])[0], remark


@asynccontextmanager
async def _open_publisher(
    settings: Settings, report: PublishReport, *, dry_run: bool
) -> AsyncIterator[Publisher | None]:
    """Open a publisher that watches for outages; None: this is a dry run."""
    if dry_run:
        yield None
        return
    async with (
        _open_table(settings) as (table, refusal),
        command.open_producer(settings) as producer,
    ):
        report.table_location = table.location
        topic, max_retry = settings.order_paid_topic, settings.fallback_max_retry
        publisher = Publisher(producer, table, topic, max_retry=max_retry)
        await publisher.check_kafka()
        if refusal:  # Kafka may accept every event
            _remark(f"what Kafka refuses cannot be saved in {table.location}: {refusal}")
        if publisher.outage:
            outage = await command.explain_outage(settings) or publisher.outage
            saving = "" if refusal else f": saving events in {table.location}"
            _remark(f"{outage}{saving}")
        watching = asyncio.create_task(publisher.watch())
        try:
            yield publisher
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@asynccontextmanager
async def _open_table(settings: Settings) -> AsyncIterator[tuple[FallbackTable, str]]:
    """Open the table; and say why it cannot be used."""
    table = FallbackTable(settings.database_url.get_secret_value())
    refusal = ""
    try:
        try:
            await table.open()
        except RelayError as error:
            refusal = str(error)
        yield table, refusal
    finally:
        await table.close()


@contextmanager
def _showing(reader: LineReader, report: PublishReport, descriptor: int) -> Iterator[None]:
    """Show a progress bar on a terminal, and flush JSON lines to the program that reads them."""
    console = output.stderr_console()
    status = os.fstat(descriptor)
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    progress = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task("", total=size)

    async def show() -> None:
        while True:
            progress.update(task, completed=reader.bytes_read, description=report.counts())
            report.flush()
            await asyncio.sleep(SHOW_EVERY_SECONDS)

    with progress:
        showing = asyncio.get_running_loop().create_task(show())
        try:
            yield
        finally:
            showing.cancel()


def _remark(text: str) -> None:
    output.stderr_console().print(output.plain(text))


# --- the report ----------------------------------------------------------------------------------


class PublishReport:
    """Counts results, and keeps the first few that a person must look at.

    It goes on counting when stdout takes no more.

    Attributes:
        table_location: Where events are saved; empty in a dry run.
        unwritable: Why stdout takes no more; empty while it does.
        on_unwritable: Called when stdout takes no more.
    """

    def __init__(self, topic: str, *, as_json: bool, dry_run: bool) -> None:
        """Report on events for ``topic``, which in a dry run are not published."""
        self.table_location = ""
        self.unwritable = ""
        self.on_unwritable: Callable[[], None] | None = None
        self._topic = topic
        self._as_json = as_json
        self._dry_run = dry_run
        self._dry_field = {"dry_run": True} if dry_run else {}
        self._counts: Counter[LineStatus] = Counter()
        self._first: list[LineResult] = []
        self._saved_because: Counter[str] = Counter()

    def add(self, result: LineResult) -> None:
        """Count the result of one line, and print it as JSON if that is asked for."""
        self._counts[result.result] += 1
        if self._as_json:
            with self._catching_lost_stdout():
                output.json_line(_fields(result) | self._dry_field)
            return
        if result.result in NOT_STORED and len(self._first) < SHOWN:
            self._first.append(result)
        if result.result is LineStatus.SAVED and (
            result.reason in self._saved_because or len(self._saved_because) < SHOWN_REASONS
        ):
            self._saved_because[result.reason] += 1

    def flush(self) -> None:
        """Flush stdout."""
        with self._catching_lost_stdout():
            output.flush_stdout()

    @property
    def failed_count(self) -> int:
        """How many events are neither in Kafka nor in the table."""
        return sum(self._counts[result] for result in NOT_STORED)

    def counts(self) -> str:
        """Return the counts so far as text."""
        return ", ".join(
            f"{self._counts[result]:,} {self._verb(result)}"
            for result in LineStatus
            if self._counts[result] or result is LineStatus.PUBLISHED
        )

    def close(self, remark: str) -> None:
        """Print the report; ``remark`` says why the end came early, if it did."""
        with self._catching_lost_stdout():
            if self._as_json:
                counts = {result.value: self._counts[result] for result in LineStatus}
                output.json_line(
                    {"type": "summary", **counts, "stopped": remark or None} | self._dry_field
                )
            else:
                self._print(remark)
            output.flush_stdout()

    def _print(self, remark: str) -> None:
        console = output.stdout_console()
        table = output.make_table(("", "events", ""), right=("events",))
        table.show_header = False
        where = {LineStatus.PUBLISHED: f"{'to' if self._dry_run else 'in'} topic {self._topic}"}
        if self._counts[LineStatus.SAVED]:
            where[LineStatus.SAVED] = f"in {self.table_location}; its workers publish them"
        if self._counts[LineStatus.FAILED]:
            where[LineStatus.FAILED] = "neither in Kafka nor in the database"
        for result in CHECKED if self._dry_run else LineStatus:
            count = f"{self._counts[result]:,}"
            table.add_row(self._verb(result), count, output.plain(where.get(result)))
        console.print(table)
        for reason, number in self._saved_because.most_common():
            console.print(output.plain(f"saved {number:,}: {reason}"))
        for line in sorted(self._first, key=lambda one: one.number):
            console.print(
                output.plain(f"line {line.number:,} {self._verb(line.result)}: {line.reason}")
            )
        if self.failed_count > len(self._first):
            more = self.failed_count - len(self._first)
            console.print(f"… and {more:,} more; --json names them all")
        if self._dry_run:
            console.print("nothing was published")
        if remark:
            console.print(output.plain(remark))

    @contextmanager
    def _catching_lost_stdout(self) -> Iterator[None]:
        try:
            yield
        except output.StdoutLost as error:
            self.unwritable = str(error)
            if self.on_unwritable is not None:
                self.on_unwritable()

    def _verb(self, result: LineStatus) -> str:
        return f"would be {result.value}" if self._dry_run else result.value


def _fields(result: LineResult) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": "line",
        "line": result.number,
        "result": result.result.value,
        "event_id": result.event_id,
        **(asdict(result.position) if result.position is not None else {}),
        "row_id": result.row_id,
        "reason": result.reason or None,
    }
    return {name: value for name, value in fields.items() if value is not None}
