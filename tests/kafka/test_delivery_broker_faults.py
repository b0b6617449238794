"""A broker dies, freezes or restarts: one that leads a partition, the group, or the table."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.kafka.scene import Scene
from tests.support.kafka.cluster import RealKafka

pytestmark = pytest.mark.harms_brokers

RATE = 200
LATENCY_SECONDS = 0.2


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_a_broker_that_leads_a_partition_and_the_group(
    kafka: RealKafka, tmp_path: Path, fault: str
) -> None:
    """Deliveries continue without it; nothing is lost, each key's order kept, all committed.

    Only records that finished while commits failed may be repeated.
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
        since = scene.commits.coordinator_died_at = time.monotonic()
        await asyncio.to_thread(kafka.kill if fault == "killed" else kafka.freeze, broker)
        await asyncio.to_thread(kafka.leader_of, topic, partition, other_than=broker)
        # New orders are delivered while the broker is still down.
        await scene.until_orders_accepted(scene.load.produced + RATE)

        await asyncio.to_thread(kafka.revive, broker)
        await scene.settle_and_check()
        scene.assert_repeats_are_recent(since)


async def test_brokers_restarted_one_by_one(kafka: RealKafka, tmp_path: Path) -> None:
    """Like an upgrade of Kafka, while a worker joins and another leaves: nothing is repeated."""
    async with Scene(kafka, tmp_path) as scene:
        scene.latency_seconds = LATENCY_SECONDS
        revoking = await scene.ready_worker("a")
        scene.load.flow(RATE)
        for broker in kafka.broker_ids:
            await scene.until_orders_accepted(scene.load.produced + 2 * RATE)
            if broker == kafka.broker_ids[1]:
                scene.worker("b")
            if broker == kafka.broker_ids[2]:
                revoking.sigterm()
            scene.commits.coordinator_died_at = time.monotonic()
            await asyncio.to_thread(kafka.stop, broker)
            await asyncio.to_thread(kafka.revive, broker)
            await asyncio.to_thread(kafka.elect_preferred_leaders)
        assert await revoking.wait() == 0
        await scene.settle_and_check()
        scene.assert_nothing_repeated()


async def test_the_coordinator_killed_while_partitions_are_given_back(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Deliveries that end meanwhile are committed with the next coordinator.

    The deliveries table is off, as it would hide a missing commit.
    """
    async with Scene(kafka, tmp_path) as scene:
        await until_partitions_are_given_back(scene, deliveries_store="off")
        broker = (await scene.admin.group()).coordinator
        scene.commits.coordinator_died_at = time.monotonic()
        await asyncio.to_thread(kafka.kill, broker)
        await see_that_nothing_is_repeated(scene, kafka, broker)


async def test_the_tables_broker_frozen_while_partitions_are_given_back(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Deliveries that end meanwhile are committed without entries in the changelog.

    With 12 partitions, the second worker gets some whose changelog the broker leads.
    """
    async with Scene(kafka, tmp_path, partitions=12) as scene:
        await until_partitions_are_given_back(scene)
        coordinator = (await scene.admin.group()).coordinator
        changelog = scene.stage.settings().deliveries_changelog_topic
        leaders = {await asyncio.to_thread(kafka.leader_of, changelog, p) for p in range(12)}
        broker = min(leaders - {coordinator})
        await asyncio.to_thread(kafka.freeze, broker)
        await see_that_nothing_is_repeated(scene, kafka, broker)


async def until_partitions_are_given_back(scene: Scene, **settings: object) -> None:
    """Let a second worker join while 256 records of the first one are in flight."""
    scene.hold(after=RATE)
    worker = await scene.ready_worker("a", **settings)
    scene.load.flow(RATE)
    await scene.until_full()
    await scene.let_join("b", worker, **settings)
    assert scene.sink.open_requests
    scene.latency_seconds = LATENCY_SECONDS
    scene.let_go()


async def see_that_nothing_is_repeated(scene: Scene, kafka: RealKafka, broker: int) -> None:
    """Wait for the second worker, restart the broker, and check repeats."""
    await scene.until_sent_by("b", RATE)
    await asyncio.to_thread(kafka.revive, broker)
    await scene.settle_and_check()
    scene.assert_nothing_repeated()
