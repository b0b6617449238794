"""The audit log: what people changed, in the table ``kafka_relay_audit`` beside the fallback table.

It is made at the first entry, or by the command ``python -m order_relay.fallback.sql.migrate``. It
is not part of the fallback table's revisions, so that an older version of the relay can go on with
the same database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from order_relay.fallback.sql.engine import immediate, translated
from order_relay.fallback.sql.migrate import ADVISORY_LOCK
from order_relay.fallback.sql.schema import UtcDateTime
from order_relay.logs.log_line import printable

TEXT_LENGTH = 1000
PAUSED, RESUMED = "consumer: pause", "consumer: resume"

_metadata = sa.MetaData()
_audit = sa.Table(
    "kafka_relay_audit",
    _metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change that a person made.

    Attributes:
        actor: Who: the name that the person gave, and from where.
        action: What, such as ``dead letters redriven``.
        subject: Of what: a consumer, or the fallback table.
        changed: How many letters or rows were changed.
        detail: Which ones, and the reason that was given.
        at: When; with a time zone, by default now.
    """

    actor: str
    action: str
    subject: str
    changed: int
    detail: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class AuditLog:
    """Writes and reads the audit log. Every call raises ``DatabaseUnavailable`` if it fails."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Use the database of the fallback table."""
        self._engine = engine

    async def write(self, entry: AuditEntry) -> None:
        """Add an entry; long texts are cut, characters that a database refuses are escaped."""
        values = {
            name: printable(value)[:TEXT_LENGTH] if isinstance(value, str) else value
            for name, value in asdict(entry).items()
        }
        async with self._writing() as connection:
            # Not only once: what made it may be rolled back, or an older backup be restored.
            await connection.run_sync(_make_table)
            await connection.execute(_audit.insert().values(values))

    async def make_table(self) -> None:
        """Make the table if there is none, for workers that may not make tables."""
        async with self._writing() as connection:
            await connection.run_sync(_make_table)

    async def latest(self, limit: int) -> list[AuditEntry]:
        """Return the latest entries, the newest first."""
        rows = await self._read(sa.select(_audit).order_by(_audit.c.id.desc()).limit(limit))
        return [
            AuditEntry(row.actor, row.action, row.subject, row.changed, row.detail, row.at)
            for row in rows
        ]

    async def paused(self) -> set[str]:
        """Return the consumers that were paused and not resumed since."""
        last = (
            sa.select(sa.func.max(_audit.c.id))
            .where(_audit.c.action.in_((PAUSED, RESUMED)))
            .group_by(_audit.c.subject)
        )
        paused = sa.select(_audit.c.subject).where(_audit.c.id.in_(last), _audit.c.action == PAUSED)
        return {row.subject for row in await self._read(paused)}

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        with translated():
            async with immediate(self._engine).begin() as connection:
                yield connection

    async def _read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """Return the rows of a query; none before the first entry."""
        with translated():
            async with self._engine.connect() as connection:
                if not await connection.run_sync(lambda it: sa.inspect(it).has_table(_audit.name)):
                    return []
                found: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
                return found


def _make_table(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":  # its IF NOT EXISTS fails for two at once
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    _metadata.create_all(connection)
