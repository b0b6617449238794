"""One test's topics and consumer group on a cluster: publishing, and reading the results."""

import asyncio
import struct
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import aiokafka
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from order_relay.settings import Settings, load_settings
from tests.support.orders import Headers, Order, Published

CALL_SECONDS = 30.0
PARTITION_UA = -1  # librdkafka's value for: the partitioner decides
READ_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it was read back from a topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int = 0

    def header(self, name: str) -> bytes | None:
        """The last header of that name."""
        return dict(self.headers).get(name)

    def text(self, name: str) -> str | None:
        """The last header of that name, as text."""
        value = self.header(name)
        return None if value is None else value.decode()

    @property
    def source(self) -> tuple[int, int]:
        """Partition and offset that a dead letter came from, by its headers."""
        partition = self.header("kafka_dlt-original-partition") or b""
        offset = self.header("kafka_dlt-original-offset") or b""
        return struct.unpack(">i", partition)[0], struct.unpack(">q", offset)[0]


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed for a partition."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True)
class Stage:
    """Names on a cluster, and what a test does with them.

    Attributes:
        bootstrap_servers: Of the cluster, embedded or real.
        declare_topics: What ``KAFKA_DECLARE_TOPICS`` must be for workers on it.
        session_timeout_ms: ``KAFKA_SESSION_TIMEOUT_MS`` for them; ``None`` is the product's own.
    """

    bootstrap_servers: str
    topic: str
    dlq_topic: str
    group_id: str
    declare_topics: bool = False
    session_timeout_ms: int | None = None

    @property
    def names(self) -> dict[str, Any]:
        """Its settings for workers and commands."""
        return {
            "kafka_bootstrap_servers": self.bootstrap_servers,
            "kafka_declare_topics": self.declare_topics, "order_paid_topic": self.topic,
            "dlq_topic": self.dlq_topic, "consumer_group_id": self.group_id,
        }  # fmt: skip

    def settings(self, **others: Any) -> Settings:
        """The product's settings for this stage, which win over the environment."""
        return load_settings(**(self.names | others))

    async def publish(self, orders: Iterable[Order], **how: Any) -> list[Published]:
        """Publish records in this order, acks=all; returns when all are acknowledged."""
        return await asyncio.to_thread(self.publish_blocking, list(orders), **how)

    async def dead_letters(self) -> list[Row]:
        """Everything in the dead-letter topic now, by partition and offset."""
        return await asyncio.to_thread(self.read_blocking, self.dlq_topic)

    async def records(self, topic: str | None = None) -> list[Row]:
        """Everything in a topic (the source topic) now, by partition and offset."""
        return await asyncio.to_thread(self.read_blocking, topic or self.topic)

    async def committed(self) -> dict[int, Committed]:
        """What the group has committed; partitions without a commit are left out."""
        partitions = [aiokafka.TopicPartition(self.topic, p) for p in await self.ends()]
        # Not by confluent_kafka: it reads metadata on to the next zero byte in its memory.
        client = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await client.start()
        try:
            found = await client.list_consumer_group_offsets(self.group_id, partitions=partitions)
        finally:
            await client.close()
        return {
            tp.partition: Committed(one.offset, one.metadata)
            for tp, one in found.items()
            if one.offset >= 0
        }

    async def ends(self) -> dict[int, int]:
        """The offset that the next record of each partition of the source topic will get."""
        return await asyncio.to_thread(self._ends_blocking)

    async def all_committed(self) -> bool:
        """Whether the group has committed everything that is in the source topic."""
        return await asyncio.to_thread(self._all_committed)

    async def commit(self, commits: Mapping[int, Committed]) -> None:
        """Commit for the group, by partition, as an earlier member of it would have."""
        committed = {
            aiokafka.TopicPartition(self.topic, partition): aiokafka.OffsetAndMetadata(
                one.offset, one.metadata
            )
            for partition, one in commits.items()
        }
        if not committed:
            return
        # Not by confluent_kafka, which writes a zero byte after the metadata.
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap_servers,
            group_id=self.group_id,
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            consumer.assign(list(committed))
            await consumer.commit(committed)
        finally:
            await consumer.stop()

    def publish_blocking(
        self,
        orders: Sequence[Order],
        *,
        config: Mapping[str, str | int] = MappingProxyType({}),
        timestamp_ms: int = 0,
        transaction: Literal["commit", "abort"] | None = None,
    ) -> list[Published]:
        """See ``publish``; without a timestamp records get the current time."""
        transactional = {"transactional.id": self.topic} if transaction else {}
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "queue.buffering.max.messages": 2_000_000,
                "partitioner": "murmur2_random",
                "log_level": 0,
                **transactional,
                **config,
            }
        )
        if transaction:
            producer.init_transactions(READ_SECONDS)
            producer.begin_transaction()
        places: dict[int, tuple[int, int]] = {}
        errors: list[KafkaError] = []
        for number, order in enumerate(orders):

            def on_delivery(error: KafkaError | None, message: Message, n: int = number) -> None:
                if error is not None:
                    errors.append(error)
                else:
                    places[n] = (message.partition() or 0, message.offset() or 0)

            producer.produce(
                self.topic,
                order.value,
                order.key,
                headers=list(order.headers),
                timestamp=timestamp_ms,
                on_delivery=on_delivery,
                partition=PARTITION_UA if order.partition is None else order.partition,
            )
            if number % 1000 == 0:
                producer.poll(0)
        producer.flush(READ_SECONDS)
        if transaction == "commit":
            producer.commit_transaction(READ_SECONDS)
        elif transaction == "abort":
            producer.abort_transaction(READ_SECONDS)
        if errors or len(places) != len(orders):
            raise RuntimeError(f"published {len(places)} of {len(orders)}: {errors[:3]}")
        return [self._published(order, *places[n]) for n, order in enumerate(orders)]

    def read_blocking(self, topic: str) -> list[Row]:
        """Everything in a topic now, by partition and offset."""
        rows: list[Row] = []
        with self._consumer() as consumer:
            ends = self._ends(consumer, topic)
            left = {partition: end for partition, end in ends.items() if end > 0}
            if not left:
                return []
            consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in left])
            deadline = time.monotonic() + READ_SECONDS
            while left:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{topic} cannot be read to its end, {left}")
                # It waits this long if there are fewer records.
                for message in consumer.consume(1000, 0.1):
                    if (error := message.error()) is not None:
                        raise KafkaException(error)
                    row = _row(message)
                    if row.offset + 1 >= left.get(row.partition, 0):
                        left.pop(row.partition, None)
                    if row.offset < ends[row.partition]:
                        rows.append(row)
        return sorted(rows, key=lambda row: (row.partition, row.offset))

    def _ends_blocking(self) -> dict[int, int]:
        with self._consumer() as consumer:
            return self._ends(consumer, self.topic)

    def _all_committed(self) -> bool:
        with self._consumer(self.group_id) as consumer:
            ends = {p: end for p, end in self._ends(consumer, self.topic).items() if end > 0}
            found = consumer.committed([TopicPartition(self.topic, p) for p in ends], CALL_SECONDS)
        return {one.partition: one.offset for one in found} == ends

    def _published(self, order: Order, partition: int, offset: int) -> Published:
        given = dict(order.headers).get("event-id")
        event_id = given.decode() if given else f"{self.topic}-{partition}-{offset}"
        return Published(
            order.key, order.value, order.headers, self.topic, partition, offset, event_id
        )

    @contextmanager
    def _consumer(self, group_id: str = "reader") -> Iterator[Consumer]:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": group_id,  # it never joins: partitions are assigned by hand
                "enable.auto.commit": False,
                # The mock brokers answer a fetch that finds nothing only after this time.
                "fetch.wait.max.ms": 50,
                "auto.offset.reset": "earliest",
                "log_level": 0,
            }
        )
        try:
            yield consumer
        finally:
            consumer.close()

    def _ends(self, consumer: Consumer, topic: str) -> dict[int, int]:
        found = consumer.list_topics(topic, CALL_SECONDS).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        places = [TopicPartition(topic, partition) for partition in sorted(found.partitions)]
        return {at.partition: consumer.get_watermark_offsets(at, CALL_SECONDS)[1] for at in places}


def new_stage(bootstrap_servers: str, **options: Any) -> Stage:
    """A stage with names that no other test uses; does not create its topics."""
    name = uuid.uuid4().hex[:8]
    topic = f"order-paid-{name}"
    return Stage(bootstrap_servers, topic, f"{topic}.DLQ", f"group-{name}", **options)


def _row(message: Message) -> Row:
    headers = message.headers() or []
    assert isinstance(headers, list)
    return Row(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        _bytes(message.key()),
        _bytes(message.value()),
        tuple((name, _bytes(value)) for name, value in headers),
        message.timestamp()[1],
    )


def _bytes(value: object) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()
