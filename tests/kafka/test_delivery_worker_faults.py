"""Workers are killed, stopped and delayed under load, while the brokers work.

The stories run side by side, from the first test on: mostly they wait until a group has removed a
dead member.
"""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.kafka.commit_watch import finished_beyond
from tests.kafka.scene import MAX_IN_FLIGHT, PATIENT, SESSION_SECONDS, Scene
from tests.kafka.stories import Stories, Story, told
from tests.support.kafka.broker import MAX_METADATA_BYTES
from tests.support.kafka.cluster import RealKafka
from tests.support.worker import WorkerProcess

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("worker_faults")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stories(
    module_kafka: RealKafka, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stories]:
    """Start all stories; each test awaits one."""

    async def tell(story: Story) -> None:
        async with Scene(module_kafka, tmp_path_factory.mktemp("story")) as scene:
            await story(scene)

    async with told({story: tell(story) for story in STORIES}) as begun:
        yield begun


async def killed_before_its_first_commit(scene: Scene) -> None:
    """Killed with its first 256 records in flight."""
    scene.hold()
    scene.load.publish(1500)
    worker = scene.worker("a")
    await scene.until_full()
    await kill_and_see(scene, worker)


async def killed_with_keys_in_backoff(scene: Scene) -> None:
    """Many records are finished behind unfinished ones, which only commit metadata shows."""
    scene.hold(after=4 * MAX_IN_FLIGHT)
    scene.latency_seconds = 0.5
    scene.failing = {"key-0", "key-1", "key-2"}
    scene.load.publish(2500)
    worker = scene.worker("a", **PATIENT)
    await scene.until_accepted(4 * MAX_IN_FLIGHT)
    await scene.until_full()
    await kill_and_see(scene, worker)


