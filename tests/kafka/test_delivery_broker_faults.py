"""One broker dies or freezes under load: one that leads a partition, and the group as well."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.kafka.scene import Scene
from tests.support.kafka_cluster import RealKafka

RATE = 200
LATENCY_SECONDS = 0.2


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_a_broker_that_leads_a_partition_and_the_group(
    kafka: RealKafka, tmp_path: Path, fault: str
) -> None:
    """Deliveries go on without it; nothing is lost, each key's order kept, everything committed.

    Repeated is at most what finished while commits were not taken.
    """
    async with Scene(kafka, tmp_path) as scene:
        scene.latency_seconds = LATENCY_SECONDS
        await scene.ready_worker("a")
        scene.load.flow(RATE)
        await scene.until_accepted(2 * RATE)

        # On a new topic each of the three brokers leads one of the three partitions.
        broker = (await scene.admin.group()).coordinator
        topic = scene.stage.topic
        leaders = [await asyncio.to_thread(kafka.leader_of, topic, p) for p in range(3)]
        partition = leaders.index(broker)
        since = time.monotonic()
        await asyncio.to_thread(kafka.kill if fault == "killed" else kafka.freeze, broker)
        await asyncio.to_thread(kafka.leader_of, topic, partition, other_than=broker)
        # What is published from now on is delivered while the broker is still away.
        await scene.until_orders_accepted(scene.load.produced + RATE)

        await asyncio.to_thread(kafka.revive, broker)
        await scene.close_books()
        scene.assert_repeats_are_recent(since)
