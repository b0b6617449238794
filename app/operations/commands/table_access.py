"""Opening the fallback table for a command that looks at it or changes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import click

from app.errors import RelayError
from app.operations.fallback_table import FallbackTable
from app.settings import Settings


@asynccontextmanager
async def opened_table(settings: Settings) -> AsyncIterator[FallbackTable]:
    """Open the table that the workers use, and close it in the end.

    Raises:
        ClickException: The database cannot be used, or is a file that does not exist: an empty one
            made here would only seem to be the workers'.
    """
    table = FallbackTable(settings.database_url.get_secret_value())
    try:
        check_file(table)
        try:
            await table.open()
        except RelayError as error:
            raise click.ClickException(f"DATABASE_URL={table.place}: {error}") from None
        yield table
    finally:
        await table.close()


def check_file(table: FallbackTable) -> None:
    """See that a database that is a file is there.

    Raises:
        ClickException: It is not.
    """
    url = table.engine.url
    if url.get_backend_name() != "sqlite" or (url.database or "").startswith("file:"):
        return
    path = Path(url.database or "")
    if not path.is_file():
        raise click.ClickException(
            f"there is no database at DATABASE_URL={table.place}: "
            "run this in the worker's folder, or set DATABASE_URL to the worker's file"
        )
