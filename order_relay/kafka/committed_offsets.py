"""Fetches a group's committed offsets, and never mistakes an error for "nothing committed"."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from order_relay.delivery.progress import Commit
from order_relay.errors import KafkaUnavailable, TopicUnusable
from order_relay.kafka.auth import faust_credentials
from order_relay.settings import Settings

ASK_SECONDS = 10.0


async def fetch_commits(
    coordinator: Any, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata | None]:
    """Fetch the commits from the group's coordinator; follows it to another broker.

    aiokafka's own request ignores the top-level error of the response (version 2 and later,
    KIP-88), and so does its admin client. A broker that is no longer the coordinator, or that is
    loading the group, responds with such an error and no partitions. A worker would then start at
    the beginning of the topic, and dead letters would be redriven again.

    Args:
        coordinator: aiokafka's ``GroupCoordinator``.
        partitions: The partitions to fetch.

    Returns:
        The last commit of each partition; ``None`` without one.

    Raises:
        KafkaError: The coordinator refuses.
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


def group_consumer(settings: Settings, group_id: str, **options: int) -> Any:
    """Return a client for a group, which joins only if it subscribes, and commits only if told."""
    return AIOKafkaConsumer(
        **credentials_to_aiokafka_auth(faust_credentials(settings)),
        bootstrap_servers=settings.kafka_bootstrap_servers.split(","),
        client_id=group_id,
        group_id=group_id,
        enable_auto_commit=False,
        **options,
    )


async def group_commits(
    settings: Settings, group_id: str, topic: str, partitions: Collection[int]
) -> dict[int, Commit]:
    """Fetch the last commit of each partition that has one, without joining the group.

    Raises:
        KafkaUnavailable: Kafka did not answer in time.
        TopicUnusable: Kafka refused the request.
    """
    consumer = group_consumer(settings, group_id)
    try:
        with translated(settings, group_id, topic):
            async with asyncio.timeout(ASK_SECONDS):
                await consumer.start()
                found = await fetch_commits(
                    consumer._coordinator, [TopicPartition(topic, number) for number in partitions]
                )
    finally:
        await consumer.stop()
    return {one.partition: Commit(*last) for one, last in found.items() if last is not None}


@contextmanager
def translated(settings: Settings, group_id: str, topic: str) -> Iterator[None]:
    """Raise ``KafkaUnavailable`` or ``TopicUnusable`` for errors of aiokafka."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        if isinstance(error, KafkaError) and not getattr(error, "retriable", False):
            text = f"the group {group_id}: {description(error)}"
            raise TopicUnusable(topic, text) from error
        raise KafkaUnavailable(settings.kafka_bootstrap_servers, description(error)) from error


def description(error: BaseException) -> str:
    """Return an error of aiokafka on one line."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__


def _commits(
    answer: Any, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata | None]:
    states = [(topic, *state) for topic, of_topic in answer.topics for state in of_topic]
    for error_code in (answer.error_code, *(state[-1] for state in states)):
        if error_code:
            raise for_code(error_code)
    return dict.fromkeys(partitions) | {
        TopicPartition(topic, partition): OffsetAndMetadata(offset, metadata or "")
        for topic, partition, offset, metadata, _ in states
        if offset >= 0
    }
