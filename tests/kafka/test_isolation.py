"""Two consumers in one worker: a fault of one does not affect the other."""

import json
from collections.abc import AsyncIterator

import aiokafka
import pytest
import pytest_asyncio
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from tests.kafka.coupons import BAD, Coupons
from tests.kafka.scene import Scene
from tests.kafka.stories import Stories, Story, told
from tests.support.kafka.cluster import RealKafka

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("isolation")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stories(
    module_kafka: RealKafka, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stories]:
    """Start all stories; each test awaits one."""

    async def tell(story: Story) -> None:
        folder = tmp_path_factory.mktemp("story")
        async with (
            Scene(module_kafka, folder, keys=60) as scene,
            Coupons(scene, folder / "consumers") as coupons,
        ):
            await story(scene, coupons)

    async with told({story: tell(story) for story in STORIES}) as begun:
        yield begun


async def the_function_misbehaves(scene: Scene, coupons: Coupons) -> None:
    """It raises, hangs, survives a kill of its worker, and blocks the event loop."""
    scene.load.publish(1, key=BAD, partition=0)
    await scene.load.settle()
    coupons.rejected.add(scene.load.places[BAD])
    worker = await scene.ready_worker("a", **coupons.settings)
    await logged_and_committed(scene, 200)
    await coupons.commits.until_all_committed()

    for mood in ("raise", "hang"):
        coupons.be(mood)
        before = coupons.commits.last
        await logged_and_committed(scene, 200)
        assert coupons.commits.last == before
    scene.load.publish(200)
    worker.kill9()
    await scene.ready_worker("b", **coupons.settings)
    await logged_and_committed(scene, 200)
    assert coupons.commits.last == before

    coupons.be("block")
    await logged_and_committed(scene, 400)
    coupons.be("well")
    await scene.settle_and_check()
    await coupons.settle_and_check(scene)


async def logged_and_committed(scene: Scene, count: int) -> None:
    """Publish orders, and wait until order_logging has delivered and committed everything."""
    scene.load.publish(count)
    await scene.load.settle()
    await scene.until_orders_accepted(scene.load.produced)
    await scene.until_all_committed()


async def the_logger_is_down(scene: Scene, coupons: Coupons) -> None:
    """The function handles and commits all orders; the logger gets them later."""
    await scene.sink.down()
    scene.load.publish(400)
    scene.worker("a", **coupons.settings)
    await scene.load.settle()
    await coupons.until_handled(scene)
    await coupons.commits.until_all_committed()
    assert not scene.commits.known_at
    await scene.sink.up()
    await scene.settle_and_check()
    await coupons.settle_and_check(scene)


async def the_function_cannot_begin(scene: Scene, coupons: Coupons) -> None:
    """First its dead-letter topic cannot be created, then its group refuses it; then both work."""
    other = aiokafka.AIOKafkaConsumer(
        coupons.stage.topic,
        bootstrap_servers=coupons.stage.bootstrap_servers,
        group_id=coupons.stage.group_id,
        partition_assignment_strategy=(RangePartitionAssignor,),
        enable_auto_commit=False,
    )
    await other.start()  # a member that shares no assignor with the worker
    try:
        # Three brokers cannot hold four replicas: the missing dead-letter topic cannot be created.
        without_tables = {"deliveries_store": "off", "coupons_deliveries_store": "off"}
        settings = coupons.settings | without_tables | {"topic_replication_factor": 4}
        worker = scene.worker("a", **settings)
        await worker.wait_log("does not declare the topics")
        await logged_and_committed(scene, 200)
        assert await worker.stop() == 0
        await scene.create_topic(coupons.stage.dlq_topic)
        worker.start()
        await worker.wait_log("Membership in the consumer group failed")
        await logged_and_committed(scene, 200)
        assert not coupons.commits.looks
        answer = await worker.get("/health/ready")
        assert answer is not None
        consumers = json.loads(answer[1])["consumers"]
        assert (consumers["order_logging"]["status"], consumers["coupons"]["status"]) == (
            "ok", "failing",
        )  # fmt: skip
        stats = await worker.json("/stats?consumer=coupons")
        assert "InconsistentGroupProtocol" in stats["group_problem"]
        assert await worker.stop() == 0
    finally:
        await other.stop()
    worker.start()
    await scene.settle_and_check()
    await coupons.settle_and_check(scene)
    assert await worker.stop() == 0


STORIES = (the_function_misbehaves, the_logger_is_down, the_function_cannot_begin)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: str(story.__name__))
async def test_a_fault_of_one_consumer_does_not_affect_the_other(
    stories: Stories, story: Story
) -> None:
    """The other's deliveries, order and commits continue; neither loses an order."""
    await stories[story]
