"""Checks whether Kafka works for a consumer: whether the brokers that it needs answer.

Metadata does not tell: a broker without a quorum answers with what it last knew, also for the
partitions and groups that it leads. With a quorum, a broker that dies stops being a leader, a
coordinator and an in-sync replica within seconds.

The requests come from aiokafka. librdkafka's (2.16.0) for a group's commits ends the process if the
coordinator goes and comes back meanwhile: ``rd_kafka_enq_once_del_source_return: Assertion
`eonce->refcnt > 0' failed``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from aiokafka.structs import TopicPartition

from order_relay.errors import KafkaUnavailable, TopicUnusable
from order_relay.kafka.committed_offsets import fetch_commits, group_consumer, translated
from order_relay.kafka.diagnosis import broker_answers
from order_relay.settings import Settings

CHECK_SECONDS = 8.0
REPLICA_SECONDS = 3.0
CLOSE_SECONDS = 1.0


async def check_availability(
    settings: Settings, group_id: str, topic: str, partitions: Collection[int] = ()
) -> None:
    """Ask a group's coordinator, and the leaders and in-sync replicas of partitions.

    A refusal is an answer. This makes a client of its own: another one may be what hangs.

    Args:
        settings: How to connect to Kafka.
        group_id: The consumer group. It is not joined.
        topic: The topic.
        partitions: Its partitions; none: all.

    Raises:
        KafkaUnavailable: One of them did not answer in time.
    """
    # Requests end before the check: aiokafka would forget a connection in the middle of its start.
    request_timeout_ms = int(CHECK_SECONDS * 1000 / 4)
    consumer = group_consumer(settings, group_id, request_timeout_ms=request_timeout_ms)
    try:
        with translated(settings, group_id, topic):
            async with asyncio.timeout(CHECK_SECONDS):
                await consumer.start()
                await consumer._client.set_topics([topic])
                known = consumer._client.cluster._partitions.get(topic, {})
                asked = [
                    one for one in known.values() if not partitions or one.partition in partitions
                ]
                await _check_replicas(settings, consumer._client.cluster, asked)
                at = [TopicPartition(topic, one.partition) for one in asked]
                # Any partition will do for the coordinator.
                await fetch_commits(consumer._coordinator, at or [TopicPartition(topic, 0)])
                if at:
                    await consumer.end_offsets(at)
    except TopicUnusable:
        pass
    finally:
        await _stop(consumer)


async def _check_replicas(settings: Settings, cluster: Any, partitions: Collection[Any]) -> None:
    """Raise if half of a partition's in-sync replicas are dead, so that metadata is outdated.

    With a quorum, one may have died a moment ago, or may be out of reach for this worker only.
    """
    in_sync = {number for one in partitions for number in one.isr if len(one.isr) > 1}
    brokers = [one for one in cluster.brokers() if one.nodeId in in_sync]
    answers = await asyncio.gather(
        *(broker_answers(settings, at.host, at.port, REPLICA_SECONDS) for at in brokers)
    )
    dead = in_sync - {at.nodeId for at, answer in zip(brokers, answers, strict=True) if answer}
    for one in partitions:
        gone = sorted(dead.intersection(one.isr))
        if gone and 2 * len(gone) >= len(one.isr) > 1:
            raise KafkaUnavailable(
                settings.kafka_bootstrap_servers,
                f"of {one.topic}-{one.partition}, these in-sync replicas do not answer: {gone}",
            )


async def _stop(consumer: Any) -> None:
    """Stop a client; brokers may not answer that."""
    stopping = asyncio.ensure_future(consumer.stop())
    _, late = await asyncio.wait([stopping], timeout=CLOSE_SECONDS)
    for one in late:
        one.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    for connection in list(consumer._client._conns.values()):  # none unless it was late
        connection.close()
