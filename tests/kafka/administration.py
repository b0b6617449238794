"""An operator's queries and changes, by Kafka's admin protocol."""

import asyncio
from dataclasses import dataclass

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # documented, not re-exported
    AdminClient,
    ConfigResource,
    ResourceType,
)

from tests.support.stage import Stage
from tests.support.waiting import eventually

ASK_SECONDS = 10.0
LIMIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group as its coordinator describes it.

    Attributes:
        members: The partitions of each member by its id, which changes when it joins again.
    """

    state: str
    coordinator: int
    members: dict[str, list[int]]


class Administration:
    """Queries and changes for one stage. No call blocks the loop."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._client = self._connect()

    def _connect(self) -> AdminClient:
        return AdminClient(
            {
                "bootstrap.servers": self._stage.bootstrap_servers,
                "socket.timeout.ms": 3_000,
                "log_level": 0,
            }
        )

    async def group(self) -> Group:
        """Describe the stage's group, at any coordinator."""

        async def described() -> Group | None:
            try:
                return await self._describe_group()
            except KafkaException:
                # The client keeps asking the old coordinator.
                self._client = self._connect()
                return None

        found = await eventually(described, LIMIT_SECONDS, "a coordinator that describes the group")
        assert found is not None
        return found

    async def _describe_group(self) -> Group:
        group_id = self._stage.group_id
        asked = self._client.describe_consumer_groups([group_id], request_timeout=ASK_SECONDS)
        found = await asyncio.wrap_future(asked[group_id])
        return Group(
            found.state.name,
            found.coordinator.id,
            {
                one.member_id: sorted(tp.partition for tp in one.assignment.topic_partitions)
                for one in found.members
            },
        )

    async def settled_group(self, members: int, timeout: float = 90.0) -> Group:
        """Wait until the group has that many members and is stable; return it."""

        async def settled() -> Group | None:
            group = await self.group()
            stable = group.state == "STABLE" and len(group.members) == members
            return group if stable else None

        found = await eventually(settled, timeout, f"{members} members of the group")
        assert found is not None
        return found

    async def topic_config(self, topic: str, name: str) -> str | None:
        """One setting of a topic."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        asked = self._client.describe_configs([resource], request_timeout=ASK_SECONDS)
        value: str | None = (await asyncio.wrap_future(asked[resource]))[name].value
        return value

    async def replication(self, topic: str) -> list[tuple[int, int]]:
        """The number of replicas of each partition of a topic, and of those in sync."""
        metadata = await asyncio.to_thread(self._client.list_topics, topic, ASK_SECONDS)
        partitions = metadata.topics[topic].partitions.values()
        return [(len(partition.replicas), len(partition.isrs)) for partition in partitions]

    async def until_in_sync(self, topic: str, replicas: int) -> None:
        """Wait until each partition has that many replicas in sync."""

        async def in_sync() -> bool:
            return {found for _, found in await self.replication(topic)} == {replicas}

        await eventually(in_sync, LIMIT_SECONDS, f"{replicas} replicas of {topic} in sync")

    async def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset, as retention does."""
        where = TopicPartition(topic, partition, before)
        asked = self._client.delete_records([where], request_timeout=ASK_SECONDS)
        await asyncio.wrap_future(asked[where])

    async def delete_topic(self, topic: str) -> None:
        """Delete a topic, and wait until it is removed."""
        asked = self._client.delete_topics([topic], request_timeout=ASK_SECONDS)
        await asyncio.wrap_future(asked[topic])

        async def gone() -> bool:
            metadata = await asyncio.to_thread(self._client.list_topics, None, ASK_SECONDS)
            return topic not in metadata.topics

        await eventually(gone, 30, f"{topic} to be gone")
