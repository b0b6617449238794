"""The sample order shop: each payment is committed with the ORDER_PAID event about it.

``python -m demo.shop`` runs it by itself, until SIGTERM or Ctrl-C, with the worker's settings of
Kafka and of the database. What it cannot publish, a worker's replay publishes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from demo.command_line import LIVE_RATE, RATE, CannotRun, OneLineParser, serve
from order_relay.errors import DatabaseUnavailable, InvalidDatabaseUrl, RelayError
from order_relay.fallback.replay import Replay
from order_relay.fallback.sql.engine import translated
from order_relay.fallback.sql.migrate import migrate
from order_relay.fallback.sql.schema import fallback_message, headers_from_text, insert_values
from order_relay.fallback.sql.store import SqlFallbackStore
from order_relay.fallback.store import NewMessage, Status
from order_relay.kafka.producer import KafkaProducer
from order_relay.model.headers import EVENT_ID_HEADER
from order_relay.publishing.outbox import Outbox
from order_relay.settings import Settings, load_settings

logger = logging.getLogger(__name__)

# One message in so many is not valid JSON, as a careless producer would write it.
BROKEN_EVERY = 100
FIRST_ORDER_ID = 100_001
RETRY_SECONDS = 1.0
# More payments than this at a time would only wait for the database.
MAX_PAYING = 100
# A shop that starts again must not sell the orders of an earlier one again.
_IDS_A_SECOND = 1000
_LAST_PAYMENTS_SECONDS = 3.0

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


class OrderGenerator:
    """Makes up orders; the same seed makes the same ones."""

    def __init__(self, seed: int, first_order_id: int = FIRST_ORDER_ID) -> None:
        self._random = random.Random(f"{seed}:orders")  # noqa: S311 - sample data
        self._first_order_id = first_order_id
        self._made = 0
        self._broken_at = 0

    def next_order(self, paid_at: datetime) -> Order:
        """Make the next order, paid at a time with a zone."""
        if self._made % BROKEN_EVERY == 0:
            self._broken_at = self._made + self._random.randrange(BROKEN_EVERY // 2)
        broken = self._made == self._broken_at
        order_id = self._first_order_id + self._made
        self._made += 1
        draw = self._random.randint
        items = [
            {"productId": draw(1, 500), "orderQuantity": draw(1, 4)} for _ in range(draw(1, 3))
        ]
        time_paid = paid_at.isoformat(timespec="milliseconds")
        value = msgspec.json.encode(
            {
                "eventType": "ORDER_PAID",
                "orderId": order_id,
                "userId": draw(1, 9_999),
                "paidAt": time_paid,
                "orderItems": items,
            }
        )
        event_id = uuid.UUID(int=self._random.getrandbits(128), version=4)
        if broken:
            value = value[: len(value) // 2]
        return Order(str(event_id), order_id, time_paid, value, broken)


class PaymentGateway(Protocol):
    """Commits payments; see ``ShopDatabase``."""

    async def pay(self, order: Order) -> None:
        """Commit the order and its event in one transaction. This does not wait for Kafka.

        Raises:
            RelayError: Nothing was committed.
        """


class ShopObserver(Protocol):
    """Is told what happens in the shop. Must neither block nor raise."""

    def paid(self, order: Order) -> None:
        """The order is committed, and its event with it."""

    def refused(self, order: Order, error: RelayError) -> None:
        """The order was not committed; the shop tries it again."""


class OrderShop:
    """Takes payments at a steady rate; each is tried until it is committed."""

    def __init__(
        self,
        orders: OrderGenerator,
        gateway: PaymentGateway,
        observer: ShopObserver | None = None,
        *,
        rate: float,
        may_pay: Callable[[], bool] = lambda: True,
    ) -> None:
        """Set the shop up for ``rate`` payments a second; none while ``may_pay`` says ``False``."""
        self._orders = orders
        self._gateway = gateway
        self._observer = observer
        self._rate = rate
        self._may_pay = may_pay
        self._slots = asyncio.Semaphore(MAX_PAYING)
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Take no more payments; ``run`` returns when all are committed."""
        self._closed.set()

    async def run(self, orders: int | None) -> None:
        """Take payments until there are ``orders`` of them, all committed.

        ``None`` goes on until ``close``. Cancelling it leaves open whether the last ones are.
        """
        now = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as paying:
            due = now()
            made = 0
            while orders is None or made < orders:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), max(0.0, due - now()))
                    return
                # Time that was lost is not made up for with a rush.
                due = max(due + 1 / self._rate, now() - 1)
                if self._may_pay():
                    await self._slots.acquire()
                    order = self._orders.next_order(datetime.now(UTC))
                    made += 1
                    paying.create_task(self._pay(order))

    async def _pay(self, order: Order) -> None:
        try:
            while True:
                try:
                    await self._gateway.pay(order)
                except RelayError as error:
                    logger.warning("Payment refused, tried again: %s", error)
                    if self._observer is not None:
                        self._observer.refused(order, error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    if self._observer is not None:
                        self._observer.paid(order)
                    return
        finally:
            self._slots.release()


class ShopDatabase:
    """The shop's orders, and beside them the outbox that the worker's replay reads.

    The shop publishes its rows itself, right after their commit. What it cannot publish it leaves
    to the worker's replay: it makes no sweeps of its own.
    """

    def __init__(self, settings: Settings, producer: KafkaProducer) -> None:
        """Prepare; nothing is opened. ``producer`` is the caller's, stopped after ``close``.

        Must be called in the running loop.

        Raises:
            CannotRun: This Python's SQLite is too old, or the URL cannot be used.
        """
        self._url = settings.database_url.get_secret_value()
        self._topic = settings.order_paid_topic
        self._topics = {settings.order_paid_topic, settings.dlq_topic}
        try:
            self._store = SqlFallbackStore.connect(self._url)
        except InvalidDatabaseUrl as error:
            raise CannotRun(f"the shop's database cannot be used: {error}") from error
        backoff = settings.fallback_backoff_base_seconds
        self._replay = Replay(self._store, producer, backoff_base_seconds=backoff)
        self._outbox = Outbox(
            self._topic, replay=self._replay, max_retry=settings.fallback_max_retry
        )
        # SQLite has one writer; waiting here is fairer than its busy loop.
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Make the tables.

        Raises:
            CannotRun: They cannot be made.
        """
        try:
            await migrate(self._url)
            with translated():
                async with self._store.engine.begin() as connection:
                    await connection.run_sync(_metadata.create_all)
        except DatabaseUnavailable as error:
            raise CannotRun(f"the shop's database cannot be made: {error}") from error

    async def pay(self, order: Order) -> None:
        """Commit the order, and its event with it. See ``PaymentGateway.pay``."""
        row = {"id": order.order_id, "event_id": order.event_id, "paid_at": order.paid_at}
        async with self._one_at_a_time:
            with translated():
                async with AsyncSession(self._store.engine) as session, session.begin():
                    await session.execute(sa.insert(_orders).values(row))
                    if not order.broken:
                        self._outbox.add(session, order.value, event_id=order.event_id)
                        return
                    # As a program without our helper would write it; replay finds the row.
                    header = (EVENT_ID_HEADER, order.event_id.encode())
                    message = NewMessage(self._topic, order.key, order.value, (header,))
                    values = insert_values(message)
                    await session.execute(sa.insert(fallback_message).values(values))

    async def waiting(self, for_seconds: float = 0.0) -> tuple[set[str], int]:
        """Return the events that have waited in the table for so long, or longer.

        Dead letters of order_logging are among them. The number counts the rows, of whatever topic,
        that replay will publish by itself.

        Raises:
            DatabaseUnavailable: The database did not answer.
        """
        table = fallback_message.c
        before = datetime.now(UTC) - timedelta(seconds=for_seconds)
        rows = await self._read(
            sa.select(table.status, table.topic, table.headers).where(
                table.status.in_([Status.PENDING.value, Status.FAILED.value]),
                table.created_at <= before,
            )
        )
        event_ids = {_event_id(headers) for _, topic, headers in rows if topic in self._topics}
        return event_ids, sum(status == Status.PENDING for status, _, _ in rows)

    async def orders(self) -> list[str]:
        """Return the event id of every order there is.

        Raises:
            DatabaseUnavailable: The database did not answer.
        """
        return [event_id for (event_id,) in await self._read(sa.select(_orders.c.event_id))]

    async def _read(
        self, statement: sa.Select[*tuple[str, ...]]
    ) -> Sequence[sa.Row[*tuple[str, ...]]]:
        with translated():
            async with self._store.engine.connect() as connection:
                return (await connection.execute(statement)).all()

    async def settle(self, grace_seconds: float = 3.0) -> None:
        """Publish what was committed so far, for ``grace_seconds`` at most, and then no more."""
        await self._outbox.close(grace_seconds)
        await self._replay.stop(grace_seconds)

    async def close(self) -> None:
        """Close the database. May be called twice, and without ``open``."""
        await self.settle(0.0)
        await self._store.close()


def _event_id(headers: str | None) -> str:
    value = dict(headers_from_text(headers)).get(EVENT_ID_HEADER)
    return (value or b"a row without event-id").decode("utf-8", "replace")


def main(arguments: Sequence[str]) -> int:
    """Sell until SIGTERM or Ctrl-C; returns the exit status."""
    parser = OneLineParser(
        prog="python -m demo.shop",
        description="A sample order shop: pays orders at a steady rate, each with its event in an "
        "outbox; one in a hundred is not a valid event.",
    )
    text = f"payments a second (default {LIVE_RATE:g})"
    parser.add_argument("--rate", type=RATE, default=LIVE_RATE, metavar="R", help=text)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="[%(asctime)s] [%(levelname)s] %(message)s")

    async def sell(stopping: asyncio.Event) -> None:
        settings = load_settings()
        producer = KafkaProducer(settings)
        await producer.start()
        database = ShopDatabase(settings, producer)
        try:
            await database.open()
            now = int(time.time())
            orders = OrderGenerator(seed=now, first_order_id=now * _IDS_A_SECOND)
            shop = OrderShop(orders, database, rate=given.rate)
            selling = asyncio.create_task(shop.run(None))
            ending = asyncio.create_task(stopping.wait())
            await asyncio.wait({selling, ending}, return_when=asyncio.FIRST_COMPLETED)
            shop.close()
            ending.cancel()
            with suppress(TimeoutError):  # payments that the database refuses are given up
                await asyncio.wait_for(selling, _LAST_PAYMENTS_SECONDS)
            await database.settle()
        finally:
            await database.close()
            await producer.stop()

    return serve(sell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
