"""Kafka and the database refuse dead letters: records stay unfinished until one accepts them.

For a working database, see test_publish_dead_letters.
"""

import asyncio
from pathlib import Path

import pytest

from tests.kafka.commit_watch import Place
from tests.kafka.scene import Scene
from tests.support.kafka.cluster import RealKafka
from tests.support.worker import WorkerProcess

REFUSED = "Dead letter refused"
ALL_THREE = {"min.insync.replicas": "3"}
NO_DATABASE = "postgresql://relay@127.0.0.1:1/orders"


@pytest.mark.harms_brokers
async def test_a_record_whose_dead_letter_is_refused_stays_unfinished(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Without the topic, or one of its replicas, letters are retried; commits stay before them.

    A refusal while one replica is down shows that letters are written with acks=all: the leader
    alone would have accepted it.
    """
    async with Scene(kafka, tmp_path) as scene:
        topic = scene.stage.dlq_topic
        worker = await scene.ready_worker(
            "a", producer_retry_backoff_ms=100, database_url=NO_DATABASE
        )
        await scene.admin.delete_topic(topic)
        first = await refused_letter(scene, worker, "without the topic")
        scene.dead_lettered.add(first)
        await scene.create_topic(topic, ALL_THREE)
        await scene.until_all_committed()

        leader = await asyncio.to_thread(kafka.leader_of, topic, first[0])
        needed = {leader, (await scene.admin.group()).coordinator}
        await asyncio.to_thread(kafka.kill, min(set(kafka.broker_ids) - needed))
        await scene.admin.until_in_sync(topic, 2)
        second = await refused_letter(scene, worker, "without a replica")
        scene.dead_lettered.add(second)
        await asyncio.to_thread(kafka.revive)
        await scene.settle_and_check()
        scene.assert_nothing_repeated()


async def refused_letter(scene: Scene, worker: WorkerProcess, key: str) -> Place:
    """Publish a record whose dead letter is refused, and wait for commits right before it."""
    refusals = len(worker.log_lines(REFUSED))
    scene.rejected.add(key)
    scene.load.publish(1, key=key, partition=0)
    scene.load.publish(300)
    await scene.load.settle()
    await scene.until_accepted(scene.load.produced - len(scene.rejected))
    await worker.wait_until(
        lambda: len(worker.log_lines(REFUSED)) >= refusals + 2, what="to be refused, twice"
    )
    partition, offset = scene.load.places[key]
    await worker.wait_until(
        lambda: scene.commits.offset(partition) == offset, what="to commit up to the record"
    )
    return partition, offset
