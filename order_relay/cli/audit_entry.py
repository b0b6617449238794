"""Writes what a command changed to the audit log, beside what people change in the console."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket

import click

from order_relay.cli import output
from order_relay.cli.fallback.rows import open_table
from order_relay.errors import RelayError
from order_relay.fallback.sql.audit_log import AuditEntry, AuditLog, now
from order_relay.settings import Settings

WRITE_SECONDS = 10.0


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
    entry = AuditEntry(actor(), action, subject, changed, detail, now())
    try:
        async with asyncio.timeout(WRITE_SECONDS), open_table(settings) as table:
            await AuditLog(table.engine).write(entry)
    except (click.ClickException, RelayError, TimeoutError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        reason = text or "the database did not answer in time"
        output.stderr_console().print(output.plain(f"The audit log was not written: {reason}"))


def actor() -> str:
    """Return the user and the host that run the command."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user without a name
        user = f"uid {os.getuid()}"
    return f"{user} ({socket.gethostname()})"
