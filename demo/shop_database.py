"""The shop's database: its orders, and beside them the outbox that the worker's replay reads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from demo.errors import CannotRun
from demo.order_shop import Order
from order_relay.errors import DatabaseUnavailable, InvalidDatabaseUrl
from order_relay.fallback.replay import Replay
from order_relay.fallback.retry_schedule import RetrySchedule
from order_relay.fallback.sql.engine import translated
from order_relay.fallback.sql.migrate import migrate
from order_relay.fallback.sql.schema import fallback_message, headers_from_text, insert_values
from order_relay.fallback.sql.store import SqlFallbackStore
from order_relay.fallback.store import NewMessage, Status
from order_relay.kafka.producer import KafkaProducer
from order_relay.model.headers import EVENT_ID_HEADER
from order_relay.publishing.outbox import Outbox
from order_relay.settings import Settings

_metadata = sa.MetaData()
_orders = sa.Table(
    "orders",
    _metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("paid_at", sa.Text, nullable=False),
)


def database_url(folder: Path) -> str:
    """Return the URL of the shop's database in a folder."""
    return f"sqlite+aiosqlite:///{folder / 'shop.db'}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Events that wait in the table for Kafka.

    Attributes:
        event_ids: The events, those that are order_logging's dead letters among them.
        pending: How many rows replay will take up by itself, of whatever topic.
    """

    event_ids: frozenset[str]
    pending: int


class ShopDatabase:
    """A SQLite file, shared with the worker.

    The shop publishes its rows itself, right after their commit. What it cannot publish it leaves
    to the worker's replay: it makes no sweeps of its own.
    """

    def __init__(self, settings: Settings, producer: KafkaProducer) -> None:
        """Prepare; nothing is opened. ``producer`` is the caller's, stopped after ``close``.

        Must be called in the running loop.

        Raises:
            CannotRun: This Python's SQLite is too old, or the folder's name is no part of a URL.
        """
        self._url = settings.database_url.get_secret_value()
        self._topic = settings.order_paid_topic
        self._dead_letter_topic = settings.dlq_topic
        try:
            self._store = SqlFallbackStore.connect(self._url)
        except InvalidDatabaseUrl as error:
            raise CannotRun(f"the shop's database cannot be used: {error}") from error
        self._replay = Replay(
            self._store, producer, schedule=RetrySchedule(settings.fallback_backoff_base_seconds)
        )
        self._outbox = Outbox(
            self._topic, replay=self._replay, max_retry=settings.fallback_max_retry
        )
        # SQLite has one writer; waiting here is fairer than its busy loop.
        self._one_at_a_time = asyncio.Lock()

    @property
    def _engine(self) -> AsyncEngine:
        return self._store.engine

    async def open(self) -> None:
        """Make the file and its tables.

        Raises:
            CannotRun: They cannot be made.
        """
        try:
            await migrate(self._url)
            with translated():
                async with self._engine.begin() as connection:
                    await connection.run_sync(_metadata.create_all)
        except DatabaseUnavailable as error:
            raise CannotRun(f"the shop's database cannot be made: {error}") from error

    async def pay(self, order: Order) -> None:
        """Commit the order, and its event with it. See ``PaymentGateway.pay``."""
        async with self._one_at_a_time:
            with translated():
                async with AsyncSession(self._engine) as session, session.begin():
                    paid_at = order.paid_at.isoformat(timespec="milliseconds")
                    row = {"id": order.order_id, "event_id": order.event_id, "paid_at": paid_at}
                    await session.execute(sa.insert(_orders).values(row))
                    if order.broken:
                        await self._add_unchecked(session, order)
                    else:
                        self._outbox.add(session, order.value, event_id=order.event_id)

    async def _add_unchecked(self, session: AsyncSession, order: Order) -> None:
        """Write the row as a program without our helper would; replay finds it."""
        header = (EVENT_ID_HEADER, order.event_id.encode())
        message = NewMessage(self._topic, order.key, order.value, (header,))
        await session.execute(sa.insert(fallback_message).values(insert_values(message)))

    async def waiting(self, *, for_seconds: float = 0.0) -> Waiting:
        """Return the events that have waited in the table for so long, or longer.

        Raises:
            DatabaseUnavailable: The database did not answer.
        """
        table = fallback_message.c
        of_orders = {self._topic, self._dead_letter_topic}
        before = datetime.now(UTC) - timedelta(seconds=for_seconds)
        statement = sa.select(table.status, table.topic, table.headers).where(
            table.status.in_([Status.PENDING.value, Status.FAILED.value]),
            table.created_at <= before,
        )
        with translated():
            async with self._engine.connect() as connection:
                rows = (await connection.execute(statement)).all()
        return Waiting(
            frozenset(_event_id(headers) for _, topic, headers in rows if topic in of_orders),
            sum(status == Status.PENDING for status, _, _ in rows),
        )

    async def orders(self) -> list[str]:
        """Return the event id of every order there is.

        Raises:
            DatabaseUnavailable: The database did not answer.
        """
        with translated():
            async with self._engine.connect() as connection:
                return list(await connection.scalars(sa.select(_orders.c.event_id)))

    async def settle(self, grace_seconds: float = 3.0) -> None:
        """Publish what was committed so far, for ``grace_seconds`` at most, and then no more."""
        await self._outbox.close(grace_seconds)
        await self._replay.stop(grace_seconds)

    async def close(self) -> None:
        """Let go of the file. May be called twice, and without ``open``."""
        await self.settle(0.0)
        await self._store.close()


def _event_id(headers: str | None) -> str:
    value = dict(headers_from_text(headers)).get(EVENT_ID_HEADER)
    return (value or b"a row without event-id").decode("utf-8", "replace")
