"""All brokers go away while orders are paid in each way: none is lost, repeats keep their id."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import aiohttp
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from order_relay.fallback.replay import Replay
from order_relay.fallback.store import RowFilter, Status
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from order_relay.publishing.after_commit import PendingPublish
from order_relay.publishing.order_events import OrderEvents, open_order_events
from order_relay.publishing.publisher import Published, Saved
from order_relay.settings import Settings
from tests.support.embedded import EmbeddedKafka
from tests.support.publish_orders import Order, make_orders, order_ids, statuses
from tests.support.publish_ways import body, paid, publish_settings, read_topic, serving

ORDERS = 300
# When the brokers go, and when they come back.
DOWN_AT, UP_AT = 75, 225
BUYERS = 50
# Short, so that the outage outlasts them.
TIMEOUTS = {
    "producer_delivery_timeout_ms": 800,
    "producer_request_timeout_ms": 400,
    "producer_retry_backoff_ms": 50,
}

Pay: TypeAlias = Callable[[int], Awaitable[None]]


@contextlib.asynccontextmanager
async def over_http(events: OrderEvents, engine: AsyncEngine) -> AsyncIterator[Pay]:
    """An order is paid when the answer says that its event is durable."""
    async with serving(events.publisher) as url, aiohttp.ClientSession() as http:

        async def pay(number: int) -> None:
            async with AsyncSession(engine) as session, session.begin():
                session.add(Order(number))
            headers = {"Content-Type": "application/json", "event-id": f"order-{number}"}
            async with http.post(f"{url}/order-paid", data=body(number), headers=headers) as answer:
                assert answer.status == 202, await answer.text()

        yield pay


@contextlib.asynccontextmanager
async def after_commit(events: OrderEvents, engine: AsyncEngine) -> AsyncIterator[Pay]:
    """An order is paid when it is committed; each event then ends in Kafka or in the table."""
    pending: list[PendingPublish] = []

    async def pay(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(number))
            event_id = f"order-{number}"
            one = events.after_commit.publish(session, paid(number), event_id=event_id)
        pending.append(one)
        if number % 3 == 0:  # some services wait for it
            await one

    yield pay
    for one in pending:
        assert isinstance(await one, Published | Saved)


@contextlib.asynccontextmanager
async def outbox(events: OrderEvents, engine: AsyncEngine) -> AsyncIterator[Pay]:
    """An order is paid when it is committed, with its event's row."""

    async def pay(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            session.add(Order(number))
            events.outbox.add(session, paid(number), event_id=f"order-{number}")
        if number % 3 == 0:
            await asyncio.sleep(0.02)

    yield pay


async def pay_all(pay: Pay, kafka: EmbeddedKafka) -> None:
    """Pay the orders, and let the brokers go and come back meanwhile."""
    numbers = iter(range(1, ORDERS + 1))

    async def buyer() -> None:
        for number in numbers:
            if number == DOWN_AT:
                kafka.down()
            if number == UP_AT:
                kafka.up()
            await pay(number)

    await asyncio.gather(*(buyer() for _ in range(BUYERS)))


async def sweep_until_done(settings: Settings, url: str) -> None:
    """Replay what is left, by a clock by which it is due."""
    store = FallbackTable(url, clock=lambda: datetime.now(UTC) + timedelta(hours=1))
    producer = KafkaProducer(settings)
    await producer.start()
    await Replay(store, producer).run_once()
    await producer.stop()
    assert await store.count(RowFilter(status=Status.PENDING)) == 0
    assert await store.count(RowFilter(status=Status.FAILED)) == 0
    await store.close()


@pytest.mark.parametrize("way", [over_http, after_commit, outbox])
async def test_nothing_is_lost_in_an_outage(
    fragile: EmbeddedKafka,
    sqlite_url: str,
    way: Callable[..., contextlib.AbstractAsyncContextManager[Pay]],
) -> None:
    """Every paid order is in Kafka in the end, and every event there is of a paid order."""
    topic = fragile.stage().topic
    settings = publish_settings(
        fragile.bootstrap_servers, sqlite_url, order_paid_topic=topic, **TIMEOUTS
    )
    engine = await make_orders(sqlite_url)
    async with open_order_events(settings) as events, way(events, engine) as pay:
        await pay_all(pay, fragile)
    assert await statuses(engine), "the outage was too short to refuse anything"
    # The default time-outs: now it shall work.
    await sweep_until_done(
        publish_settings(fragile.bootstrap_servers, sqlite_url, order_paid_topic=topic), sqlite_url
    )
    assert await order_ids(engine) == list(range(1, ORDERS + 1))
    await engine.dispose()
    records = await asyncio.to_thread(read_topic, fragile.bootstrap_servers, topic)
    orders = [json.loads(record.value or b"")["orderId"] for record in records]
    assert set(orders) == set(range(1, ORDERS + 1))
    for number, record in zip(orders, records, strict=True):
        assert (record.event_id, record.value) == (f"order-{number}", body(number))
