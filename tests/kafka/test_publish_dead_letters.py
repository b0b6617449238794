"""Refused dead letters are saved in the fallback table, and later published from it."""

import asyncio
import re
from pathlib import Path

import pytest

from order_relay.fallback.store import Status
from tests.kafka.publish_scene import PublishScene
from tests.support.kafka.cluster import RealKafka
from tests.support.orders import Published, event_ids, orders
from tests.support.publish_command import Commands
from tests.support.sink import Answer
from tests.support.worker import WorkerProcess

REJECTED = 100
ALL_THREE = {"min.insync.replicas": "3"}
# librdkafka's text for NOT_ENOUGH_REPLICAS_AFTER_APPEND.
WRITTEN = "written to insufficient number of in-sync replicas"


@pytest.mark.harms_brokers
async def test_letters_refused_for_want_of_a_replica(
    kafka: RealKafka, tmp_path: Path, sqlite_url: str
) -> None:
    """Their records are committed; the letters are published when the replica is back."""
    async with PublishScene(
        kafka, tmp_path, sqlite_url, dlq_configs=ALL_THREE, fallback_max_retry=20
    ) as scene:
        scene.sink.script = lambda _: Answer(422)
        worker = await scene.ready_worker("a")
        topic = scene.stage.dlq_topic
        leader = await asyncio.to_thread(kafka.leader_of, topic)
        other = next(one for one in kafka.broker_ids if one != leader)
        await asyncio.to_thread(kafka.kill, other)
        await scene.admin.until_in_sync(topic, 2)
        rejected = await scene.stage.publish(orders(REJECTED, keys=20))
        await worker.wait_until(scene.stage.all_committed, what="to commit the records")
        saved = await scene.saved()
        assert {row.event_id for row in saved} == set(event_ids(rejected))
        assert {(row.topic, row.status) for row in saved} == {(topic, Status.PENDING)}
        assert len(saved) == REJECTED
        metrics = await worker.metrics()
        assert metrics["order_relay_dead_letters_saved_total"] == REJECTED
        assert await scene.stage.dead_letters() == []

        await asyncio.to_thread(kafka.revive)
        await scene.until_settled()
        await check_letters(scene, worker, rejected)
        assert await worker.stop() == 0


async def test_letters_refused_for_want_of_the_topic(
    kafka: RealKafka, tmp_path: Path, postgres_url: str
) -> None:
    """They are FAILED until a person creates the topic and requeues them."""
    async with PublishScene(kafka, tmp_path, postgres_url, fallback_max_retry=1) as scene:
        scene.sink.script = lambda _: Answer(422)
        worker = await scene.ready_worker("a")
        topic = scene.stage.dlq_topic
        await scene.admin.delete_topic(topic)
        rejected = await scene.stage.publish(orders(REJECTED))
        await worker.wait_until(scene.stage.all_committed, what="to commit the records")

        async def failed() -> bool:
            return await scene.counts() == {"FAILED": REJECTED}

        await worker.wait_until(failed, what="to give the letters up")
        await asyncio.to_thread(kafka.create_topic, topic)
        commands = Commands(tmp_path, database_url=postgres_url)
        await commands("fallback", "requeue", "--all")
        await scene.until_settled()
        await check_letters(scene, worker, rejected)
        assert await worker.stop() == 0


async def check_letters(
    scene: PublishScene, worker: WorkerProcess, rejected: list[Published]
) -> None:
    """Each record's letter is in the dead-letter topic once, unchanged, each key in order.

    Only a letter that Kafka refused after its leader had written it may be there more often: a
    replica left while the leader waited for it.
    """
    letters = await scene.stage.dead_letters()
    refusals = worker.log_lines("Fallback message refused")
    saved = {row.id: row.event_id for row in await scene.saved()}
    written = {
        saved[int(found[1])]
        for line in refusals
        if WRITTEN in line and (found := re.search(r" id=(\d+) ", line))
    }
    first = {one.source: one for one in reversed(letters)}
    repeated = list(letters)
    for letter in first.values():
        repeated.remove(letter)
    assert {one.text("event-id") for one in repeated} <= written, refusals
    assert sorted(
        (one.source, one.text("event-id"), one.partition) for one in first.values()
    ) == sorted(((one.partition, one.offset), one.event_id, one.partition) for one in rejected)
    bodies = {one.event_id: (one.key, one.value) for one in rejected}
    sources: dict[bytes | None, list[tuple[int, int]]] = {}
    for letter in letters:
        assert (letter.key, letter.value) == bodies[letter.text("event-id") or ""]
        assert letter.text("dlq-reason") == "rejected"
        assert letter.text("dlq-http-status") == "422"
        if first[letter.source] is letter:
            sources.setdefault(letter.key, []).append(letter.source)
    assert all(places == sorted(places) for places in sources.values())
