"""The fallback table of the settings' database: migrated when opened, reopened when replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from order_relay.errors import DatabaseReplaced, DatabaseUnavailable, PermanentError, RelayError
from order_relay.fallback.sql.engine import OPENED_FILE, OpenedFile
from order_relay.fallback.sql.migrate import (
    VERSION_TABLE,
    Migrated,
    check_revision,
    migrate,
    newest_revision,
    revision_of,
)
from order_relay.fallback.sql.store import SqlFallbackStore
from order_relay.fallback.store import FallbackStats, NewMessage
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Revisions:
    """A table's revision (None: there is no table), and the one that this version needs."""

    found: str | None
    wanted: str


class FallbackTable(SqlFallbackStore):
    """A ``FallbackStore`` that saves nothing before ``open`` has brought its table up to date.

    It writes nothing into a table that a newer version has migrated. A SQLite file that was deleted
    or replaced is logged as an error and opened again.
    """

    def __init__(
        self, database_url: str, *, on_replaced: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            database_url: The database.
            on_replaced: Called when its file was deleted or replaced.

        Raises:
            InvalidDatabaseUrl: The URL cannot be used.
        """
        super().__init__(database_url)
        self._database_url = database_url
        self._refusal: str | None = "the fallback table is not open yet"
        self._file: OpenedFile | None = None
        self._replaced: DatabaseReplaced | None = None
        self._opening = asyncio.Lock()
        self._on_replaced = on_replaced
        self._last_stats = FallbackStats()
        self._failed_save: DatabaseUnavailable | None = None

    @property
    def location(self) -> str:
        """The database, for people: without its password; a file with its full path."""
        url = self.engine.url
        if url.get_backend_name() == "sqlite" and not (url.database or "").startswith("file:"):
            url = url.set(database=str(Path(url.database or "").absolute()))
        return url.render_as_string(hide_password=True)

    async def open(self) -> Migrated:
        """Bring the table up to date. May be called again after an error.

        Raises:
            DatabaseUnavailable: The database did not answer, or refused.
            DatabaseTooNew: A newer version of the relay has migrated it.
        """
        try:
            migrated = await migrate(self._database_url)
            async with super()._reading() as connection:
                self._file = connection.info.get(OPENED_FILE)
                # If the file was deleted meanwhile, this connection has created a new, empty one.
                if await connection.run_sync(revision_of) is None:
                    raise DatabaseReplaced(self.location)
        except RelayError as error:
            self._refusal = str(error)
            raise
        self._refusal = None
        return migrated

    async def look(self) -> Revisions:
        """Return the table's revision; nothing is changed or created.

        Raises:
            DatabaseUnavailable: The database did not answer, or refused.
            DatabaseTooNew: A newer version of the relay has migrated it.
        """
        async with self._reading() as connection:
            found = await connection.run_sync(revision_of)
        check_revision(found)
        return Revisions(found, newest_revision())

    async def save(self, message: NewMessage) -> int:
        """See ``FallbackStore.save``."""
        await self._reopen_if_replaced()
        if self._refusal is not None:
            raise DatabaseUnavailable(self._refusal)
        try:
            return await super().save(message)
        except DatabaseUnavailable as error:
            if not error.statement_refused:
                self._failed_save = error
            raise

    async def check_writes(self) -> None:
        """Check that the database accepts writes, by one that changes nothing.

        Raises:
            DatabaseUnavailable: The write failed, as on a full disk or a standby; or a save has
                failed since the last call.
        """
        # A full disk may still have room for this write and not for a row.
        failed, self._failed_save = self._failed_save, None
        if failed is not None:
            raise DatabaseUnavailable(failed.reason)
        async with self._changing() as connection:
            await connection.execute(
                sa.text(f"UPDATE {VERSION_TABLE} SET version_num = version_num")  # noqa: S608 - our own name
            )

    async def stats(self) -> FallbackStats:
        """See ``FallbackStore.stats``."""
        self._last_stats = await super().stats()
        return self._last_stats

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        await self._reopen_if_replaced()
        async with super()._reading() as connection:
            yield connection

    def _check_file(self, connection: AsyncConnection) -> None:
        try:
            super()._check_file(connection)
        except DatabaseReplaced as error:
            # A later check may not notice it: a connection opened meanwhile creates a new, empty
            # file, and the file system may give it the inode of the deleted one.
            self._replaced = self._replaced or error
            raise

    async def _reopen_if_replaced(self) -> None:
        """If the opened file was deleted or replaced, log it and open the one there now."""
        async with self._opening:
            if self._file is None:
                return
            try:
                self._file.check()
            except DatabaseReplaced as error:
                self._replaced = self._replaced or error
            if self._replaced is None:
                return
            if self._refusal is None:
                self._refusal = str(self._replaced)
                self._on_replaced()
                logger.error(
                    LogLine(
                        "Fallback table's file was deleted or replaced while it was open",
                        path=self._replaced.path,
                        pending=self._last_stats.pending,
                        failed=self._last_stats.failed,
                    )
                )
            # SQLite creates no new log while a deleted one is open.
            await self.close()
            try:
                await self.open()
            except PermanentError as problem:
                raise DatabaseUnavailable(str(problem)) from problem
            self._replaced = None
