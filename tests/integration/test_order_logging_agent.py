"""The agent, run by Faust's own test context in an application of the test's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import agents
import tables
from app.delivery.record import Record
from app.main import RelayApp, create_app
from app.settings import load_settings
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


class Claims:
    """The consumer's part: grants every record but those it is told not to."""

    def __init__(self) -> None:
        self.refused: set[int] = set()
        self.asked: list[int] = []

    def claim(self, record: Record) -> bool:
        """Grant it or not."""
        self.asked.append(record.offset)
        return record.offset not in self.refused


class TakingRelay:
    """The relay's part: takes records while it has room."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self.taken: list[Record] = []

    async def take(self, record: Record) -> bool:
        """Take it, once there is room."""
        await self.room.wait()
        self.taken.append(record)
        return True


@pytest.fixture
async def relay_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RelayApp]:
    """A fresh app in the running loop, with its agents and fakes behind them."""
    monkeypatch.chdir(tmp_path)
    # The loop runs already: it is too late to choose uvloop for it.
    monkeypatch.setattr("mode.loop.use", lambda loop: None)
    app = create_app(load_settings(kafka_declare_topics=False))
    tables.register(app)
    agents.register(app)
    app.finalize()
    # The table as it is once it has been read; how it is waited for is DeliveryBook's business.
    monkeypatch.setattr(app, "deliveries", None)
    # Faust looks into its consumer, so the fake stands only where the relay asks.
    monkeypatch.setattr(RelayApp, "_relay_consumer", Claims())
    monkeypatch.setattr(app, "relay", TakingRelay())
    yield app
    consumer: Any = app._consumer
    if consumer is not None:  # a stream made Faust make one; its thread never ran
        consumer._thread.thread_loop.close()


def _batch(*offsets: int) -> list[Record]:
    return [Record("order-paid-events", 0, offset, 1, b"k", b"{}") for offset in offsets]


def _agent(app: RelayApp) -> Any:
    (agent,) = app.agents.values()
    return agent


async def test_every_record_of_every_batch_is_taken_in_order(relay_app: RelayApp) -> None:
    """Batches are taken in record by record, in offset order, each exactly once."""
    relay: Any = relay_app.relay
    async with _agent(relay_app).test_context() as agent:
        for first in range(0, 30, 3):
            await agent.put(_batch(first, first + 1, first + 2), wait=False)
        await eventually(lambda: len(relay.taken) == 30, 5, "all records are taken")
    assert [record.offset for record in relay.taken] == list(range(30))


async def test_a_record_that_is_not_granted_is_not_taken(relay_app: RelayApp) -> None:
    """Second copies and records of an older generation go no further."""
    claims: Any = relay_app._relay_consumer
    relay: Any = relay_app.relay
    claims.refused = {1, 3}
    async with _agent(relay_app).test_context() as agent:
        await agent.put(_batch(0, 1, 2, 3, 4), wait=False)
        await eventually(lambda: len(relay.taken) == 3, 5, "the granted records are taken")
    assert claims.asked == [0, 1, 2, 3, 4]
    assert [record.offset for record in relay.taken] == [0, 2, 4]


async def test_without_room_nothing_more_is_claimed(relay_app: RelayApp) -> None:
    """Back-pressure: while the relay has no room the agent holds one record, no more."""
    claims: Any = relay_app._relay_consumer
    relay: Any = relay_app.relay
    relay.room.clear()
    async with _agent(relay_app).test_context() as agent:
        await agent.put(_batch(0, 1, 2), wait=False)
        await agent.put(_batch(3), wait=False)
        await eventually(lambda: claims.asked, 5, "the first record is claimed")
        for _ in range(20):
            await asyncio.sleep(0)
        assert claims.asked == [0]
        relay.room.set()
        await eventually(lambda: len(relay.taken) == 4, 5, "all records are taken")


async def test_agents_and_tables_are_ours_and_registered(relay_app: RelayApp) -> None:
    """The names ``agents`` and ``tables`` mean our packages; the app has what they register."""
    for package in (agents, tables):
        assert package.__file__ is not None
        assert Path(package.__file__).parent.parent == ROOT
    assert [agent.fun.__module__ for agent in relay_app.agents.values()] == ["agents.order_logging"]
    assert [name.rpartition(".")[2] for name in relay_app.agents] == ["order_logging"]
    assert list(relay_app.tables) == ["deliveries"]
