"""A key with more records than a worker holds: they wait in Kafka, and none is lost."""

import asyncio
import time
from pathlib import Path

from order_relay.delivery.dispatcher import CROWDED_SHARE
from order_relay.delivery.lanes import KEY_SHARE, MAX_QUEUED_RECORDS
from order_relay.delivery.left_in_kafka import MAX_LEFT
from tests.kafka.scene import PATIENT, Scene
from tests.support.kafka.cluster import RealKafka
from tests.support.orders import Order, order, order_value
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

HOT = "hot"
# More than may be held and left together: reading the partition pauses.
HOT_ORDERS = MAX_LEFT + 2_000
HOT_HELD = MAX_QUEUED_RECORDS // KEY_SHARE
HOT_DELETED = 45_000
OTHERS = 600
# More than may be in memory before some are left.
REFUSED = round(MAX_QUEUED_RECORDS * CROWDED_SHARE) + 500
LEFT = "order_relay_left_in_kafka_records"


async def test_a_key_with_more_records_than_may_be_left(kafka: RealKafka, tmp_path: Path) -> None:
    """Other keys are delivered meanwhile; then this one in order, despite a kill of the worker.

    Records that Kafka deletes meanwhile are counted, and delay nothing.
    """
    async with Scene(kafka, tmp_path, keys=50) as scene:
        scene.failing = {HOT}
        scene.load.publish(HOT_HELD, key=HOT, partition=0)
        scene.load.publish(OTHERS // 2, partition=0)
        scene.load.publish(HOT_ORDERS - HOT_HELD, key=HOT, partition=0)
        for number in range(OTHERS // 2):
            scene.load.publish(1, key=f"elsewhere-{number}", partition=1)
        await scene.load.settle()
        worker = await scene.ready_worker("a", **PATIENT)
        await scene.until_accepted(OTHERS)
        await worker.wait_metric(LEFT, lambda records: records >= MAX_LEFT)
        assert (await worker.metrics())["order_relay_held_records"] == HOT_HELD
        scene.assert_nothing_repeated()

        # The first 1,000 records are in hand; most of the rest is deleted.
        scene.deleted = {(0, offset) for offset in range(HOT_HELD + OTHERS // 2, HOT_DELETED)}
        await scene.admin.delete_records(scene.stage.topic, 0, before=HOT_DELETED)
        scene.failing = set()
        await worker.wait_log("Records were deleted before they were delivered")
        await scene.until_accepted(OTHERS + HOT_HELD + 2_000)
        assert (await worker.metrics())["order_relay_deleted_records_total"] == len(scene.deleted)
        since = time.monotonic()
        worker.kill9()
        successor = await scene.ready_worker("b", **PATIENT)
        await scene.settle_and_check()
        scene.assert_repeats_are_recent(since)
        assert (await successor.metrics())[LEFT] == 0


async def test_a_shard_that_refuses_us(kafka: RealKafka, tmp_path: Path) -> None:
    """Most of its orders wait in Kafka: the others have room. In the end all are delivered.

    Despite a kill of the worker, each key in its order.
    """
    refusing = True

    def answer(request: Received) -> Answer:
        return Answer(403 if refusing and str(request.key).startswith("shard") else 200)

    async with Scene(kafka, tmp_path, keys=3_000) as scene:
        scene.sink.script = answer
        worker = await scene.ready_worker("a")
        for number in range(REFUSED):
            scene.load.publish(1, key=f"shard-{number}")
            scene.load.publish(1)
        await worker.wait_metric(LEFT, lambda records: records >= 1)
        for number in range(500):  # behind those that wait
            scene.load.publish(1, key=f"shard-{number}")
            scene.load.publish(1)
        await scene.until_accepted(REFUSED + 500)
        refusing = False
        await scene.until_accepted(2 * REFUSED)
        worker.kill9()
        successor = await scene.ready_worker("b")
        await scene.settle_and_check()
        assert (await successor.metrics())[LEFT] == 0


async def test_left_records_of_a_compacted_topic(
    kafka: RealKafka, stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """Compaction deletes some between others: the ones that are there are delivered."""
    compaction = {
        "cleanup.policy": "compact",
        "segment.ms": "1000",
        "max.compaction.lag.ms": "1000",
    }
    await asyncio.to_thread(kafka.create_topic, stage.topic, 1, configs=compaction)
    await asyncio.to_thread(kafka.create_topic, stage.dlq_topic, 1)
    hot = [Order(HOT.encode(), order_value(n)) for n in range(HOT_HELD + 500)]
    others = [order(n) for n in range(10_000, 10_030)]
    for index, other in enumerate(others):  # between the hot ones
        hot.insert(index * 50, other)
    sink.script = lambda request: Answer(500 if (request.order_id or 0) < 10_000 else 200)
    async with WorkerProcess(tmp_path, stage, sink.url, **PATIENT) as worker:
        await worker.wait_ready()
        await stage.publish(hot)
        await sink.wait_for(lambda s: len(s.accepted) == len(others), timeout=120)

        async def compacted() -> bool:
            await stage.publish([order(20_000)])  # a segment is compacted after the next has begun
            return sum(row.key == HOT.encode() for row in await stage.records()) < HOT_HELD

        await eventually(compacted, 120, "the topic to be compacted")
        sink.script = lambda request: Answer()
        await eventually(stage.all_committed, 120, "everything is committed")
        assert len(worker.log_lines("Records were deleted before they were delivered")) > 0
        last = HOT_HELD + 500 - 1
        assert [request.order_id for request in sink.requests].count(last) == 1
        assert await worker.stop() == 0
