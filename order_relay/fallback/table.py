"""The fallback table of the settings' database: refuses everything until it has been opened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from order_relay.errors import DatabaseReplaced, DatabaseUnavailable, PermanentError, RelayError
from order_relay.fallback.sql.engine import OPENED_FILE, OpenedFile, make_engine
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
    """Which revision a table is at (None: there is no table), and which this version wants."""

    found: str | None
    wanted: str


class FallbackTable(SqlFallbackStore):
    """A ``FallbackStore`` that brings its table up to date before it keeps anything in it.

    Nothing is written into a table that a newer version has migrated: nobody knows what it would
    mean there. A SQLite file that is deleted or replaced is told of and opened anew.
    """

    def __init__(
        self, database_url: str, *, on_replaced: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare for a database; nothing is connected yet.

        Args:
            database_url: The database.
            on_replaced: Called when its file was found to be deleted or replaced.

        Raises:
            InvalidDatabaseUrl: The URL cannot be used.
        """
        super().__init__(make_engine(database_url, on_replaced=self._note_replaced))
        self._database_url = database_url
        self._shut: str | None = "the fallback table is not open yet"
        self._file: OpenedFile | None = None
        self._replaced: DatabaseReplaced | None = None
        self._opening = asyncio.Lock()
        self._on_replaced = on_replaced
        self._counted = FallbackStats()
        self._failed_save: DatabaseUnavailable | None = None

    @property
    def location(self) -> str:
        """The database for people to read: without its password, a file by its full path."""
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
            async with self._reading() as connection:
                self._file = connection.info.get(OPENED_FILE)
                # A file that was deleted meanwhile has been made anew by this connection, empty.
                if await connection.run_sync(revision_of) is None:
                    raise DatabaseReplaced(self.location)
        except RelayError as error:
            self._shut = str(error)
            raise
        self._shut = None
        return migrated

    async def look(self) -> Revisions:
        """Look at which revision the table is; nothing is changed, nor is anything made.

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
        await self._open_anew()
        if self._shut is not None:
            raise DatabaseUnavailable(self._shut)
        try:
            return await super().save(message)
        except DatabaseUnavailable as error:
            if not error.statement_refused:
                self._failed_save = error
            raise

    async def check_writes(self) -> None:
        """Commit a write that changes nothing; no save must have failed since the last call.

        Raises:
            DatabaseUnavailable: One has, or nothing is committed: a full disk, a standby.
        """
        # On a full disk there may still be room for less than a row.
        failed, self._failed_save = self._failed_save, None
        if failed is not None:
            raise DatabaseUnavailable(failed.reason)
        await self.make_ids_free()  # before an order service asks for one
        async with self._changing() as connection:
            await connection.execute(
                sa.text(f"UPDATE {VERSION_TABLE} SET version_num = version_num")  # noqa: S608 - our own name
            )

    async def stats(self) -> FallbackStats:
        """See ``FallbackStore.stats``."""
        await self._open_anew()
        self._counted = await super().stats()
        return self._counted

    async def _open_anew(self) -> None:
        """If the file is not the one that was opened, say so and open what is there now."""
        async with self._opening:
            if self._file is None:
                return
            if self._replaced is None:
                try:
                    self._file.check()
                except DatabaseReplaced as error:
                    self._replaced = error
            if self._replaced is None:
                return
            if self._shut is None:
                self._shut = str(self._replaced)
                self._on_replaced()
                logger.error(
                    LogLine(
                        "Fallback table's file was deleted or replaced while it was open",
                        path=self._replaced.path,
                        pending=self._counted.pending,
                        failed=self._counted.failed,
                    )
                )
            # SQLite opens no new log while one that is gone is open.
            await self.close()
            try:
                await self.open()
            except PermanentError as problem:
                raise DatabaseUnavailable(str(problem)) from problem
            self._replaced = None

    def _note_replaced(self, error: DatabaseReplaced) -> None:
        """Keep what one connection has seen: later it may not show.

        The file system may give the inode of the deleted file to the new one, which a connection
        makes that was opened meanwhile, and which has no table yet.
        """
        self._replaced = self._replaced or error
