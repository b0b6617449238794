"""The sample order shop: each payment is committed with the ORDER_PAID event about it.

``python -m demo.shop`` runs it by itself, until SIGTERM or Ctrl-C, with the worker's settings of
Kafka and of the database. What it cannot publish, its own replay or a worker's publishes later.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import click
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from demo.command_line import LIVE_RATE, RATE, run_command, run_until_stopped
from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.sql.engine import make_engine, translated
from order_relay.fallback.sql.schema import fallback_message, headers_from_text, insert_values
from order_relay.fallback.store import NewMessage, Status
from order_relay.model.headers import EVENT_ID_HEADER
from order_relay.publishing import Outbox, open_order_events
from order_relay.settings import Settings, load_settings

logger = logging.getLogger(__name__)

# One message in so many is not valid JSON, as a careless producer would write it.
BROKEN_EVERY = 100
FIRST_ORDER_ID = 100_001
RETRY_SECONDS = 1.0
# At the end, for the last events to be published.
GRACE_SECONDS = 3.0
# A shop that starts again must not sell the orders of an earlier one again.
_IDS_A_SECOND = 1000

_metadata = sa.MetaData()
_orders = sa.Table(
    "orders",
    _metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("paid_at", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Order:
    """A paid order and the message about it; ``broken`` if the message is not valid JSON."""

    event_id: str
    order_id: int
    paid_at: str
    value: bytes
    broken: bool

    @property
    def key(self) -> bytes:
        """The record's key: the order id as text."""
        return str(self.order_id).encode()


def sample_orders(
    seed: int,
    first_order_id: int = FIRST_ORDER_ID,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Order]:
    """Make up orders without end, each paid at the moment; the same seed makes the same ones."""
    source = random.Random(f"{seed}:orders")  # noqa: S311 - sample data
    draw = source.randint
    broken_id = 0
    for order_id in itertools.count(first_order_id):
        if (order_id - first_order_id) % BROKEN_EVERY == 0:
            broken_id = order_id + source.randrange(BROKEN_EVERY // 2)
        items = [
            {"productId": draw(1, 500), "orderQuantity": draw(1, 4)} for _ in range(draw(1, 3))
        ]
        paid_at = clock().isoformat(timespec="milliseconds")
        value = msgspec.json.encode(
            {
                "eventType": "ORDER_PAID",
                "orderId": order_id,
                "userId": draw(1, 9_999),
                "paidAt": paid_at,
                "orderItems": items,
            }
        )
        event_id = uuid.UUID(int=source.getrandbits(128), version=4)
        broken = order_id == broken_id
        if broken:
            value = value[: len(value) // 2]
        yield Order(str(event_id), order_id, paid_at, value, broken)


async def payments(
    orders: Iterator[Order],
    pay: Callable[[Order], Awaitable[None]],
    *,
    rate: float,
    number: int | None = None,
    may_pay: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Order]:
    """Pay ``rate`` orders a second, and yield each one once it is committed.

    It ends after ``number`` of them, if that is given. No order is paid while ``may_pay`` is false.
    An order that the database refuses is tried again until it is committed. Cancelling leaves open
    whether the last one is.
    """
    now = asyncio.get_running_loop().time
    due = now()
    for _ in itertools.count() if number is None else range(number):
        await asyncio.sleep(max(0.0, due - now()))
        while not may_pay():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(1 / rate)
        order = next(orders)
        while True:
            try:
                await pay(order)
                break
            except DatabaseUnavailable as error:
                logger.warning("Payment refused, tried again: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
        yield order
        # Time that was lost is not made up for with a rush.
        due = max(due + 1 / rate, now() - 1)


class ShopDatabase:
    """The shop's orders, and beside them the outbox.

    A call raises ``DatabaseUnavailable`` if the database does not answer or refuses. Nothing was
    changed then.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing is opened. Raises ``InvalidDatabaseUrl``."""
        self._settings = settings
        self._engine = make_engine(settings.database_url.get_secret_value())
        self._outbox: Outbox

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Make the tables; inside, orders can be paid and their events are published."""
        # Before replay begins: SQLite locks out a transaction that reads first and writes then.
        with translated():
            async with self._engine.begin() as connection:
                await connection.run_sync(_metadata.create_all)
        async with open_order_events(self._settings, grace_seconds=GRACE_SECONDS) as events:
            self._outbox = events.outbox
            yield

    async def pay(self, order: Order) -> None:
        """Commit the order and its event in one transaction. This does not wait for Kafka."""
        row = {"id": order.order_id, "event_id": order.event_id, "paid_at": order.paid_at}
        with translated():
            async with AsyncSession(self._engine) as session, session.begin():
                await session.execute(sa.insert(_orders).values(row))
                if not order.broken:
                    self._outbox.add(session, order.value, event_id=order.event_id)
                    return
                # As a program without our helper would write it; replay finds the row.
                header = (EVENT_ID_HEADER, order.event_id.encode())
                message = NewMessage(
                    self._settings.order_paid_topic, order.key, order.value, (header,)
                )
                await session.execute(sa.insert(fallback_message).values(insert_values(message)))

    async def waiting(self, for_seconds: float = 0.0) -> tuple[set[str], int]:
        """Return the events that have waited in the table for so long, or longer.

        Dead letters of order_logging are among them. The number counts the rows, of whatever topic,
        that replay will publish by itself.
        """
        table = fallback_message.c
        before = datetime.now(UTC) - timedelta(seconds=for_seconds)
        rows = await self._read(
            sa.select(table.status, table.topic, table.headers).where(
                table.status.in_([Status.PENDING.value, Status.FAILED.value]),
                table.created_at <= before,
            )
        )
        topics = {self._settings.order_paid_topic, self._settings.dlq_topic}
        event_ids = {_event_id(headers) for _, topic, headers in rows if topic in topics}
        return event_ids, sum(status == Status.PENDING for status, _, _ in rows)

    async def orders(self) -> list[str]:
        """Return the event id of every order there is."""
        return [event_id for (event_id,) in await self._read(sa.select(_orders.c.event_id))]

    async def _read(
        self, statement: sa.Select[*tuple[str, ...]]
    ) -> Sequence[sa.Row[*tuple[str, ...]]]:
        with translated():
            async with self._engine.connect() as connection:
                return (await connection.execute(statement)).all()

    async def close(self) -> None:
        """Close the database. May be called twice."""
        await self._engine.dispose()


def _event_id(headers: str | None) -> str:
    value = dict(headers_from_text(headers)).get(EVENT_ID_HEADER)
    return (value or b"a row without event-id").decode("utf-8", "replace")


@click.command()
@click.option("--rate", type=RATE, default=LIVE_RATE, show_default=True, help="Payments a second.")
def main(rate: float) -> None:
    """Pay orders at a steady rate, each with its event in an outbox, until SIGTERM or Ctrl-C.

    One in a hundred is not a valid event.
    """
    logging.basicConfig(level=logging.WARNING, format="[%(asctime)s] [%(levelname)s] %(message)s")

    async def sell() -> None:
        database = ShopDatabase(load_settings())
        now = int(time.time())
        orders = sample_orders(seed=now, first_order_id=now * _IDS_A_SECOND)
        try:
            async with database.publishing():
                async for _ in payments(orders, database.pay, rate=rate):
                    pass
        finally:
            await database.close()

    run_until_stopped(sell())


if __name__ == "__main__":
    run_command(main)
