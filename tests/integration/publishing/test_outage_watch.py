"""Brokers stop answering an order service with the default settings."""

import asyncio

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from order_relay.fallback.store import Status
from order_relay.publishing import OrderEvents, PendingPublish, Published, Saved, open_order_events
from order_relay.settings import Settings
from tests.support.embedded import EmbeddedKafka
from tests.support.publish_orders import Order, make_orders, statuses
from tests.support.publish_ways import paid, read_topic
from tests.support.waiting import eventually


async def commit(engine: AsyncEngine, events: OrderEvents, number: int) -> PendingPublish:
    """Commit an order whose event is published after the commit."""
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(number))
        return events.after_commit.publish(session, paid(number), event_id=f"order-{number}")


async def test_events_of_an_outage_are_saved_long_before_the_producer_gives_up(
    fragile: EmbeddedKafka, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events in flight when the outage begins, and later ones, are saved; replay publishes them."""
    # Two failed pings make an outage; shortened from 6 s each.
    monkeypatch.setattr("order_relay.publishing.publisher.PING_TIMEOUT_SECONDS", 1.0)
    topic = fragile.stage().topic
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]
        kafka_bootstrap_servers=fragile.bootstrap_servers,
        database_url=SecretStr(sqlite_url),
        order_paid_topic=topic,
    )
    well_before = settings.producer_delivery_timeout_ms / 1000 / 4
    engine = await make_orders(sqlite_url)
    async with open_order_events(settings) as events:
        assert isinstance(await (await commit(engine, events, 1)), Published)

        fragile.freeze()
        waiting = [await commit(engine, events, number) for number in (2, 3)]
        async with asyncio.timeout(well_before):
            outcomes = [await pending for pending in waiting]
            outcomes.append(await (await commit(engine, events, 4)))
        assert all(isinstance(outcome, Saved) for outcome in outcomes), outcomes
        assert await statuses(engine) == [Status.PENDING] * 3

        fragile.thaw()

        async def replayed() -> bool:
            await events.replay.run_once()
            return await statuses(engine) == [Status.PUBLISHED] * 3

        await eventually(replayed)
    await engine.dispose()
    records = await asyncio.to_thread(read_topic, fragile.bootstrap_servers, topic)
    # Events in flight when the outage began may be there twice: the client sends them, too.
    assert {record.event_id for record in records} == {f"order-{number}" for number in range(1, 5)}
