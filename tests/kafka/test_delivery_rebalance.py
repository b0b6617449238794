"""The group rebalances repeatedly under load: other members join and leave."""

import asyncio
import time
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from tests.kafka.scene import MAX_IN_FLIGHT, PATIENT, Scene
from tests.support.kafka.cluster import RealKafka
from tests.support.stage import Stage
from tests.support.waiting import eventually

ROUNDS = 3
RAPID_ROUNDS = 5


async def test_two_workers_share_and_part_with_256_in_flight(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Nothing is lost, keys keep their order, and only records in flight may be repeated.

    Some keys are always in backoff. Records that finished behind theirs are not repeated, as the
    next owner reads the commit metadata. Requests of one key never overlap, even between workers.
    """
    async with Scene(kafka, tmp_path) as scene:
        scene.latency_seconds = 0.5
        scene.failing = {f"key-{n}" for n in range(6)}
        await scene.ready_worker("a", **PATIENT)
        scene.load.publish(1000)
        scene.load.flow(600)
        handovers = []
        for round_ in range(ROUNDS):
            name = f"b{round_}"
            await scene.until_full()
            handovers.append(time.monotonic())
            worker = await scene.ready_worker(name, shutdown_grace_seconds=4, **PATIENT)
            await scene.until_sent_by(name, MAX_IN_FLIGHT)
            await scene.until_full()
            handovers.append(time.monotonic())
            worker.sigterm()
            assert await worker.wait() == 0
            await scene.admin.settled_group(1)
        scene.latency_seconds = 0.02
        scene.failing = set()
        await scene.settle_and_check()
        assert not (again := scene.repeated_across(handovers)), scene.told(again)
        assert sum(scene.repeats().values()) <= MAX_IN_FLIGHT * len(handovers)
        assert scene.overlaps() == []


async def test_a_worker_leaves_its_group_though_it_rebalances_meanwhile(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Another worker joins while its last attempts end: the group does not wait for the leaver."""
    async with Scene(kafka, tmp_path) as scene:
        scene.latency_seconds = 8.0
        revoking = await scene.ready_worker("leaving", shutdown_grace_seconds=20)
        scene.load.publish(20)
        await scene.until_full(20)
        revoking.sigterm()
        joining = scene.worker("joining")
        assert await revoking.wait() == 0
        group = await scene.admin.group()
        assert len(group.members) <= 1, group
        await joining.wait_ready()
        scene.latency_seconds = 0.0
        await scene.settle_and_check()


async def test_a_fast_logger_and_members_that_come_and_go(kafka: RealKafka, tmp_path: Path) -> None:
    """Short rebalances during fetches lose and repeat nothing.

    Three groups at once, as timing matters. The first records of each partition stay in backoff:
    they would be repeated if a partition were read from the wrong offset.
    """
    async with asyncio.TaskGroup() as groups:
        for number in range(3):
            groups.create_task(come_and_go(kafka, tmp_path / str(number)))


async def come_and_go(kafka: RealKafka, directory: Path) -> None:
    """One group whose second member repeatedly joins and leaves."""
    async with Scene(kafka, directory) as scene:
        scene.latency_seconds = 0.01
        scene.failing = {f"key-{n}" for n in range(6)}
        scene.load.publish(600)
        worker = await scene.ready_worker("a", **PATIENT)
        await scene.until_accepted(594)
        for _ in range(RAPID_ROUNDS):
            # Nothing is published meanwhile, so that a fetch is always waiting.
            await join_and_leave(scene.stage)
            await eventually(worker.ready, 60)
            # One of each key that is not in backoff.
            scene.load.publish(600)
            await scene.until_accepted(len(scene.accepted) + 594)
        scene.failing = set()
        await scene.settle_and_check()
        scene.assert_nothing_repeated()
        assert scene.overlaps() == []


async def join_and_leave(stage: Stage) -> None:
    """Join the stage's group until partitions are assigned; do not read them."""
    consumer = Consumer(
        {
            "bootstrap.servers": stage.bootstrap_servers,
            "group.id": stage.group_id,
            "partition.assignment.strategy": "roundrobin",  # the worker's strategy
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    given: list[TopicPartition] = []
    consumer.subscribe([stage.topic], on_assign=lambda _, partitions: given.extend(partitions))

    async def a_member() -> bool:
        await asyncio.to_thread(consumer.poll, 0.1)
        return bool(given)

    try:
        await eventually(a_member, 90, "partitions")
    finally:
        await asyncio.to_thread(consumer.close)
