"""The sample order shop: its orders, its rate, and its retries at the database."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from itertools import islice

import pytest

from demo.shop import Order, payments, sample_orders
from order_relay.errors import DatabaseUnavailable, InvalidEvent
from order_relay.model.events import decode_order_paid

pytestmark = pytest.mark.virtual_time

NOON = datetime(2025, 12, 19, 12, 0, tzinfo=UTC)


def orders(seed: int, number: int) -> list[Order]:
    """The first orders of a seed."""
    return list(islice(sample_orders(seed, clock=lambda: NOON), number))


def test_the_same_seed_makes_the_same_orders() -> None:
    """Runs repeat, down to the event ids."""
    assert orders(3, 200) == orders(3, 200)
    assert orders(3, 200) != orders(4, 200)


def test_orders_are_events_and_a_few_are_broken() -> None:
    """All but one in a hundred are ORDER_PAID events, the rest not even JSON; ids are unique."""
    made = orders(1, 1000)
    broken = [order for order in made if order.broken]
    assert len(broken) == 10
    for order in broken:
        with pytest.raises(InvalidEvent, match="not JSON"):
            decode_order_paid(order.value)
    for order in made:
        if not order.broken:
            event = decode_order_paid(order.value)
            assert str(event.orderId).encode() == order.key
            assert event.paid_at() == NOON
    assert len({uuid.UUID(order.event_id) for order in made}) == 1000
    # Even a short run has one.
    assert any(order.broken for order in made[:50])


class Database:
    """Takes orders, after refusing a few."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.orders: list[tuple[float, Order]] = []

    async def pay(self, order: Order) -> None:
        """Refuse, or keep."""
        await asyncio.sleep(0)
        if self.refusals:
            self.refusals -= 1
            raise DatabaseUnavailable("not now")
        self.orders.append((asyncio.get_running_loop().time(), order))


async def test_pays_at_the_rate_and_ends_with_the_last_commit() -> None:
    """Ten orders at 5 a second take 1.8 s, and all of them are committed by then."""
    database = Database()
    paid = [one async for one in payments(sample_orders(1), database.pay, rate=5, number=10)]
    assert [round(at, 3) for at, _ in database.orders] == [round(n / 5, 3) for n in range(10)]
    assert [order for _, order in database.orders] == paid
    assert [order.event_id for order in paid] == [order.event_id for order in orders(1, 10)]


async def test_tries_until_the_order_is_committed() -> None:
    """A refused order is tried again a second later, and only then counts as paid."""
    database = Database(refusals=2)
    paid = [one async for one in payments(sample_orders(1), database.pay, rate=1, number=1)]
    assert [(at, order) for at, order in database.orders] == [(pytest.approx(2.0), *paid)]


async def test_nothing_is_paid_while_too_much_is_waiting() -> None:
    """The shop waits for room, and goes on when there is."""
    open_orders: list[Order] = []

    async def sell() -> None:
        async for order in payments(
            sample_orders(1),
            Database().pay,
            rate=10,
            number=5,
            may_pay=lambda: len(open_orders) < 3,
        ):
            open_orders.append(order)  # noqa: PERF401 - is looked at meanwhile

    selling = asyncio.create_task(sell())
    await asyncio.sleep(5)
    assert len(open_orders) == 3
    del open_orders[:2]
    await selling
    assert len(open_orders) == 3
