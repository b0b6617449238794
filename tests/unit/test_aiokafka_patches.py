"""What is patched in aiokafka: connections that are closed or refused, brokers, header names."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import BrokerMetadata

from order_relay.kafka.consumer import aiokafka_patches
from order_relay.kafka.consumer.aiokafka_patches import Batches, read_any_header_name
from tests.support.fakes import StandingClock
from tests.support.odd_records import OddName, batch_of

pytestmark = pytest.mark.virtual_time

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
OLD, NEW = BrokerMetadata(1, "old", 9092, None), BrokerMetadata(1, "new", 9092, None)


async def closed_under_way() -> None:
    """Send on a connection that was closed and does not know it yet."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        connection = AIOKafkaConnection(host, port)
        connection._reader, connection._writer = await asyncio.open_connection(host, port)
        connection._read_task = connection._create_reader_task()
        connection._versions = {3: (0, 5)}
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # uvloop's transport is closed in its next turn
        with pytest.raises(KafkaConnectionError, match="closed"):
            await aiokafka_patches.send(connection, MetadataRequest([]))
        assert not connection.connected()


def test_it_is_a_broken_connection() -> None:
    """The tasks of Kafka's client handle that error: any other ends them."""
    uvloop.run(closed_under_way())


async def test_a_broker_that_refuses_is_tried_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After 50 ms, 100 ms and so on, up to a second; after a success, at once."""
    clock = StandingClock()
    refused: list[float] = []
    up = False

    async def create_conn(host: str, port: int, **options: object) -> str:
        if up:
            return "connected"
        refused.append(clock.now)
        raise ConnectionRefusedError("refused")

    async def tries(seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            with pytest.raises((KafkaConnectionError, ConnectionRefusedError), match="refused"):
                await aiokafka_patches.connect("broker", 9092)
            clock.now += 0.01

    monkeypatch.setattr(aiokafka_patches, "create_conn", create_conn)
    monkeypatch.setattr(aiokafka_patches, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(aiokafka_patches, "_failures", {})
    await tries(10.0)
    waits = [after - before for before, after in pairwise(refused)]
    for wait, wanted in zip(waits, [0.05, 0.1, 0.2, 0.4, 0.8, *[1.0] * 20], strict=False):
        assert 0.8 * wanted <= wait + 0.001
        assert wait <= 1.2 * wanted + 0.011
    assert len(waits) >= 11

    up = True
    clock.now += 1.2
    assert await aiokafka_patches.connect("broker", 9092) == "connected"
    up = False
    refused.clear()
    await tries(0.2)
    assert len(refused) == 3


async def test_a_time_out_has_a_reason_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """TimeoutError has no text."""

    async def create_conn(host: str, port: int, **options: object) -> str:
        raise TimeoutError

    monkeypatch.setattr(aiokafka_patches, "create_conn", create_conn)
    monkeypatch.setattr(aiokafka_patches, "_failures", {})
    with pytest.raises(TimeoutError):
        await aiokafka_patches.connect("broker", 9092)
    with pytest.raises(KafkaConnectionError, match="TimeoutError"):
        await aiokafka_patches.connect("broker", 9092)


class Client:
    """A client that knows one broker, in a network where some hosts answer and some hang."""

    def __init__(self, *answering: str, hanging: tuple[str, ...] = ()) -> None:
        self.answering, self.hanging = answering, hanging
        self.asked: list[str] = []
        self.cluster = ClusterMetadata()
        self.cluster._brokers = {1: OLD}
        self.cluster._partitions = {"orders": {0: None}}
        self.told: list[set[str]] = []
        self.cluster.add_listener(lambda cluster: self.told.append(cluster.topics()))

    async def ask(self, host: str) -> bool:
        """Ask a host."""
        self.asked.append(host)
        if host in self.hanging:
            await asyncio.sleep(40)
        return host in self.answering

    async def bootstrap(self) -> None:
        """Ask the one bootstrap server for the brokers, as aiokafka does."""
        if not await self.ask("front"):
            raise KafkaConnectionError("Unable to bootstrap")
        self.cluster._brokers = {1: NEW if "new" in self.answering else OLD}
        self.cluster._partitions = {}
        for listener in self.cluster._listeners:
            listener(self.cluster)


async def ask_known(client: Client, metadata: ClusterMetadata, topics: set[str]) -> bool:
    """Ask the brokers that a client knows, until one answers, as aiokafka does."""
    return any([await client.ask(broker.host) for broker in client.cluster.brokers()])


@pytest.mark.parametrize(
    ("answering", "hanging", "asked", "answered", "seconds"),
    [
        (("old", "front"), (), ["old"], True, 0),
        (("front", "new"), (), ["old", "front", "new"], True, 0),
        (("front", "new"), ("old",), ["old", "front", "new"], True, 30),
        (("front",), (), ["old", "front", "old"], False, 0),
        ((), (), ["old", "front"], False, 0),
        ((), ("old", "front"), ["old", "front"], False, 60),
    ],
    ids=["known", "moved", "moved, packets vanish", "known by front only", "outage", "silence"],
)
async def test_the_bootstrap_servers_say_where_brokers_are_now(
    monkeypatch: pytest.MonkeyPatch,
    *,
    answering: tuple[str, ...],
    hanging: tuple[str, ...],
    asked: list[str],
    answered: bool,
    seconds: float,
) -> None:
    """They are asked if no known broker answers; known brokers and topics stay known."""
    # Independent of the log levels that earlier tests have set.
    warnings: list[str] = []
    monkeypatch.setattr(aiokafka_patches.logger, "warning", warnings.append)
    monkeypatch.setattr(aiokafka_patches, "_metadata_update", ask_known)
    client, started = Client(*answering, hanging=hanging), asyncio.get_running_loop().time()
    assert await aiokafka_patches.update_metadata(client, client.cluster, set()) is answered
    assert client.asked == asked
    assert client.cluster.brokers() == {NEW if "new" in asked else OLD}
    # Otherwise the topic would count as deleted, and the group would rebalance.
    assert client.cluster.topics() == {"orders"}
    assert client.told == []
    assert len(client.cluster._listeners) == 1
    assert asyncio.get_running_loop().time() == started + seconds
    told = "No known broker answered, the bootstrap servers named others"
    assert warnings == [told] * ("new" in asked)


@pytest.fixture
def parser_as_it_was() -> Iterator[None]:
    """Leaves aiokafka's parser as this test found it."""
    before = fetcher.MemoryRecords
    yield
    fetcher.MemoryRecords = before


