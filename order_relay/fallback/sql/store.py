"""The fallback table in SQLite or PostgreSQL."""
# ruff: noqa: S608 - statements are put together from this package's own text only

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from order_relay.fallback.sql.engine import OPENED_FILE, make_engine, translated
from order_relay.fallback.sql.schema import (
    TABLE_NAME,
    UtcDateTime,
    fallback_message,
    insert_values,
    row_from,
    sqlite_time,
)
from order_relay.fallback.sql.statements import (
    IN_IDS,
    PLAN_BY_INDEX,
    claim_statement,
    purge_statement,
    set_back_statement,
    settle_statement,
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
)
from order_relay.model.byte_text import clean_text, to_text

MAX_BATCH = 200


class SqlFallbackStore:
    """A ``FallbackStore`` on SQLAlchemy, for one event loop.

    It connects at first use. ``migrate`` must have run before.

    Attributes:
        engine: The engine; ``close`` disposes of it.
    """

    def __init__(self, database_url: str, *, clock: Callable[[], datetime] | None = None) -> None:
        """Prepare; nothing is connected yet.

        Args:
            database_url: The database.
            clock: Replaces the database's clock in tests.

        Raises:
            InvalidDatabaseUrl: The URL cannot be used.
        """
        self.engine = engine = make_engine(database_url)
        self._dialect = engine.dialect.name
        self._clock = clock
        if clock is None and self._dialect == "sqlite":
            self._clock = _utc_now  # all users of a file share the machine's clock
        # SQLite allows one writer; this lock is fairer and cheaper than its busy loop.
        self._write_lock = asyncio.Lock() if self._dialect == "sqlite" else None
        self._waiting: list[tuple[NewMessage, asyncio.Future[int]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def now(self) -> datetime:
        """See ``FallbackStore.now``."""
        if self._clock is not None:
            return self._clock()
        async with self._reading() as connection:
            return await self._now(connection)

    async def save(self, message: NewMessage) -> int:
        """See ``FallbackStore.save``."""
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
        """See ``FallbackStore.claim``."""
        token = token or uuid.uuid4().hex
        statement = claim_statement(self._dialect, limit=limit, after=after is not None)
        async with self._changing() as connection:
            if self._dialect == "postgresql":
                await connection.execute(PLAN_BY_INDEX)
            now = await self._now(connection)
            until = now + timedelta(seconds=lease_seconds)
            values: dict[str, Any] = {"now": now, "token": token, "until": until}
            if after is None:
                await connection.execute(
                    set_back_statement(self._dialect),
                    {"now": now, "until": until, "soon": now + timedelta(seconds=CLOCK_SECONDS)},
                )
            else:
                values |= {"after_time": after.next_retry_at, "after_id": after.id}
            result = await connection.execute(statement, values)
            rows = sorted(
                (row_from(dict(row)) for row in result.mappings()), key=lambda row: row.id
            )
        heads = _heads(rows)
        more = len(heads) >= limit
        position = max(Position(row.next_retry_at, row.id) for row in heads) if more else None
        return Claim(token, until, tuple(rows), position)

    async def renew(self, claim_token: str, ids: Collection[int], lease_seconds: float) -> set[int]:
        """See ``FallbackStore.renew``."""
        return await self._change(
            f"UPDATE {TABLE_NAME} SET lease_until = :until, updated_at = :now"
            " WHERE lease_token = :token",
            ids,
            lease_seconds,
            token=claim_token,
        )

    async def settle(self, claim_token: str, outcomes: Sequence[Outcome]) -> set[int]:
        """See ``FallbackStore.settle``."""
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

    async def stats(self) -> FallbackStats:
        """See ``FallbackStore.stats``. All queries use the index on status."""
        async with self._reading() as connection:
            counted = await connection.execute(
                sa.text(f"SELECT status, COUNT(*) FROM {TABLE_NAME} GROUP BY status")
            )
            counts: dict[str, int] = {status: count for status, count in counted}  # noqa: C416 - typed
            pending = await self._oldest(connection, Status.PENDING)
            failed = await self._oldest(connection, Status.FAILED)
            now = await self._now(connection)
        saved_at = now
        if pending is not None:
            saved_at = pending.created_at if pending.created_at <= now else pending.updated_at
        given_up_at = now if failed is None else failed.updated_at
        return FallbackStats(
            pending=counts.get(Status.PENDING, 0),
            published=counts.get(Status.PUBLISHED, 0),
            failed=counts.get(Status.FAILED, 0),
            oldest_pending_seconds=max(0.0, (now - saved_at).total_seconds()),
            oldest_failed_seconds=max(0.0, (now - given_up_at).total_seconds()),
        )

    async def purge(self, *, published_before: datetime, limit: int) -> int:
        """See ``FallbackStore.purge``."""
        async with self._changing() as connection:
            result = await connection.execute(
                purge_statement(self._dialect, limit=limit), {"before": published_before}
            )
            return len(result.all())

    async def find(
        self, rows: RowFilter, *, after_id: int = 0, limit: int = 100
    ) -> list[FallbackRow]:
        """See ``FallbackStore.find``."""
        table = fallback_message
        statement = sa.select(table).where(table.c.id > after_id, *self._conditions(rows))
        async with self._reading() as connection:
            result = await connection.execute(
                statement.order_by(table.c.id).limit(limit), self._parameters(rows)
            )
            return [row_from(dict(row)) for row in result.mappings()]

    async def count(self, rows: RowFilter) -> int:
        """See ``FallbackStore.count``."""
        statement = sa.select(sa.func.count()).select_from(fallback_message)
        async with self._reading() as connection:
            counted = await connection.scalar(
                statement.where(*self._conditions(rows)), self._parameters(rows)
            )
            return int(counted or 0)

    async def requeue(self, ids: Collection[int]) -> set[int]:
        """See ``FallbackStore.requeue``."""
        return await self._change(
            f"UPDATE {TABLE_NAME} SET status = 'PENDING', retry_count = 0, next_retry_at = :now,"
            " updated_at = :now, lease_token = NULL, lease_until = NULL"
            " WHERE status = 'FAILED'",
            ids,
        )

    async def discard(self, ids: Collection[int]) -> set[int]:
        """See ``FallbackStore.discard``."""
        return await self._change(
            f"DELETE FROM {TABLE_NAME} WHERE (status = 'FAILED' OR (status = 'PENDING'"
            " AND (lease_until IS NULL OR lease_until <= :now)))",
            ids,
        )

    async def close(self) -> None:
        """See ``FallbackStore.close``."""
        with translated():
            await self.engine.dispose()

    # --- connections ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with translated():
            async with self.engine.connect() as connection:
                self._check_file(connection)
                yield connection

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back by an error."""
        async with self._write_lock or nullcontext(), self._reading() as plain:
            connection = await plain.execution_options(relay_begin="IMMEDIATE")
            async with connection.begin():
                yield connection
            # A commit into a file that was deleted would be lost at the next restart.
            self._check_file(connection)

    def _check_file(self, connection: AsyncConnection) -> None:
        if (opened := connection.info.get(OPENED_FILE)) is not None:
            opened.check()

    async def _now(self, connection: AsyncConnection) -> datetime:
        if self._clock is not None:
            return self._clock()
        now: datetime = (
            await connection.execute(sa.select(sa.func.clock_timestamp()))
        ).scalar_one()
        return now.astimezone(UTC)

    async def _oldest(self, connection: AsyncConnection, status: Status) -> Any:
        found = await connection.execute(
            sa.select(fallback_message.c.created_at, fallback_message.c.updated_at)
            .where(fallback_message.c.status == sa.literal_column(f"'{status.value}'"))
            .order_by(fallback_message.c.id)
            .limit(1)
        )
        return found.first()

    async def _change(
        self, sql: str, ids: Collection[int], lease_seconds: float = 0, **values: Any
    ) -> set[int]:
        """Run a statement on rows by id, and return the ids of those that it changed.

        Its parameters are now, until (``lease_seconds`` later) and ``values``.
        """
        statement = sa.text(f"{sql} AND id {IN_IDS[self._dialect]} RETURNING id")
        async with self._changing() as connection:
            now = await self._now(connection)
            times = {"now": now, "until": now + timedelta(seconds=lease_seconds)}
            typed = (sa.bindparam(name, type_=UtcDateTime()) for name in times if f":{name}" in sql)
            result = await connection.execute(
                statement.bindparams(*typed), times | values | {"ids": _json(ids)}
            )
            return set(result.scalars())

    # --- saving ---------------------------------------------------------------------------------

    async def _save_waiting(self) -> None:
        """Save messages in batches: all that arrive during a commit share the next one.

        In an outage of Kafka every event is saved; one commit each would be limited by the disk.
        """
        batch: list[tuple[NewMessage, asyncio.Future[int]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._save_batch(batch)
        except BaseException:  # the loop ends
            for _, saved in (*batch, *self._waiting):
                saved.cancel()
            self._waiting.clear()
            raise

    async def _save_batch(self, batch: list[tuple[NewMessage, asyncio.Future[int]]]) -> None:
        try:
            ids = await self._insert([message for message, _ in batch])
        except Exception as error:  # noqa: BLE001 - the callers of ``save`` get it
            if len(batch) > 1 and getattr(error, "statement_refused", False):
                # The database refuses one of them: save the others without it.
                for one in batch:
                    await self._save_batch([one])
                return
            for _, saved in batch:
                if not saved.done():
                    saved.set_exception(error)
        else:
            for (_, saved), row_id in zip(batch, ids, strict=True):
                if not saved.done():
                    saved.set_result(row_id)

    async def _insert(self, messages: Sequence[NewMessage]) -> list[int]:
        statement = sa.insert(fallback_message).returning(
            fallback_message.c.id, sort_by_parameter_order=True
        )
        async with self._changing() as connection:
            # By the store's clock, since they are compared with it.
            now = await self._now(connection)
            times = {"next_retry_at": now, "created_at": now, "updated_at": now}
            result = await connection.execute(
                statement, [insert_values(message) | times for message in messages]
            )
            return list(result.scalars())

    # --- conditions -----------------------------------------------------------------------------

    def _conditions(self, rows: RowFilter) -> list[sa.ColumnElement[bool]]:
        columns = fallback_message.c
        conditions: list[sa.ColumnElement[bool]] = []
        if rows.ids is not None:
            conditions.append(sa.text(f"id {IN_IDS[self._dialect]}"))  # type: ignore[arg-type]
        if rows.status is not None:
            conditions.append(columns.status == rows.status.value)
        if rows.topic is not None:
            conditions.append(columns.topic == rows.topic)
        if rows.key is not None:
            conditions.append(columns.message_key == to_text(rows.key))
        if rows.error_contains is not None:
            conditions.append(columns.error_message.icontains(rows.error_contains, autoescape=True))
        return conditions

    @staticmethod
    def _parameters(rows: RowFilter) -> dict[str, Any]:
        return {} if rows.ids is None else {"ids": _json(rows.ids)}


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _json(ids: Collection[int]) -> str:
    return json.dumps(sorted(ids))


def _heads(rows: Iterable[FallbackRow]) -> list[FallbackRow]:
    """Return the first row of each key, of rows in the order of their ids."""
    first: dict[object, FallbackRow] = {}
    for row in rows:
        first.setdefault(row.lane, row)
    return list(first.values())
