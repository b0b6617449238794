"""The agent, run by Faust's own test context in an application of the test's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from order_relay.model.record import Record
from order_relay.settings import load_settings
from order_relay.worker.consumer_runtime import ConsumerRuntime
from tests.support.runtimes import runtime
from tests.support.waiting import eventually


class Claims:
    """A fake reader: grants every record except those in ``refused``."""

    def __init__(self) -> None:
        self.refused: set[int] = set()
        self.asked: list[int] = []

    def claim(self, record: Record) -> bool:
        """Whether to grant it."""
        self.asked.append(record.offset)
        return record.offset not in self.refused


class TakingRelay:
    """A fake dispatcher: takes records while it has room."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self.taken: list[Record] = []

    async def submit(self, record: Record) -> bool:
        """Take it once there is room."""
        await self.room.wait()
        self.taken.append(record)
        return True


@pytest.fixture
async def consumer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ConsumerRuntime]:
    """A fresh consumer in the running loop, with fakes behind its agent."""
    monkeypatch.chdir(tmp_path)
    with runtime(load_settings(kafka_declare_topics=False, deliveries_store="off")) as made:
        made.app.finalize()
        monkeypatch.setattr(made, "_reader", Claims())
        monkeypatch.setattr(made, "dispatcher", TakingRelay())
        yield made


def _batch(*offsets: int) -> list[Record]:
    return [Record("order-paid-events", 0, offset, 1, b"k", b"{}") for offset in offsets]


def _agent(consumer: ConsumerRuntime) -> Any:
    (agent,) = consumer.app.agents.values()
    return agent


async def test_what_is_granted_of_every_batch_is_taken_in_order(consumer: ConsumerRuntime) -> None:
    """Granted records are taken one by one, each once; refused ones are not."""
    claims: Any = consumer._reader
    dispatcher: Any = consumer.dispatcher
    claims.refused = {1, 3, 17}
    async with _agent(consumer).test_context() as agent:
        for first in range(0, 30, 3):
            await agent.put(_batch(first, first + 1, first + 2), wait=False)
        await eventually(lambda: len(dispatcher.taken) == 27, 5, "the granted records are taken")
    assert claims.asked == list(range(30))
    assert [one.offset for one in dispatcher.taken] == sorted(set(range(30)) - claims.refused)


async def test_without_room_nothing_more_is_claimed(consumer: ConsumerRuntime) -> None:
    """Back-pressure: without room in the relay, the agent claims only one record."""
    claims: Any = consumer._reader
    dispatcher: Any = consumer.dispatcher
    dispatcher.room.clear()
    async with _agent(consumer).test_context() as agent:
        await agent.put(_batch(0, 1, 2), wait=False)
        await agent.put(_batch(3), wait=False)
        await eventually(lambda: claims.asked, 5, "the first record is claimed")
        for _ in range(20):
            await asyncio.sleep(0)
        assert claims.asked == [0]
        dispatcher.room.set()
        await eventually(lambda: len(dispatcher.taken) == 4, 5, "all records are taken")
