"""The consumer group whose commits store what was redriven, and whose membership is a lock.

It uses aiokafka: confluent_kafka writes a zero byte after a commit's metadata, and reads beyond its
end to the next zero byte in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.errors import KafkaError as ClientError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from order_relay.dead_letters.redrive import AnotherRedrive
from order_relay.delivery.progress import Commit
from order_relay.errors import TopicUnusable
from order_relay.kafka.client_config import client_config
from order_relay.kafka.committed_offsets import (
    description,
    group_commits,
    group_consumer,
    translated,
)
from order_relay.settings import Settings

ASK_SECONDS = 10.0
# Kafka removes a killed member after this time, or after KAFKA_SESSION_TIMEOUT_MS if that is less.
# It is the least that brokers allow by default.
MAX_SESSION_MS = 6_000
HEARTBEATS_PER_SESSION = 3
# The member never polls. Kafka would remove it after this time.
MAX_POLL_INTERVAL_MS = 24 * 3_600_000
# Brokers make the first member wait for others: 3 s by default, the embedded cluster 5 s.
JOIN_SECONDS = 30.0
# How often a member that waits to be admitted looks whether it is.
LOOK_MS = 100


class RedriveGroup:
    """Stores in Kafka what was redriven from the dead-letter topic.

    Attributes:
        group_id: The group's name.
        session_ms: The time after which Kafka removes a killed member.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing is connected yet."""
        self.group_id = f"{settings.consumer_group_id}-dlq-redrive"
        self.session_ms = min(MAX_SESSION_MS, settings.kafka_session_timeout_ms)
        self._settings = settings
        self._topic = settings.dlq_topic

    async def commits(self, partitions: Collection[int]) -> dict[int, Commit]:
        """Return the last commit of each partition that has one; raises as ``group_commits``."""
        return await group_commits(self._settings, self.group_id, self._topic, partitions)

    @asynccontextmanager
    async def membership(self, partitions: Collection[int]) -> AsyncIterator[Membership]:
        """Join the group as its only member, and leave it at the end.

        Raises:
            AnotherRedrive: The group has another member.
            KafkaUnavailable: Kafka did not answer in time.
        """
        another = AnotherRedrive(self._topic, self.group_id, self.session_ms)
        if await self._stays_occupied():
            raise another
        consumer = group_consumer(
            self._settings,
            self.group_id,
            session_timeout_ms=self.session_ms,
            heartbeat_interval_ms=self.session_ms // HEARTBEATS_PER_SESSION,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
        )
        membership = Membership(self._topic, consumer)
        try:
            with translated(self._settings, self.group_id, self._topic):
                async with asyncio.timeout(ASK_SECONDS):
                    await consumer.start()
                # Only now: start() would wait for the assignment, too.
                consumer.subscribe([self._topic], listener=membership)
                async with asyncio.timeout(JOIN_SECONDS):
                    while not membership.joined.is_set():
                        await consumer.getmany(timeout_ms=LOOK_MS)  # raises what Kafka refuses
            if membership.partitions != set(partitions):
                raise another
            yield membership
        finally:
            membership.revoking = True
            stopping = asyncio.create_task(consumer.stop())
            if not membership.joined.is_set():
                await asyncio.sleep(0)
                await consumer._client.close()  # otherwise stop() waits 40 s for the answer to join
            await stopping

    async def _stays_occupied(self) -> bool:
        """Wait until the group has no member, for as long as Kafka keeps a killed one.

        Asking causes no rebalance, as joining would.
        """
        admin = AdminClient(client_config(self._settings) | {"log_level": 0})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.session_ms / 1000 + 1
        while True:
            try:
                asked = admin.describe_consumer_groups([self.group_id], request_timeout=ASK_SECONDS)
                members = (await asyncio.wrap_future(asked[self.group_id])).members
            except KafkaException:
                return False  # no such group, or no right to describe it: joining decides
            if not members or loop.time() > deadline:
                return bool(members)
            await asyncio.sleep(0.5)


class Membership(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka ships no types
    """The membership of the only member.

    Attributes:
        lost: Another member joined, or Kafka removed this one: nothing more may be redriven.
        revoking: Whether this member leaves on its own.
        busy: Locked while letters are redriven and committed; others join only after that.
        joined: Set when Kafka has assigned partitions.
        partitions: The assigned partitions.
    """

    def __init__(self, topic: str, consumer: Any) -> None:
        """Begin before joining."""
        self.lost = False
        self.revoking = False
        self.busy = asyncio.Lock()
        self.joined = asyncio.Event()
        self.partitions: set[int] = set()
        self._consumer = consumer
        self._topic = topic

    async def commit(self, partition: int, commit: Commit) -> None:
        """Store what was redriven.

        Raises:
            TopicUnusable: The commit failed.
        """
        position = TopicPartition(self._topic, partition)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await self._consumer.commit({position: OffsetAndMetadata(*commit)})
        except (ClientError, OSError, TimeoutError) as error:
            self.lost = True
            reason = description(error)
            if isinstance(error, CommitFailedError):
                reason = "Kafka does not count this dlq redrive as a member of its group any more"
            raise TopicUnusable(
                self._topic, f"what was redriven cannot be committed: {reason}"
            ) from error

    async def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """Called before others may join: wait for the batch under way."""
        if self.joined.is_set() and not self.revoking:
            self.lost = True
            async with self.busy:
                pass

    async def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """Called when Kafka has assigned partitions; this consumer never reads them."""
        if assigned:
            self._consumer.pause(*assigned)
        if not self.joined.is_set():
            self.partitions = {position.partition for position in assigned}
            self.joined.set()