def parsed(records: Any) -> list[list[Any]]:
    """What each batch holds."""
    batches = []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        batches.append(
            [(one.offset, one.timestamp, one.key, one.value, one.headers) for one in batch]
        )
    return batches


@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
def test_any_name_is_read_and_nothing_else_changes(codec: int) -> None:
    """In names, bytes that are not UTF-8 are escaped; values and other records are unchanged."""
    odd = [(OddName(b"caf\xc3\xa9-\xff\xfe"), b"\xff"), ("event-id", b"7"), ("none", None)]
    data = batch_of([(b"k", b"\xff\x00v", odd), (None, None, []), (b"", b"", [("h", b"")])], codec)
    with pytest.raises(UnicodeDecodeError):
        parsed(MemoryRecords(data))
    assert parsed(Batches(data * 2)) == 2 * [
        [
            (0, 1000, b"k", b"\xff\x00v", [(r"café-\xff\xfe", b"\xff"), *odd[1:]]),
            (1, 1001, None, None, []),
            (2, 1002, b"", b"", [("h", b"")]),
        ]
    ]  # fmt: skip


@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
def test_ordinary_records_are_read_as_aiokafka_reads_them(codec: int) -> None:
    """Both parsers agree."""
    rows = [(b"k%d" % n, b"v" * n * 37, [(f"ü{n}", b"x" * n)] * (n % 4)) for n in range(200)]
    data = batch_of(rows, codec)
    assert parsed(Batches(data)) == parsed(MemoryRecords(data))


def test_older_formats_are_left_to_aiokafka() -> None:
    """They have no headers; aiokafka's own class reads them."""
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, timestamp=1000, key=b"k", value=b"v")
    batch = Batches(bytes(builder.build())).next_batch()
    assert not isinstance(batch, DefaultRecordBatch)
    assert [(one.offset, one.key, one.value) for one in batch] == [(0, b"k", b"v")]


@pytest.mark.usefixtures("parser_as_it_was")
def test_the_parser_is_the_one_that_fetches_use() -> None:
    """The patch replaces what aiokafka calls."""
    read_any_header_name()
    assert fetcher.MemoryRecords is Batches
