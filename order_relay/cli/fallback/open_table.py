"""Opening the fallback table for a command that reads or changes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from order_relay.errors import RelayError
from order_relay.fallback.table import FallbackTable, Revisions
from order_relay.settings import Settings


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
        _check_file(table)
        try:
            revisions = await table.look()
        except RelayError as error:
            raise click.ClickException(f"DATABASE_URL={table.location}: {error}") from None
        check_revisions(table, revisions)
        yield table
    finally:
        await table.close()


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


def _check_file(table: FallbackTable) -> None:
    url = table.engine.url
    if url.get_backend_name() != "sqlite" or (url.database or "").startswith("file:"):
        return
    if not Path(url.database or "").is_file():
        raise click.ClickException(
            f"there is no database at DATABASE_URL={table.location}: "
            "run this in the worker's folder, or set DATABASE_URL to the worker's file"
        )
