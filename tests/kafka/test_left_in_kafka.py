"""A key with more records than a worker holds: they wait in Kafka, and none is lost."""

import time
from pathlib import Path

from order_relay.delivery.lanes import KEY_SHARE, MAX_QUEUED_RECORDS
from order_relay.delivery.left_in_kafka import MAX_LEFT
from tests.kafka.scene import Scene
from tests.kafka.test_delivery_worker_faults import PATIENT
from tests.support.kafka_cluster import RealKafka

HOT = "hot"
# More than may be held and left together: reading the partition pauses.
HOT_ORDERS = MAX_LEFT + 2_000
HOT_HELD = MAX_QUEUED_RECORDS // KEY_SHARE
HOT_DELETED = 45_000
OTHERS = 600
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

        async def paused() -> bool:
            return (await worker.metrics())[LEFT] >= MAX_LEFT

        await worker.wait_until(paused, what="to leave as much as it may")
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
