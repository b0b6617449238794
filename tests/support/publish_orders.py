"""An order service's own tables and sessions, for tests of publishing."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncEngine

from order_relay.fallback.sql.engine import make_engine
from order_relay.fallback.sql.schema import fallback_message
from order_relay.fallback.store import Status

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("note", sa.Text, unique=True),
)


class Order:
    """A paid order."""

    def __init__(self, id: int, note: str | None = None) -> None:  # noqa: A002 - the column's name
        self.id = id
        self.note = note


orm.registry(metadata=metadata).map_imperatively(Order, orders)


async def make_orders(url: str) -> AsyncEngine:
    """An engine on the order service's database, with its table made."""
    engine = make_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    return engine


@contextmanager
def sync_engine(path: str) -> Iterator[sa.Engine]:
    """A synchronous SQLAlchemy engine on a SQLite file, as services use it."""
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
    metadata.create_all(engine)
    try:
        yield engine
    finally:
        engine.dispose()


async def statuses(engine: AsyncEngine) -> list[Status]:
    """The status of every row of the fallback table, by id."""
    async with engine.connect() as connection:
        found = await connection.scalars(
            sa.select(fallback_message.c.status).order_by(fallback_message.c.id)
        )
        return [Status(status) for status in found]


async def order_ids(engine: AsyncEngine) -> list[int]:
    """Every order that was committed."""
    async with engine.connect() as connection:
        return list(await connection.scalars(sa.select(orders.c.id).order_by(orders.c.id)))
