"""What a group has committed, or an error: never "nothing" where Kafka did not say so."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition


async def fetch_commits(
    coordinator: Any, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata | None]:
    """Ask the group's coordinator, and the next one where it has moved, until one answers.

    aiokafka's own question overlooks the error that an answer has as a whole (since version 2 of
    it, KIP-88), and so does its admin client's. A broker that is no longer the coordinator, or that
    loads the group, answers so, without any partition: a worker would begin at the beginning of
    the topic, and dead letters be redriven again.

    Args:
        coordinator: aiokafka's ``GroupCoordinator``.
        partitions: Those to ask for.

    Returns:
        The last commit of each of the partitions; ``None`` where there is none.

    Raises:
        KafkaError: The group's coordinator will not say.
    """
    by_topic: dict[str, list[int]] = {}
    for partition in partitions:
        by_topic.setdefault(partition.topic, []).append(partition.partition)
    while by_topic:
        await coordinator.ensure_coordinator_known()
        try:
            answer = await coordinator._send_req(
                OffsetFetchRequest(coordinator.group_id, list(by_topic.items()))
            )
            return _commits(answer, partitions)
        except (NotCoordinatorForGroupError, GroupCoordinatorNotAvailableError):
            coordinator.coordinator_dead()
        except KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(coordinator._retry_backoff_ms / 1000)
    return {}


def _commits(
    answer: Any, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata | None]:
    _raise_for(answer.error_code)
    found: dict[TopicPartition, OffsetAndMetadata | None] = dict.fromkeys(partitions)
    for topic, states in answer.topics:
        for partition, offset, metadata, error_code in states:
            _raise_for(error_code)
            if offset >= 0:
                found[TopicPartition(topic, partition)] = OffsetAndMetadata(offset, metadata or "")
    return found


def _raise_for(error_code: int) -> None:
    if error_code:
        error: KafkaError = for_code(error_code)()
        raise error
