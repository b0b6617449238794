"""The brokers: an embedded cluster, real Kafka from the tests' harness, or yours."""

from __future__ import annotations

import contextlib
import json
import random
import uuid
from collections.abc import Iterator

from confluent_kafka import ConsumerGroupState, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.processes import CannotMeasure
from tests.support.embedded import EmbeddedKafka

PARTITIONS = 3
# librdkafka's mock cluster drops the oldest beyond 5 MiB or 100,000 records a partition; it has
# 4 partitions a topic.
EMBEDDED_MAX_RECORDS = 100_000
_ADMIN_SECONDS = 15.0

Config = dict[str, str | int | float | bool]


class Brokers:
    """A cluster for topics.

    Attributes:
        servers: Its bootstrap servers.
        creates_topics: Whether it accepts CreateTopics; else topics are created on first use.
    """

    def __init__(self, servers: str, *, creates_topics: bool) -> None:
        self.servers = servers
        self.creates_topics = creates_topics
        self._config: Config = {"bootstrap.servers": servers, "log_level": 0}

    @property
    def replication(self) -> int:
        """The replicas of each record: three, or the number of brokers."""
        return min(3, len(AdminClient(self._config).list_topics(timeout=_ADMIN_SECONDS).brokers))

    def shares(self, group: str) -> list[int]:
        """The number of partitions of each member of a group; empty while it rebalances."""
        admin = AdminClient(self._config)  # must live until the answer arrives
        (described,) = admin.describe_consumer_groups([group]).values()
        with contextlib.suppress(KafkaException):
            found = described.result(_ADMIN_SECONDS)
            if found.state is ConsumerGroupState.STABLE:
                return [len(member.assignment.topic_partitions) for member in found.members]
        return []

    @contextlib.contextmanager
    def topic(self, partitions: int = PARTITIONS) -> Iterator[Topic]:
        """A new empty topic; it is deleted afterwards, with all topics that workers created for it.

        The embedded cluster ignores the number of partitions.
        """
        topic = Topic(f"order-relay-benchmark-{uuid.uuid4().hex[:8]}", self._config)
        admin = AdminClient(self._config)
        try:
            self._make(admin, topic.name, partitions)
        except KafkaException as error:
            raise CannotMeasure(f"no topic at {self.servers}: {error.args[0].str()}") from error
        try:
            yield topic
        finally:
            if self.creates_topics:
                _remove(admin, topic.name)

    def _make(self, admin: AdminClient, name: str, partitions: int) -> None:
        if not self.creates_topics:
            admin.list_topics(name, timeout=_ADMIN_SECONDS)
            return
        new = NewTopic(name, partitions, self.replication)
        for future in admin.create_topics([new]).values():
            future.result(_ADMIN_SECONDS)


def _remove(admin: AdminClient, prefix: str) -> None:
    with contextlib.suppress(KafkaException):
        names = [
            name
            for name in admin.list_topics(timeout=_ADMIN_SECONDS).topics
            if name.startswith(prefix)
        ]
        for future in admin.delete_topics(names).values():
            future.result(_ADMIN_SECONDS)


class Topic:
    """A topic that is filled with orders of different keys."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.dlq_name = f"{name}.DLQ"
        self.records = 0
        self._random = random.Random(1)  # the same keys in every run
        self._producer = Producer(
            config | {"linger.ms": 20, "queue.buffering.max.messages": 200_000}
        )

    def new_group(self) -> str:
        """A consumer group that reads the topic from its beginning."""
        return f"{self.name}-{uuid.uuid4().hex[:8]}"

    def fill(self, records: int, keys: int | None = None) -> None:
        """Publish orders until the topic has ``records``, and wait until Kafka has them.

        Args:
            records: Orders in the topic afterwards.
            keys: Number of keys, chosen at random; by default each order has its own.
        """
        producer = self._producer
        for order_id in range(self.records + 1, records + 1):
            key = self._random.randrange(keys) if keys else order_id
            value = order(order_id, key)
            while True:
                try:
                    producer.produce(self.name, value, str(key))
                except BufferError:
                    producer.poll(0.1)
                else:
                    break
            if order_id % 1000 == 0:
                producer.poll(0)
        self.records = max(records, self.records)
        left = producer.flush(120)
        if left:
            raise RuntimeError(f"the brokers did not take {left} of the records")


def order(order_id: int, key: int) -> bytes:
    """An event's value; the sink reads both numbers."""
    return json.dumps(
        {
            "eventType": "ORDER_PAID",
            "orderId": order_id,
            "userId": key,
            "paidAt": "2025-12-19T10:30:00",
            "orderItems": [{"productId": 1, "orderQuantity": 2}],
        },
        separators=(",", ":"),
    ).encode()


@contextlib.contextmanager
def embedded() -> Iterator[Brokers]:
    """Three brokers of librdkafka's mock cluster in the memory of one process."""
    with EmbeddedKafka() as cluster:
        yield Brokers(cluster.bootstrap_servers, creates_topics=False)


@contextlib.contextmanager
def real_kafka() -> Iterator[Brokers]:
    """Three brokers of Apache Kafka, fetched and started by the tests' harness."""
    # Imported here, as benchmarks without Kafka do not need the tests' harness.
    from tests.support.kafka.cluster import RealKafka  # noqa: PLC0415
    from tests.support.kafka.distribution import KafkaUnavailable  # noqa: PLC0415

    kafka = RealKafka()
    try:
        try:
            kafka.start()
        except (KafkaUnavailable, TimeoutError) as error:
            raise CannotMeasure(str(error)) from error
        yield Brokers(kafka.bootstrap_servers, creates_topics=True)
    finally:
        kafka.close()


@contextlib.contextmanager
def given(servers: str) -> Iterator[Brokers]:
    """A running cluster."""
    yield Brokers(servers, creates_topics=True)
