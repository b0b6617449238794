"""The sample order shop: takes payments, each committed with the ORDER_PAID event about it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from order_relay.errors import RelayError

# One message in so many is not an event at all, as a careless producer would write it.
BROKEN_EVERY = 100
FIRST_ORDER_ID = 100_001
RETRY_SECONDS = 1.0
# More payments than this at a time would only wait for the database.
MAX_PAYING = 100


@dataclass(frozen=True, slots=True)
class Order:
    """A paid order and the message about it."""

    event_id: str
    order_id: int
    paid_at: datetime
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
        """Make the next order.

        Args:
            paid_at: With a zone, so that whoever measures the way of an event can.
        """
        if self._made % BROKEN_EVERY == 0:
            self._broken_at = self._made + self._random.randrange(BROKEN_EVERY // 2)
        broken = self._made == self._broken_at
        order_id = self._first_order_id + self._made
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
        if broken:
            value = value[: len(value) // 2]
        return Order(str(event_id), order_id, paid_at, value, broken)


class PaymentGateway(Protocol):
    """Takes payments down; see ``ShopDatabase``."""

    async def pay(self, order: Order) -> None:
        """Commit the order and its event in one transaction; publishing it is not waited for.

        Raises:
            RelayError: Nothing was committed.
        """


class ShopObserver(Protocol):
    """Hears what happens in the shop. Must neither block nor raise."""

    def paid(self, order: Order) -> None:
        """The order is committed, and its event with it."""

    def refused(self, order: Order, error: RelayError) -> None:
        """The order was not committed; it will be tried again."""


class OrderShop:
    """Takes payments at a steady rate; each is tried until it is committed."""

    def __init__(
        self,
        book: OrderGenerator,
        till: PaymentGateway,
        keeper: ShopObserver,
        *,
        rate: float,
        may_pay: Callable[[], bool] = lambda: True,
    ) -> None:
        """Set the shop up.

        Args:
            book: Where the orders come from.
            till: Where the payments go.
            keeper: Hears of payments and refusals.
            rate: Payments a second.
            may_pay: While it says no, nobody pays.
        """
        self._book = book
        self._till = till
        self._keeper = keeper
        self._rate = rate
        self._may_pay = may_pay
        self._places = asyncio.Semaphore(MAX_PAYING)
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
                if await self._closed_within(due - now()):
                    return
                # Time that was lost is not made up for with a rush.
                due = max(due + 1 / self._rate, now() - 1)
                if not self._may_pay():
                    continue
                await self._places.acquire()
                order = self._book.next_order(datetime.now(UTC))
                made += 1
                paying.create_task(self._pay(order))

    async def _closed_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._closed.wait(), max(0.0, seconds))
        except TimeoutError:
            return False
        return True

    async def _pay(self, order: Order) -> None:
        try:
            while True:
                try:
                    await self._till.pay(order)
                except RelayError as error:
                    self._keeper.refused(order, error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    self._keeper.paid(order)
                    return
        finally:
            self._places.release()
