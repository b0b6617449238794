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
from order_relay.cli.publish.bulk_publisher import BulkPublisher, check_lines
from order_relay.cli.publish.line_reader import LineReader
from order_relay.cli.publish.report import PublishReport
from order_relay.errors import RelayError
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import MAX_MESSAGE_BYTES
from order_relay.settings import Settings

SHOW_EVERY_SECONDS = 0.2
# After Ctrl-C or SIGTERM: what Kafka has not answered by then is saved.
STOP_GRACE_SECONDS = 5.0


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
        stop = _Stop(reader, report)
        with _showing(reader, report, descriptor):
            if dry_run:
                with stop.watching(None):
                    await check_lines(reader.lines(), report.add, new_ids=new_ids)
            else:
                await _publish(settings, reader, report, stop, new_ids=new_ids)
    report.close(stop.remark)
    if report.unwritable:
        error = f"stdout cannot be written: {report.unwritable}; {report.counts()}"
        _remark(f"{error}; {stop.remark}" if stop.remark else error)
    if stop.signal:
        return 128 + stop.signal
    return 1 if report.failed_count or stop.remark or report.unwritable else 0


async def _publish(
    settings: Settings, reader: LineReader, report: PublishReport, stop: _Stop, *, new_ids: bool
) -> None:
    async with _open_table(settings) as table, command.open_producer(settings) as producer:
        publisher = BulkPublisher(
            producer,
            table,
            settings.order_paid_topic,
            report.add,
            max_retry=settings.fallback_max_retry,
            new_ids=new_ids,
        )
        report.table_location = table.location
        await publisher.check_kafka()
        if publisher.outage:
            _remark(f"{publisher.outage}: saving events in {table.location}")
        with stop.watching(publisher):
            await publisher.publish(reader.lines())


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


class _Stop:
    """Stops reading early; the lines begun still end.

    Attributes:
        signal: The first signal that came, or 0.
        remark: Why reading ended early; empty if it did not.
    """

    def __init__(self, reader: LineReader, report: PublishReport) -> None:
        self.signal = 0
        self.remark = ""
        self._reader = reader
        self._report = report
        self._publisher: BulkPublisher | None = None
        self._closing: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, publisher: BulkPublisher | None) -> Iterator[None]:
        """Stop on a signal, or when stdout takes no more; None: lines are only checked."""
        self._publisher = publisher
        self._report.on_unwritable = self._stop
        try:
            with command.handling_signals(self._on_signal):
                yield
        except OSError as error:
            self.remark = f"the input cannot be read further: {error.strerror or error}"
        finally:
            self._report.on_unwritable = None
        if publisher is not None and publisher.stopped_at is not None:
            self.remark = (
                f"stopped after line {publisher.stopped_at:,}: neither Kafka nor the database "
                "takes events; publish the file again when one of them does"
            )
        elif self.signal:
            self.remark = "stopped by a signal" + (
                ": every event begun is accounted for above; publish the file again for the rest"
                if publisher is not None
                else ""
            )
        elif self._report.unwritable:
            again = "; publish the file again for the rest" if publisher is not None else ""
            self.remark = f"stopped there{again}"

    def _on_signal(self, number: signal.Signals) -> None:
        self.signal = self.signal or number
        self._stop()

    def _stop(self) -> None:
        self._reader.stop()
        if self._publisher is not None and self._closing is None:
            self._closing = asyncio.create_task(self._publisher.close(STOP_GRACE_SECONDS))


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
