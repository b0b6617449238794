"""The sample order shop: takes payments and publishes an ORDER_PAID event for each."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from app.errors import RelayError
from app.publishing.producer import Acknowledged, Headers

EVENT_ID_HEADER = "event-id"
# One message in so many is not an event at all, as a careless producer would write it.
BROKEN_EVERY = 100
FIRST_ORDER_ID = 100_001
RETRY_SECONDS = 1.0
# More publishes than this at a time would only wait in the client's queue.
MAX_PUBLISHING = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """A paid order and the message about it."""

    event_id: str
    order_id: int
    value: bytes
    broken: bool

    @property
    def key(self) -> bytes:
        """The record's key: the order id as text."""
        return str(self.order_id).encode()


class OrderBook:
    """Makes up orders; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"{seed}:orders")  # noqa: S311 - sample data
        self._made = 0
        self._broken_at = 0

    def next_order(self, paid_at: datetime) -> Order:
        """Make the next order.

        Args:
            paid_at: With a zone, so that whoever measures the way of an event can.
        """
        if self._made % BROKEN_EVERY == 0:
            self._broken_at = self._made + self._random.randrange(BROKEN_EVERY // 2)
        broken = self._made == self._broken_at
        order_id = FIRST_ORDER_ID + self._made
        self._made += 1
        items = [
            {
                "productId": self._random.randint(1, 500),
                "orderQuantity": self._random.randint(1, 4),
            }
            for _ in range(self._random.randint(1, 3))
        ]
        value = msgspec.json.encode(
            {
                "eventType": "ORDER_PAID",
                "orderId": order_id,
                "userId": self._random.randint(1, 9_999),
                "paidAt": paid_at.isoformat(timespec="milliseconds"),
                "orderItems": items,
            }
        )
        event_id = uuid.UUID(int=self._random.getrandbits(128), version=4)
        return Order(str(event_id), order_id, value[: len(value) // 2] if broken else value, broken)


class Publisher(Protocol):
    """Puts records into Kafka; see ``app.publishing.producer.KafkaProducer``."""

    async def send(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> Acknowledged:
        """Publish one record and wait for the acknowledgement.

        Raises:
            RelayError: Kafka did not acknowledge it.
        """


class ShopKeeper(Protocol):
    """Hears what happens in the shop. Must neither block nor raise."""

    def paid(self, order: Order) -> None:
        """A payment was taken."""

    def refused(self, order: Order, error: RelayError) -> None:
        """Kafka did not acknowledge the event; it will be published again."""

    def published(self, order: Order) -> None:
        """Kafka acknowledged the event."""


class OrderShop:
    """Takes payments at a steady rate; each event is published until Kafka acknowledges it."""

    def __init__(
        self,
        book: OrderBook,
        publisher: Publisher,
        topic: str,
        keeper: ShopKeeper,
        *,
        rate: float,
        may_pay: Callable[[], bool] = lambda: True,
    ) -> None:
        """Set the shop up.

        Args:
            book: Where the orders come from.
            publisher: Where the events go.
            topic: The topic of ORDER_PAID events.
            keeper: Hears of payments, refusals and acknowledgements.
            rate: Payments a second.
            may_pay: While it says no, nobody pays.
        """
        self._book = book
        self._publisher = publisher
        self._topic = topic
        self._keeper = keeper
        self._rate = rate
        self._may_pay = may_pay
        self._places = asyncio.Semaphore(MAX_PUBLISHING)
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Take no more payments; ``run`` returns when all events are acknowledged."""
        self._closed.set()

    async def run(self, orders: int | None) -> None:
        """Take payments until there are ``orders`` of them, all acknowledged by Kafka.

        ``None`` goes on until ``close``. Cancelling it leaves the events that are being published
        unacknowledged.
        """
        now = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as publishing:
            due = now()
            made = 0
            while orders is None or made < orders:
                if await self._closed_within(due - now()):
                    return
                # Time that was lost is not made up for with a rush.
                due = max(due + 1 / self._rate, now() - 1)
                if not self._may_pay():
                    continue
                await self._places.acquire()
                order = self._book.next_order(datetime.now(UTC))
                made += 1
                self._keeper.paid(order)
                publishing.create_task(self._publish(order))

    async def _closed_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closed.wait(), max(0.0, seconds))
        except TimeoutError:
            return False
        return True

    async def _publish(self, order: Order) -> None:
        headers = [(EVENT_ID_HEADER, order.event_id.encode())]
        try:
            while True:
                try:
                    await self._publisher.send(
                        self._topic, key=order.key, value=order.value, headers=headers
                    )
                except RelayError as error:
                    self._keeper.refused(order, error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    self._keeper.published(order)
                    return
        finally:
            self._places.release()