async def killed_in_the_drain_of_a_stop(scene: Scene) -> None:
    """After SIGTERM, when half of the records in flight are delivered."""
    scene.hold(after=MAX_IN_FLIGHT)
    scene.load.publish(1000)
    worker = scene.worker("a")
    await scene.until_accepted(MAX_IN_FLIGHT)
    await scene.until_full()
    worker.sigterm()
    await worker.wait_log("Signal received")
    scene.let_go(MAX_IN_FLIGHT // 2)
    await scene.until_accepted(MAX_IN_FLIGHT + MAX_IN_FLIGHT // 2)
    await kill_and_see(scene, worker)


async def killed_in_a_rebalance(scene: Scene) -> None:
    """Killed while it gives its partitions back to a second worker."""
    scene.hold(after=MAX_IN_FLIGHT)
    scene.load.publish(2000)
    worker = await scene.ready_worker("a")
    await scene.until_accepted(MAX_IN_FLIGHT)
    await scene.until_full()
    await scene.let_join("b", worker)
    await kill_and_see(scene, worker)


async def kill_and_see(scene: Scene, worker: WorkerProcess) -> None:
    """Kill a worker, let a second one finish the work, and check what was repeated.

    Only records in flight (256) or finished since the last commit (up to 1 s) may be repeated.
    """
    since = time.monotonic()
    worker.kill9()
    scene.failing = set()
    scene.latency_seconds = 0.1
    scene.let_go()
    if not scene.has_worker("b"):
        scene.worker("b")
    await scene.settle_and_check()
    scene.assert_repeats_are_recent(since)


async def stopped_under_load(scene: Scene) -> None:
    """SIGTERM with 256 records in flight, some in backoff, and more queued than the grace allows.

    Attempts in flight end, and all is committed, also what finished behind those in backoff. No new
    attempt starts, so none is cut off at the end of the grace.
    """
    scene.hold(after=2 * MAX_IN_FLIGHT)
    scene.latency_seconds = 0.5
    scene.failing = {"key-0", "key-1", "key-2"}
    scene.load.publish(5000)
    worker = scene.worker("a", shutdown_grace_seconds=4, **PATIENT)
    await scene.until_accepted(2 * MAX_IN_FLIGHT)
    await scene.until_full()
    worker.sigterm()
    scene.let_go()
    # A worker that overruns its deadline ends with 1.
    assert await worker.wait() == 0
    scene.failing = set()
    scene.latency_seconds = 0.02
    scene.worker("b")
    await scene.settle_and_check()
    scene.assert_nothing_repeated()


async def held_records(scene: Scene) -> None:
    """A failing and a hanging record: first at the start of their partitions, then later.

    They stop the commits of their partitions and nothing else; commit metadata has the rest.
    """
    worker = None
    for name, before in (("first", 0), ("later", 300)):
        failing, hanging = f"failing-{name}", f"hanging-{name}"
        scene.failing, scene.hanging = {failing}, {hanging}
        scene.load.publish(before)
        scene.load.publish(1, key=failing, partition=0)
        scene.load.publish(1, key=hanging, partition=1)
        scene.load.publish(600)
        await scene.load.settle()
        held = dict(scene.load.places[key] for key in (failing, hanging))
        worker = worker or scene.worker("a", **PATIENT)
        await scene.until_accepted(scene.load.produced - len(held))
        # CommitWatch checks that no commit passes the held records.
        await until_committed_around(scene, worker, held)

        scene.failing = set()
        scene.answer_hanging()
        await scene.until_all_committed()
    await scene.settle_and_check()
    scene.assert_nothing_repeated()


async def until_committed_around(scene: Scene, worker: WorkerProcess, held: dict[int, int]) -> None:
    """Wait for commits right before the held records, with metadata of those behind them."""
    ends = await scene.stage.ends()

    def committed() -> bool:
        return all(
            scene.commits.offset(partition) == held.get(partition, end)
            and (
                partition not in held
                or finished_beyond(scene.commits.last[partition])
                == set(range(held[partition] + 1, end))
            )
            for partition, end in ends.items()
        )

    await worker.wait_until(committed, what=f"to commit {ends} around {held}")


async def long_metadata(scene: Scene) -> None:
    """Every other record hangs: the commit metadata is longer than the brokers accept.

    Commits are repeated without it at once, and later have as much as fits.
    """
    # Each hanging record takes two characters.
    count = MAX_METADATA_BYTES * 2 // 3
    hanging = [f"hanging-{number}" for number in range(count)]
    scene.failing, scene.hanging = {"failing"}, set(hanging)
    scene.load.publish(1, key="failing", partition=0)
    for key in hanging:
        scene.load.publish(1, partition=0)
        scene.load.publish(1, key=key, partition=0)
    await scene.load.settle()
    worker = scene.worker("a", max_in_flight=2 * count, **PATIENT)
    await scene.until_accepted(count)
    await scene.until_full(count)
    await worker.wait_log("Commit metadata is too long for the brokers, committed without it")
    scene.failing = set()

    def committed() -> bool:
        return scene.commits.offset(0) == 2 and bool(finished_beyond(scene.commits.last[0]))

    await worker.wait_until(committed, what="to commit what is finished, and what fits")
    scene.answer_hanging()
    await scene.settle_and_check()
    scene.assert_nothing_repeated()


async def logger_away(scene: Scene) -> None:
    """No logger for longer than the group waits for a silent member: the worker stays one."""
    await scene.sink.down()
    scene.load.publish(1000)
    worker = await scene.ready_worker("a")
    await worker.wait_metric("order_relay_breaker_state", lambda state: state > 0)
    group = await scene.admin.settled_group(1)
    rebalances = (await worker.metrics())["faust_total_rebalances"]
    await asyncio.sleep(2 * SESSION_SECONDS)  # the outage itself, not a wait for something
    assert await worker.ready()
    assert await worker.live()
    assert await scene.stage.dead_letters() == []
    await scene.sink.up()
    await scene.settle_and_check()
    # Its coordinator may have changed, which does not affect the members.
    assert (await scene.admin.settled_group(1)).members == group.members
    assert (await worker.metrics())["faust_total_rebalances"] == rebalances
    scene.assert_nothing_repeated()


STORIES: tuple[Story, ...] = (
    killed_before_its_first_commit, killed_with_keys_in_backoff, killed_in_the_drain_of_a_stop,
    killed_in_a_rebalance, stopped_under_load, held_records, long_metadata, logger_away,
)  # fmt: skip


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
async def test_nothing_is_lost(stories: Stories, story: Story) -> None:
    """Nor repeated, except what was in flight or not yet committed at a kill."""
    await stories[story]
