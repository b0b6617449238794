"""``order-relay fallback list`` and ``stats``: rows of the fallback table as JSON and as tables."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from order_relay.cli import command, output
from order_relay.errors import RelayError
from order_relay.fallback.sql.audit_log import AuditEntry, AuditLog
from order_relay.fallback.sql.migrate import Revisions
from order_relay.fallback.store import FallbackRow, RowFilter, Status
from order_relay.fallback.table import FallbackTable
from order_relay.model.byte_text import to_text
from order_relay.settings import Settings, load_settings

WRITE_SECONDS = 10.0
ERROR_LENGTH = 200
MAX_ID = 2**63 - 1  # of a BIGINT


def parse_row_id(text: str) -> int:
    """Return the id of a row; raises ``ValueError``."""
    digits = text.lstrip("0")
    # int() refuses numbers of thousands of digits.
    short = text.isascii() and text.isdigit() and 0 < len(digits) <= len(str(MAX_ID))
    if not short or (number := int(digits)) > MAX_ID:
        raise ValueError(f"{text[:40]!r} is not a row id: ids are whole numbers from 1")
    return number


def status_type(*allowed: Status) -> command.Parsed:
    """Return the type of an option with one of these statuses, in upper or lower case."""

    def parse(text: str) -> Status:
        if text.upper() not in allowed:
            raise ValueError(f"{text[:40]!r} must be {' or '.join(allowed)}")
        return Status(text.upper())

    return command.Parsed(f"[{'|'.join(allowed)}]", parse)


ROW_ID = command.Parsed("id", parse_row_id)
STATUS = status_type(*Status)


@command.define(
    click.option("--status", type=STATUS, help="Only of this status."),
    click.option("--topic", help="Only of this topic."),
    click.option("--error-contains", type=command.PART, help="Only with this text in the error."),
    click.option(
        "--limit", type=click.IntRange(1, 1_000_000), default=100, help="At most so many."
    ),
    click.option("--after-id", type=ROW_ID, help="Only after this row."),
    command.JSON,
)
async def list_rows(*, limit: int, after_id: int | None, as_json: bool, **filters: Any) -> int:
    """List rows of the fallback table."""
    rows = RowFilter(**filters)
    async with open_table(load_settings()) as table:
        if as_json:
            await _print_json(table, rows, limit, after_id or 0)
            return 0
        found = await table.find(rows, after_id=after_id or 0, limit=limit)
        total = await table.count(rows)
        now = await table.now()
    if found:
        output.stdout_console().print(rows_table(found, now.timestamp()))
    if not total:
        output.stderr_console().print("No rows" if rows == RowFilter() else "No rows match")
    elif len(found) < total:
        output.stderr_console().print(
            f"{len(found):,} of {output.count_of(total, 'row')}"
            + (f"; --after-id {found[-1].id} shows the next" if found else "")
        )
    return 0


async def _print_json(table: FallbackTable, rows: RowFilter, limit: int, after_id: int) -> None:
    """Print page by page, so that only one page is in memory."""
    async for page in table.pages(rows, after_id=after_id):
        for row in page[:limit]:
            output.json_line(row_fields(row))
        limit -= len(page)
        if limit <= 0:
            return


@command.define(command.JSON)
async def count_rows(*, as_json: bool) -> int:
    """Count the rows of the fallback table by status."""
    async with open_table(load_settings()) as table:
        stats = await table.stats()
    if as_json:
        output.json_line(asdict(stats))
        return 0
    shown = output.make_table(("status", "rows", "oldest"), right=("rows", "oldest"))
    for status, rows, oldest_seconds in (
        ("PENDING", stats.pending, stats.oldest_pending_seconds),
        ("PUBLISHED", stats.published, 0),
        ("FAILED", stats.failed, stats.oldest_failed_seconds),
    ):
        waits = rows and status != "PUBLISHED"
        shown.add_row(status, f"{rows:,}", output.age(oldest_seconds) if waits else "")
    output.stdout_console().print(shown)
    return 0


@asynccontextmanager
async def open_table(settings: Settings) -> AsyncIterator[FallbackTable]:
    """Open the table that the workers use, and close it at the end.

    Only workers create and migrate it. A command that did so would hide a wrong DATABASE_URL.

    Raises:
        ClickException: The database cannot be used, is a file that does not exist, or has no
            table, or one of another version.
    """
    table = FallbackTable(settings.database_url.get_secret_value())
    try:
        if not file_exists(table):
            raise click.ClickException(
                f"there is no database at DATABASE_URL={table.location}: "
                "run this in the worker's folder, or set DATABASE_URL to the worker's file"
            )
        try:
            revisions = await table.look()
        except RelayError as error:
            raise click.ClickException(f"DATABASE_URL={table.location}: {error}") from None
        check_revisions(table, revisions)
        yield table
    finally:
        await table.close()


async def write_entry(
    settings: Settings, action: str, subject: str, changed: int, detail: str
) -> None:
    """Add an entry; where the database cannot be used, one line on stderr says so.

    Args:
        settings: The worker's settings.
        action: What was done, such as ``dead letters redriven``.
        subject: Of what: a consumer, or the fallback table.
        changed: How many letters or rows were changed.
        detail: Which ones, and why.
    """
    entry = AuditEntry(actor(), action, subject, changed, detail)
    try:
        async with asyncio.timeout(WRITE_SECONDS), open_table(settings) as table:
            await AuditLog(table.engine).write(entry)
    except (click.ClickException, RelayError, TimeoutError) as error:
        reason = str(error) or "the database did not answer in time"
        output.stderr_console().print(output.plain(f"The audit log was not written: {reason}"))


def actor() -> str:
    """Return the user and the host that run the command."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user without a name
        user = f"uid {os.getuid()}"
    return f"{user} ({socket.gethostname()})"


