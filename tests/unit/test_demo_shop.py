"""The sample order shop: its orders, its pace, and its patience with the database."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime

import pytest
from confluent_kafka import Message

from demo.collector import Collector
from demo.command_line import Options
from demo.logger import LoggerScript
from demo.shop import Order, OrderGenerator, OrderShop
from order_relay.errors import DatabaseUnavailable, InvalidEvent, RelayError
from order_relay.model.events import decode_order_paid
from tests.support.virtual_time import virtual_time

NOON = datetime(2025, 12, 19, 12, 0, tzinfo=UTC)


def orders(seed: int, number: int) -> list[Order]:
    """The first orders of a seed."""
    generator = OrderGenerator(seed)
    return [generator.next_order(NOON) for _ in range(number)]


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
    # Even a short run meets one.
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


def a_collector() -> Collector:
    """A collector that was told nothing yet."""
    return Collector(Options(), LoggerScript(1))


def shop_with(database: Database, collector: Collector, rate: float) -> OrderShop:
    """A shop with this database."""
    return OrderShop(OrderGenerator(1), database, collector, rate=rate)


@virtual_time
async def test_pays_at_the_rate_and_ends_with_the_last_commit() -> None:
    """Ten orders at 5 a second take 1.8 s, and all of them are committed by then."""
    database, collector = Database(), a_collector()
    await shop_with(database, collector, rate=5).run(10)
    assert [round(at, 3) for at, _ in database.orders] == [round(n / 5, 3) for n in range(10)]
    assert collector.ledger.balance().paid == 10
    expected = [(order.event_id, order.key) for order in orders(1, 10)]
    assert [(order.event_id, order.key) for _, order in database.orders] == expected


@virtual_time
async def test_tries_until_the_order_is_committed() -> None:
    """A refusal is counted and the same order is tried again a second later."""
    database, collector = Database(refusals=2), a_collector()
    await shop_with(database, collector, rate=1).run(1)
    balance = collector.ledger.balance()
    assert (balance.paid, balance.refusals) == (1, 2)
    assert database.orders[0][0] == pytest.approx(2.0)
    assert "not now" in collector.refusal


@virtual_time
async def test_closing_ends_it_once_all_is_committed() -> None:
    """After closing nobody pays any more; orders that the database refuses are still tried."""
    database, collector = Database(), a_collector()
    shop = shop_with(database, collector, rate=10)
    selling = asyncio.create_task(shop.run(None))
    await asyncio.sleep(1.05)
    database.refusals = 1
    await asyncio.sleep(0.1)
    shop.close()
    await selling
    balance = collector.ledger.balance()
    assert (balance.paid, balance.refusals) == (12, 1)


@virtual_time
async def test_nobody_pays_while_too_much_is_waiting() -> None:
    """The shop waits for room, and goes on when there is."""
    collector = a_collector()
    shop = OrderShop(
        OrderGenerator(1),
        Database(),
        collector,
        rate=10,
        may_pay=lambda: collector.ledger.balance().open < 3,
    )
    selling = asyncio.create_task(shop.run(5))
    await asyncio.sleep(5)
    assert collector.ledger.balance().paid == 3
    for order in orders(1, 3):
        collector.logged(order.event_id)
    await selling
    assert collector.ledger.balance().paid == 5


def test_collector_keep_the_time_from_payment_to_the_first_answer() -> None:
    """A duplicate does not change an order's delivery time; a dead letter has none."""
    now = 10.0
    collector = Collector(Options(), LoggerScript(1), clock=lambda: now)
    first, second = orders(1, 2)
    collector.paid(first)
    collector.paid(second)
    error: RelayError = DatabaseUnavailable("no")
    collector.refused(first, error)
    now = 12.5
    collector.logged(first.event_id)
    now = 20.0
    collector.logged(first.event_id)
    headers = [("event-id", second.event_id.encode()), ("dlq-reason", b"rejected")]
    collector.dead_lettered(Message(topic="orders.DLQ", headers=[*headers]))
    times = collector.times.percentiles()
    assert times == [2.5, 2.5, 2.5]
