"""What the consumer's thread does in which order; Kafka's client is made by hand."""

import asyncio
from typing import Any, cast

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from app.delivery.progress import Commit
from app.transport.thread import RelayConsumerThread

PARTITION = TopicPartition("order-paid-events", 0)


class Client:
    """A Kafka client with one assigned partition."""

    def __init__(self, committed: OffsetAndMetadata | None) -> None:
        self.committed = committed
        self.sought: list[int | str] = []
        self._coordinator = self._subscription = self
        self.subscription = None

    def assignment(self) -> set[TopicPartition]:
        """One partition."""
        return {PARTITION}

    async def fetch_committed_offsets(self, partitions: list[TopicPartition]) -> dict[Any, Any]:
        """What the group committed."""
        return {} if self.committed is None else dict.fromkeys(partitions, self.committed)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Note where to."""
        self.sought.append(offset)

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Note it."""
        self.sought.append("beginning")


def thread_of(client: Client, monkeypatch: pytest.MonkeyPatch) -> RelayConsumerThread:
    """A thread that was never started, with this client."""
    thread = RelayConsumerThread.__new__(RelayConsumerThread)
    thread._reading = asyncio.Lock()
    monkeypatch.setattr(thread, "_ensure_consumer", lambda: client)
    return thread


async def test_a_seek_waits_until_no_fetch_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that ends after the seek would skip what it read: its records are dropped."""
    client = Client(OffsetAndMetadata(7, "relay2:7:3:0"))
    thread = thread_of(client, monkeypatch)
    waits, ends = asyncio.Event(), asyncio.Event()

    async def fetch(*args: object, **kwargs: object) -> dict[Any, Any]:
        waits.set()
        await ends.wait()
        assert client.sought == [], "the seek came while a fetch was under way"
        return {}

    monkeypatch.setattr(AIOKafkaConsumerThread, "_fetch_records", fetch)
    fetching = asyncio.create_task(thread._fetch_records(cast(Any, client), set()))
    await waits.wait()
    seeking = asyncio.create_task(thread._seek_to_committed_or_beginning())
    for _ in range(10):
        await asyncio.sleep(0)
    ends.set()

    await fetching
    assert await seeking == {TP("order-paid-events", 0): Commit(7, "relay2:7:3:0")}
    assert client.sought == [7]


@pytest.mark.parametrize(
    ("committed", "sought"), [(None, "beginning"), (OffsetAndMetadata(0, ""), 0)]
)
async def test_every_partition_is_sought(
    committed: OffsetAndMetadata | None, sought: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing, or offset 0, is committed: records may have been fetched and dropped."""
    client = Client(committed)

    await thread_of(client, monkeypatch)._seek_to_committed_or_beginning()

    assert client.sought == [sought]


async def test_a_fetch_that_fails_takes_nothing_from_other_partitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kafka's client may have taken records out before it came to one that cannot be read."""
    client = Client(None)
    thread = thread_of(client, monkeypatch)
    positions = {TP("order-paid-events", 0): 7, TP("order-paid-events", 1): 3}
    monkeypatch.setattr(thread, "positions", lambda: dict(positions))

    async def fetch(*args: object, **kwargs: object) -> dict[Any, Any]:
        positions[TP("order-paid-events", 0)] = 17
        raise CorruptRecordException

    monkeypatch.setattr(AIOKafkaConsumerThread, "_fetch_records", fetch)
    with pytest.raises(CorruptRecordException):
        await thread._fetch_records(cast(Any, client), set())

    assert client.sought == [7]
