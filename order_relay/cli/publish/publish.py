"""``faust -A app publish``."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

from faust.cli.base import argument, option
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from order_relay.cli.command import (
    DRY_RUN_OPTION,
    JSON_OPTION,
    RelayCommand,
    options,
    usage_error,
)
from order_relay.cli.output import for_people, on_stderr, plain
from order_relay.cli.publish.bulk_publisher import BulkPublisher, check_lines
from order_relay.cli.publish.line_reader import LineReader
from order_relay.cli.publish.report import PublishReport
from order_relay.errors import RelayError
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import MAX_MESSAGE_BYTES, KafkaProducer

SHOW_EVERY_SECONDS = 0.2
# After Ctrl-C or SIGTERM: what Kafka has not answered by then is saved.
STOP_GRACE_SECONDS = 5.0


class publish(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Publish ORDER_PAID events: one JSON object a line, from FILE or with - from stdin.

    Each line is published byte for byte. The same line always gets the same event-id, so that a
    file may be published again after an interruption. The exit status is 0 when every event is
    in Kafka or saved in the database, 1 when any was refused or failed.
    """

    options = options(
        argument("file", metavar="FILE", required=False),
        option(
            "--new-ids",
            is_flag=True,
            default=False,
            help="Give every line a new event-id: to publish on purpose what was published before.",
        ),
        DRY_RUN_OPTION,
        JSON_OPTION,
    )

    async def work(self, *, file: str | None, new_ids: bool, dry_run: bool, as_json: bool) -> int:
        """Publish the lines and print the report."""
        report = PublishReport(as_json=as_json or self.json, dry_run=dry_run)
        if file is None:
            raise usage_error("FILE is missing: give a file of JSON lines, or - for stdin")
        with _opened(file) as descriptor:
            reader = LineReader(descriptor, max_line_bytes=MAX_MESSAGE_BYTES)
            showing = _showing(reader, report, descriptor)
            if dry_run:
                return await self._check(reader, report, showing, new_ids=new_ids)
            return await self._publish(reader, report, showing, new_ids=new_ids)

    async def _check(
        self,
        reader: LineReader,
        report: PublishReport,
        showing: AbstractContextManager[None],
        *,
        new_ids: bool,
    ) -> int:
        remark = ""
        with _stopping(reader, report, None) as stop, showing:
            try:
                await check_lines(reader.lines(), report.add, new_ids=new_ids)
            except OSError as error:
                remark = f"the input cannot be read on: {error.strerror or error}"
        if stop.signal:
            remark = "stopped by a signal"
        elif report.unwritable:
            remark = "stopped there"
        return self._end(report, remark, stop)

    async def _publish(
        self,
        reader: LineReader,
        report: PublishReport,
        showing: AbstractContextManager[None],
        *,
        new_ids: bool,
    ) -> int:
        settings = self.settings
        async with self._table() as table, self._producer() as producer:
            publisher = BulkPublisher(
                producer,
                table,
                settings.order_paid_topic,
                report.add,
                max_retry=settings.fallback_max_retry,
                new_ids=new_ids,
            )
            await publisher.look_at_kafka()
            if publisher.outage is not None:
                _remark(f"{publisher.outage}: saving events in {table.location}")
            remark = ""
            with _stopping(reader, report, publisher) as stop, showing:
                try:
                    await publisher.publish(reader.lines())
                except OSError as error:
                    remark = f"the input cannot be read on: {error.strerror or error}"
            location = table.location
        if publisher.stopped_at is not None:
            remark = (
                f"stopped after line {publisher.stopped_at:,}: neither Kafka nor the database "
                "takes events; publish the file again when one of them does"
            )
        elif stop.signal:
            remark = (
                "stopped by a signal: every event begun is accounted for above; "
                "publish the file again for the rest"
            )
        elif report.unwritable:
            remark = "stopped there; publish the file again for the rest"
        return self._end(report, remark, stop, table_location=location)

    def _end(
        self, report: PublishReport, remark: str, stop: _Stop, *, table_location: str = ""
    ) -> int:
        """Print the report, and return the exit status."""
        topic = self.settings.order_paid_topic
        report.close(for_people(), topic=topic, table_location=table_location, remark=remark)
        if report.unwritable:
            told = f"stdout cannot be written: {report.unwritable}; {report.words()}"
            _remark(f"{told}; {remark}" if remark else told)
        if stop.signal:
            return 128 + stop.signal
        return 1 if report.unhappy or remark or report.unwritable else 0

    @asynccontextmanager
    async def _table(self) -> AsyncIterator[FallbackTable]:
        table = FallbackTable(self.settings.database_url.get_secret_value())
        try:
            try:
                await table.open()
            except RelayError as error:
                # Kafka may take everything.
                _remark(f"what Kafka refuses cannot be saved in {table.location}: {error}")
            yield table
        finally:
            await table.close()

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[KafkaProducer]:
        producer = KafkaProducer(self.settings)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()


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
        raise usage_error(
            f"FILE {file!r} cannot be read: {error.strerror}; give a file of JSON lines, "
            "or - for stdin"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Stop:
    """Ends the reading, not what is under way.

    Attributes:
        signal: The first signal that came, or 0.
    """

    def __init__(self, reader: LineReader, publisher: BulkPublisher | None) -> None:
        self.signal = 0
        self._reader = reader
        self._publisher = publisher
        self._closing: asyncio.Task[None] | None = None

    def by_signal(self, number: signal.Signals) -> None:
        self.signal = self.signal or number
        self.now()

    def now(self) -> None:
        self._reader.stop()
        if self._publisher is not None and self._closing is None:
            self._closing = asyncio.create_task(self._publisher.close(STOP_GRACE_SECONDS))


@contextmanager
def _stopping(
    reader: LineReader, report: PublishReport, publisher: BulkPublisher | None
) -> Iterator[_Stop]:
    """Stop by Ctrl-C and SIGTERM, and when nobody takes the report any more."""
    loop = asyncio.get_running_loop()
    stop = _Stop(reader, publisher)
    report.on_unwritable = stop.now
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.by_signal, number)
    try:
        yield stop
    finally:
        report.on_unwritable = None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _showing(reader: LineReader, report: PublishReport, descriptor: int) -> Iterator[None]:
    """Show a progress bar on a terminal, and let programs see lines of JSON soon."""
    console = on_stderr()
    status = os.fstat(descriptor)
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    progress = Progress(
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("", total=size, words="")

    async def show() -> None:
        while True:
            progress.update(task, completed=reader.bytes_read, words=report.words())
            report.flush()
            await asyncio.sleep(SHOW_EVERY_SECONDS)

    with progress:
        showing = asyncio.get_running_loop().create_task(show())
        try:
            yield
        finally:
            showing.cancel()


def _remark(text: str) -> None:
    on_stderr().print(plain(text))