def file_exists(table: FallbackTable) -> bool:
    """Return whether a SQLite file exists, which a connection would create; True for others."""
    url = table.engine.url
    return url.get_backend_name() != "sqlite" or Path(url.database or "").is_file()


def file_can_be_made(table: FallbackTable) -> bool:
    """Return whether the folder of a SQLite file exists and may be written."""
    folder = Path(table.engine.url.database or "").absolute().parent
    return os.access(folder, os.W_OK | os.X_OK)


def check_revisions(table: FallbackTable, revisions: Revisions) -> None:
    """Check that the table exists, in this version.

    Raises:
        ClickException: It does not.
    """
    if revisions.found is None:
        raise click.ClickException(
            f"there is no fallback table at DATABASE_URL={table.location}: set DATABASE_URL to the "
            "worker's database; a worker makes the table when it starts"
        )
    if revisions.found != revisions.wanted:
        raise click.ClickException(
            f"the fallback table at DATABASE_URL={table.location} is at revision "
            f"{revisions.found}, older than this version's {revisions.wanted}: run the older "
            "version's command, or start a worker of this version, which migrates it"
        )


def row_fields(row: FallbackRow) -> dict[str, Any]:
    """Return the fields of a row for JSON, named as the SQL columns.

    Bytes are written as in the table; see ``order_relay.fallback.sql.schema``.
    """
    return {
        "id": row.id,
        "status": row.status.value,
        "topic": row.topic,
        "message_key": to_text(row.key),
        "payload": to_text(row.payload),
        "headers": [[name, to_text(value)] for name, value in row.headers],
        "message_partition": row.partition,
        "retry_count": row.retry_count,
        "max_retry": row.max_retry,
        "next_retry_at": output.iso_time(row.next_retry_at),
        "error_message": row.malformed or row.error_message,
        "created_at": output.iso_time(row.created_at),
        "updated_at": output.iso_time(row.updated_at),
        "published_at": output.iso_time(row.published_at),
    }


def rows_table(rows: Sequence[FallbackRow], now_seconds: float) -> Table:
    """Return rows as a table; ``now_seconds`` is the store's time, since the epoch."""
    table = output.make_table(
        ("id", "status", "topic", "key", "age", "retries", "next try", "error"),
        right=("id", "age", "retries"),
    )
    for row in rows:
        wait = row.next_retry_at.timestamp() - now_seconds
        table.add_row(
            str(row.id),
            row.status.value,
            output.plain(row.topic, 60),
            output.plain(to_text(row.key), 40),
            output.age(max(0.0, now_seconds - row.created_at.timestamp())),
            f"{row.retry_count}/{row.max_retry}",
            (f"in {output.age(wait)}" if wait > 0 else "due")
            if row.status is Status.PENDING
            else "",
            output.plain(row.malformed or row.error_message, ERROR_LENGTH),
        )
    return table
