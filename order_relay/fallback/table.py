"""The fallback table in SQLite or PostgreSQL: migrated when opened, reopened when replaced."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from order_relay.errors import DatabaseReplaced, DatabaseUnavailable, PermanentError, RelayError
from order_relay.fallback.sql.engine import (
    OPENED_FILE,
    SQLITE_BUSY_TIMEOUT_SECONDS,
    OpenedFile,
    idle_limit,
    make_engine,
    translated,
)
from order_relay.fallback.sql.migrate import (
    VERSION_TABLE,
    Revisions,
    migrate,
    read_revisions,
    revision_of,
)
from order_relay.fallback.sql.schema import (
    PLAN_BY_INDEX,
    TABLE_NAME,
    claim_statement,
    fallback_message,
    insert_values,
    row_from,
    set_back_statement,
    settle_statement,
    sqlite_time,
)
from order_relay.fallback.store import (
    CLOCK_SECONDS,
    Claim,
    FallbackRow,
    FallbackStats,
    NewMessage,
    Outcome,
    Position,
    RowFilter,
    Status,
    lanes_of,
)
from order_relay.logs.log_line import LogLine
from order_relay.model.byte_text import clean_text, to_text

logger = logging.getLogger(__name__)

MAX_BATCH = 200
# An error after this time is that of a database that hangs or is locked.
HANGING_SECONDS = 5.0
PAGE = 500
_COLUMNS = fallback_message.c
_Saving: TypeAlias = tuple[NewMessage, asyncio.Future[int]]
# The first writes, the others only need the rights that a worker needs.
_CHECKED_WRITES = (
    f"UPDATE {VERSION_TABLE} SET version_num = version_num",  # noqa: S608 - our own names
    f"INSERT INTO {TABLE_NAME} (topic) SELECT 'none' WHERE 1 = 0",
    f"UPDATE {TABLE_NAME} SET topic = topic WHERE 1 = 0",  # noqa: S608
    f"DELETE FROM {TABLE_NAME} WHERE 1 = 0",  # noqa: S608
)


class FallbackTable:
    """Keeps the rows. For many tasks of one event loop and, thanks to leases, many processes.

    It saves nothing before ``open`` has brought its table up to date, and writes nothing into a
    table that a newer version has migrated. A SQLite file that was deleted or replaced is logged as
    an error and opened again.

    Every change is committed when the method returns. Every method raises ``DatabaseUnavailable``
    if the database does not answer or refuses. Nothing was changed then, unless the connection was
    lost during the commit: in that case all changes may have been made.

    Attributes:
        engine: The engine; ``close`` disposes of it.
    """

    def __init__(
        self,
        database_url: str,
        *,
        on_replaced: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            database_url: The database.
            on_replaced: Called when its file was deleted or replaced.
            clock: Replaces the database's clock in tests.

        Raises:
            InvalidDatabaseUrl: The URL cannot be used.
        """
        self.engine = engine = make_engine(database_url)
        self._database_url = database_url
        self._dialect = engine.dialect.name
        self._clock = clock
        if clock is None and self._dialect == "sqlite":
            # All users of a file share the machine's clock.
            self._clock = partial(datetime.now, UTC)
        # SQLite allows one writer; this lock is fairer and cheaper than its busy loop.
        self._write_lock = asyncio.Lock() if self._dialect == "sqlite" else nullcontext()
        self._waiting: list[_Saving] = []
        self._writer: asyncio.Task[None] | None = None
        self._failed_write: DatabaseUnavailable | None = None
        self._refusal: str | None = "the fallback table is not open yet"
        self._file: OpenedFile | None = None
        self._keeper: sqlite3.Connection | None = None
        self._replaced: DatabaseReplaced | None = None
        self._opening = asyncio.Lock()
        self._on_replaced = on_replaced
        self._last_stats = FallbackStats()

    @property
    def location(self) -> str:
        """The database, for people: without its password; a file with its full path."""
        url = self.engine.url
        if url.get_backend_name() == "sqlite":
            url = url.set(database=str(Path(url.database or "").absolute()))
        return url.render_as_string(hide_password=True)

    async def open(self) -> Revisions:
        """Bring the table up to date. May be called again after an error.

        Raises:
            DatabaseUnavailable: The database did not answer, or refused.
            DatabaseTooNew: A newer version of the relay has migrated it.
        """
        try:
            migrated = await migrate(self._database_url)
            async with self._connected() as connection:
                self._file = connection.info.get(OPENED_FILE)
                # If the file was deleted meanwhile, this connection has created a new, empty one.
                if await connection.run_sync(revision_of) is None:
                    raise DatabaseReplaced(self.location)
        except RelayError as error:
            self._refusal = getattr(error, "reason", str(error))
            raise
        self._refusal = None
        if self._dialect == "sqlite" and self._keeper is None:
            self._keep_log(self.engine.url.database or "")
        return migrated

    def _keep_log(self, path: str) -> None:
        """Keep SQLite's write-ahead log, by a connection of its own that reads nothing more.

        SQLite deletes the log with the last connection, and a cancelled call closes one. That would
        look like a file that was replaced.
        """
        with suppress(sqlite3.Error):
            self._keeper = sqlite3.connect(path, timeout=0, check_same_thread=False)
            self._keeper.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()

    async def look(self) -> Revisions:
        """Return the table's revision; nothing is changed or created.

        Raises:
            DatabaseUnavailable: The database did not answer, or refused.
            DatabaseTooNew: A newer version of the relay has migrated it.
        """
        async with self._reading() as connection:
            return await connection.run_sync(read_revisions)

    async def now(self) -> datetime:
        """Return the time in UTC, by the clock that all workers of this table share."""
        if self._clock is not None:
            return self._clock()
        async with self._reading() as connection:
            return await self._now(connection)

    async def save(self, message: NewMessage) -> int:
        """Save a message as a PENDING row that is due at once.

        A cancelled call may or may not have saved it.

        Returns:
            The row's id.
        """
        await self._reopen_if_replaced()
        if self._refusal is not None:
            raise DatabaseUnavailable(self._refusal)
        saved: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, saved))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._save_waiting())
        return await saved

    async def claim(
        self,
        *,
        limit: int,
        lease_seconds: float,
        after: Position | None = None,
        token: str | None = None,
    ) -> Claim:
        """Lease due rows to the caller.

        A row is due when it is PENDING, its ``next_retry_at`` has come, it has no running lease,
        and every earlier PENDING row of the same topic and key is claimed with it. FAILED rows and
        rows without a key delay no others. Rows and leases that were written more than
        ``CLOCK_SECONDS`` after now do not count, rows only without ``after``: the clock was set
        back.

        Args:
            limit: Rows at most.
            lease_seconds: How long the lease holds unless renewed.
            after: The ``position`` of the previous claim; None starts at the longest due.
            token: The token of an earlier claim, whose lease these rows join; None: a new one.
        """
        token = token or uuid.uuid4().hex
        statement = claim_statement(self._dialect, limit=limit, after=after is not None)
        async with self._changing() as connection:
            if self._dialect == "postgresql":
                await connection.execute(PLAN_BY_INDEX)
            now = await self._now(connection)
            until = now + timedelta(seconds=lease_seconds)
            ahead = timedelta(seconds=CLOCK_SECONDS)
            values: dict[str, Any] = {"now": now, "token": token, "until": until}
            values["latest"] = until + ahead
            if after is None:
                times = {"now": now, "until": until, "soon": now + ahead}
                await connection.execute(set_back_statement(self._dialect), times)
            else:
                values |= {"after_time": after.next_retry_at, "after_id": after.id}
            result = await connection.execute(statement, values)
            rows = sorted(
                (row_from(dict(row)) for row in result.mappings()), key=lambda row: row.id
            )
        heads = [lane[0] for lane in lanes_of(rows)]
        more = len(heads) >= limit
        position = max(Position(row.next_retry_at, row.id) for row in heads) if more else None
        return Claim(token, until, tuple(rows), position)

    async def renew(self, claim_token: str, ids: Collection[int], lease_seconds: float) -> set[int]:
        """Extend a lease to ``lease_seconds`` from now.

        Returns:
            The rows that are still leased to the caller, and not locked by another session.
        """
        until = timedelta(seconds=lease_seconds)
        free = _leased(claim_token, ids).with_for_update(skip_locked=True)  # on PostgreSQL
        return await self._change(
            lambda now: (
                sa.update(fallback_message)
                .where(_COLUMNS.id.in_(free))
                .values(lease_until=now + until, updated_at=now)
            )
        )

    async def settle(self, claim_token: str, outcomes: Sequence[Outcome]) -> set[int]:
        """Write the outcomes of claimed rows, and end their lease. May be repeated.

        Returns:
            The rows that were written. The others are no longer leased to the caller, or locked by
            another session: see ``leased``.
        """
        rows = [
            {
                "id": one.row_id,
                "status": one.status.value,
                "retry_count": one.retry_count,
                "next_retry_at": one.next_retry_at and sqlite_time(one.next_retry_at),
                "error_message": clean_text(one.error_message),
            }
            for one in outcomes
        ]
        async with self._changing() as connection:
            now = await self._now(connection)
            result = await connection.execute(
                settle_statement(self._dialect),
                {"now": now, "token": claim_token, "rows": json.dumps(rows)},
            )
            return set(result.scalars())

    async def leased(self, claim_token: str, ids: Collection[int]) -> set[int]:
        """Return those of the rows that are leased to the caller."""
        async with self._reading() as connection:
            return set((await connection.scalars(_leased(claim_token, ids))).all())

    async def stats(self) -> FallbackStats:
        """Count the rows; fast with a million of them, but not for every request.

        All queries use the index on status.
        """
        async with self._reading() as connection:
            counted = await connection.execute(
                sa.select(_COLUMNS.status, sa.func.count()).group_by(_COLUMNS.status)
            )
            counts: dict[str, int] = {status: count for status, count in counted}  # noqa: C416 - typed
            pending = await self._oldest(connection, Status.PENDING)
            failed = await self._oldest(connection, Status.FAILED)
            now = await self._now(connection)
        saved_at = now
        if pending is not None:
            saved_at = pending.created_at if pending.created_at <= now else pending.updated_at
        given_up_at = now if failed is None else failed.updated_at
        self._last_stats = FallbackStats(
            pending=counts.get(Status.PENDING, 0),
            published=counts.get(Status.PUBLISHED, 0),
            failed=counts.get(Status.FAILED, 0),
            oldest_pending_seconds=max(0.0, (now - saved_at).total_seconds()),
            oldest_failed_seconds=max(0.0, (now - given_up_at).total_seconds()),
        )
        return self._last_stats

    async def purge(self, *, published_before: datetime, limit: int) -> int:
        """Delete at most ``limit`` PUBLISHED rows, the oldest first; return how many."""
        oldest = (
            sa.select(_COLUMNS.id)
            .where(_is(Status.PUBLISHED), _COLUMNS.published_at < published_before)
            .order_by(_COLUMNS.published_at)
            .limit(limit)
            .with_for_update(skip_locked=True)  # on PostgreSQL
        )
        async with self._changing() as connection:
            ids = (await connection.scalars(oldest)).all()
            await connection.execute(sa.delete(fallback_message).where(_COLUMNS.id.in_(ids)))
            return len(ids)

    async def find(
        self, rows: RowFilter, *, after_id: int = 0, limit: int = 100
    ) -> list[FallbackRow]:
        """Return matching rows in the order of their ids, from the first after ``after_id``."""
        statement = sa.select(fallback_message).where(_COLUMNS.id > after_id, *_conditions(rows))
        async with self._reading() as connection:
            result = await connection.execute(statement.order_by(_COLUMNS.id).limit(limit))
            return [row_from(dict(row)) for row in result.mappings()]

    async def pages(
        self, rows: RowFilter, *, after_id: int = 0
    ) -> AsyncIterator[list[FallbackRow]]:
        """Read matching rows page by page, by their ids; they may be changed meanwhile."""
        while page := await self.find(rows, after_id=after_id, limit=PAGE):
            after_id = page[-1].id
            yield page

    async def find_saved(self, topic: str, key: bytes) -> FallbackRow | None:
        """Return a row of a topic and key that is PENDING, else one that is FAILED."""
        for status in (Status.PENDING, Status.FAILED):
            if rows := await self.find(RowFilter(status=status, topic=topic, key=key), limit=1):
                return rows[0]
        return None

    async def count(self, rows: RowFilter) -> int:
        """Count matching rows."""
        statement = sa.select(sa.func.count()).select_from(fallback_message)
        async with self._reading() as connection:
            return int(await connection.scalar(statement.where(*_conditions(rows))) or 0)

    async def requeue(self, ids: Collection[int]) -> set[int]:
        """Make FAILED rows PENDING again, due at once, with ``retry_count`` 0.

        Returns:
            The rows that were FAILED; the others were not changed.
        """
        again = {"status": "PENDING", "retry_count": 0, "lease_token": None, "lease_until": None}
        return await self._change(
            lambda now: (
                sa.update(fallback_message)
                .where(_is(Status.FAILED), _COLUMNS.id.in_(ids))
                .values(**again, next_retry_at=now, updated_at=now)
            )
        )

    async def discard(self, ids: Collection[int], status: Status | None = None) -> set[int]:
        """Delete FAILED rows, and PENDING ones without a running lease.

        With a ``status``, only those that still have it: another person may requeue them just now.

        Returns:
            The rows that were deleted.
        """
        lease_until = _COLUMNS.lease_until
        return await self._change(
            lambda now: sa.delete(fallback_message).where(
                *_conditions(RowFilter(ids=ids, status=status)),
                _is(Status.FAILED)
                | (_is(Status.PENDING) & (lease_until.is_(None) | (lease_until <= now))),
            )
        )

    async def check_writes(self) -> None:
        """Check that the database accepts writes, by some that change nothing.

        Raises:
            DatabaseUnavailable: A write failed, as on a full disk, on a standby or without a right;
                or another write has failed since the last call.
        """
        # A full disk may still have room for this write and not for a row or a claim.
        failed, self._failed_write = self._failed_write, None
        if failed is not None:
            raise DatabaseUnavailable(failed.reason)
        async with self._transaction() as connection:
            for statement in _CHECKED_WRITES:
                await connection.exec_driver_sql(statement)

    async def close(self) -> None:
        """Close connections. May be called twice."""
        with translated():
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                keeper.close()
            await self.engine.dispose()

    # --- connections ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        with translated():
            async with self.engine.connect() as connection:
                self._check_file(connection.info.get(OPENED_FILE))
                yield connection

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        await self._reopen_if_replaced()
        async with self._connected() as connection:
            yield connection

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction of which ``check_writes`` tells that it has failed."""
        try:
            async with self._transaction() as connection:
                yield connection
        except DatabaseUnavailable as error:
            if not error.statement_refused:
                self._failed_write = error
            raise

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back by an error."""
        async with self._writing(), self._reading() as plain:
            connection = await plain.execution_options(relay_begin="IMMEDIATE")
            async with connection.begin():
                yield connection
            # A commit into a file that was deleted would be lost at the next restart.
            self._check_file(connection.info.get(OPENED_FILE))

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Hold SQLite's write lock; wait for it as long as SQLite waits for another program.

        Without this limit, while another program locks the file, writers wait one after another.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(SQLITE_BUSY_TIMEOUT_SECONDS):
                    await stack.enter_async_context(self._write_lock)
            except TimeoutError:
                raise DatabaseUnavailable("database is locked") from None
            yield

    def _check_file(self, opened: OpenedFile | None) -> None:
        try:
            if opened is not None:
                opened.check()
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
            with suppress(DatabaseReplaced):
                self._check_file(self._file)
            if self._replaced is None:
                return
            if self._refusal is None:
                self._refusal = self._replaced.reason
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

    async def _now(self, connection: AsyncConnection) -> datetime:
        if self._clock is not None:
            return self._clock()
        row = (await connection.execute(sa.select(sa.func.clock_timestamp(), idle_limit()))).one()
        now: datetime = row[0]
        return now.astimezone(UTC)

    async def _oldest(self, connection: AsyncConnection, status: Status) -> Any:
        found = await connection.execute(
            sa.select(_COLUMNS.created_at, _COLUMNS.updated_at)
            .where(_is(status))
            .order_by(_COLUMNS.id)
            .limit(1)
        )
        return found.first()

    async def _change(self, change: Callable[[datetime], sa.Update | sa.Delete]) -> set[int]:
        """Run the statement that ``change`` makes from the time; return the ids it changed."""
        async with self._changing() as connection:
            statement = change(await self._now(connection)).returning(_COLUMNS.id)
            return set((await connection.scalars(statement)).all())

    # --- saving ---------------------------------------------------------------------------------

    async def _save_waiting(self) -> None:
        """Save messages in batches: all that arrive during a commit share the next one.

        In an outage of Kafka every event is saved; one commit each would be limited by the disk.
        """
        batch: list[_Saving] = []
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                began, waited_too = loop.time(), len(self._waiting)
                error = await self._save_batch(batch)
                if error is not None and loop.time() - began > HANGING_SECONDS:
                    # Otherwise the last of many would wait for a time-out after the other.
                    _refuse(self._waiting[:waited_too], error)
                    del self._waiting[:waited_too]
        except BaseException:  # the loop ends
            for _, saved in (*batch, *self._waiting):
                saved.cancel()
            self._waiting.clear()
            raise

    async def _save_batch(self, batch: list[_Saving]) -> Exception | None:
        """Save messages; return the error if the database did not answer."""
        try:
            ids = await self._insert([message for message, _ in batch])
        except Exception as error:  # noqa: BLE001 - the callers of ``save`` get it
            refused = getattr(error, "statement_refused", False)
            if len(batch) > 1 and refused:
                # The database refuses one of them: save the others without it.
                for one in batch:
                    await self._save_batch([one])
                return None
            _refuse(batch, error)
            return None if refused else error
        for (_, saved), row_id in zip(batch, ids, strict=True):
            if not saved.done():
                saved.set_result(row_id)
        return None

    async def _insert(self, messages: Sequence[NewMessage]) -> list[int]:
        statement = sa.insert(fallback_message).returning(_COLUMNS.id, sort_by_parameter_order=True)
        async with self._changing() as connection:
            # By the store's clock, since they are compared with it.
            now = await self._now(connection)
            times = {"next_retry_at": now, "created_at": now, "updated_at": now}
            result = await connection.execute(
                statement, [insert_values(message) | times for message in messages]
            )
            return list(result.scalars())


def _refuse(batch: Sequence[_Saving], error: Exception) -> None:
    for _, saved in batch:
        if not saved.done():
            saved.set_exception(error)


def _is(status: Status) -> sa.ColumnElement[bool]:
    # A literal: the databases use the partial indexes only then.
    return _COLUMNS.status == sa.literal_column(f"'{status.value}'")


def _leased(claim_token: str, ids: Collection[int]) -> sa.Select[Any]:
    return sa.select(_COLUMNS.id).where(_COLUMNS.lease_token == claim_token, _COLUMNS.id.in_(ids))


def _conditions(rows: RowFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if rows.ids is not None:
        conditions.append(_COLUMNS.id.in_(rows.ids))
    if rows.status is not None:
        conditions.append(_is(rows.status))
    if rows.topic is not None:
        conditions.append(_COLUMNS.topic == rows.topic)
    if rows.key is not None:
        conditions.append(_COLUMNS.message_key == to_text(rows.key))
    if rows.error_contains is not None:
        conditions.append(_COLUMNS.error_message.icontains(rows.error_contains, autoescape=True))
    return conditions
