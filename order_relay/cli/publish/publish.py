"""``order-relay publish``."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import click
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from order_relay.cli import command
from order_relay.cli.output import plain, stderr_console
from order_relay.cli.publish.bulk_publisher import BulkPublisher
from order_relay.cli.publish.line_reader import LineReader
from order_relay.cli.publish.report import PublishReport
from order_relay.errors import RelayError
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import MAX_MESSAGE_BYTES
from order_relay.publishing.publisher import Publisher
from order_relay.settings import Settings

SHOW_EVERY_SECONDS = 0.2


@command.define(
    click.argument("file", metavar="FILE", required=False),
    click.option(
        "--new-ids",
        is_flag=True,
        help="Give every line a new event-id: to publish on purpose what was published before.",
    ),
    command.DRY_RUN,
    command.JSON,
)
async def publish(*, file: str | None, new_ids: bool, dry_run: bool, as_json: bool) -> int:
    """Publish ORDER_PAID events: one JSON object a line, from FILE or with - from stdin.

    Each line is published byte for byte. The same line always gets the same event-id, so that a
    file may be published again after an interruption. The exit status is 0 when every event is
    in Kafka or saved in the database, 1 when any was refused or failed.
    """
    if file is None:
        raise command.usage_error("FILE is missing: give a file of JSON lines, or - for stdin")
    settings = command.worker_settings()
    report = PublishReport(settings.order_paid_topic, as_json=as_json, dry_run=dry_run)
    with _opened(file) as descriptor:
        reader = LineReader(descriptor, max_line_bytes=MAX_MESSAGE_BYTES)
        with _showing(reader, report, descriptor):
            async with _open_publisher(settings, report, dry_run=dry_run) as publisher:
                bulk = BulkPublisher(publisher, report.add, new_ids=new_ids)
                number, remark = await _publish(bulk, reader, report, dry_run=dry_run)
    report.close(remark)
    if report.unwritable:
        error = f"stdout cannot be written: {report.unwritable}; {report.counts()}"
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
        signals.extend(received)
        reader.stop()
        bulk.close_soon()  # the lines begun still end

    report.on_unwritable = stop
    remark = ""
    try:
        with command.handling_signals(stop):
            await bulk.publish(reader.lines())
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
    async with _open_table(settings) as table, command.open_producer(settings) as producer:
        report.table_location = table.location
        topic, max_retry = settings.order_paid_topic, settings.fallback_max_retry
        publisher = Publisher(producer, table, topic, max_retry=max_retry)
        await publisher.check_kafka()
        if publisher.outage:
            _remark(f"{publisher.outage}: saving events in {table.location}")
        watching = asyncio.create_task(publisher.watch())
        try:
            yield publisher
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@asynccontextmanager
async def _open_table(settings: Settings) -> AsyncIterator[FallbackTable]:
    table = FallbackTable(settings.database_url.get_secret_value())
    try:
        try:
            await table.open()
        except RelayError as error:
            # Kafka may accept every event.
            _remark(f"what Kafka refuses cannot be saved in {table.location}: {error}")
        yield table
    finally:
        await table.close()


@contextmanager
def _opened(file: str) -> Iterator[int]:
    if file == "-":
        if sys.stdin.isatty():
            _remark("reading events from the terminal, one a line, until Ctrl-D")
        yield sys.stdin.fileno()
        return
    try:
        descriptor = os.open(file, os.O_RDONLY)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IsADirectoryError(0, "Is a directory")
    except OSError as error:
        raise command.usage_error(
            f"FILE {file!r} cannot be read: {error.strerror}; give a file of JSON lines, "
            "or - for stdin"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _showing(reader: LineReader, report: PublishReport, descriptor: int) -> Iterator[None]:
    """Show a progress bar on a terminal, and flush JSON lines to the program that reads them."""
    console = stderr_console()
    status = os.fstat(descriptor)
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    progress = Progress(
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("", total=size, counts="")

    async def show() -> None:
        while True:
            progress.update(task, completed=reader.bytes_read, counts=report.counts())
            report.flush()
            await asyncio.sleep(SHOW_EVERY_SECONDS)

    with progress:
        showing = asyncio.get_running_loop().create_task(show())
        try:
            yield
        finally:
            showing.cancel()


def _remark(text: str) -> None:
    stderr_console().print(plain(text))
