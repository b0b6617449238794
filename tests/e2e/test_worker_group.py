"""Shipped workers share the work of one consumer group."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.embedded import EmbeddedKafka
from tests.support.orders import event_ids, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.e2e


async def _partitions(worker: WorkerProcess) -> set[int]:
    """The partitions that a worker has, by its lag metric."""
    found = (re.search(r'consumer_lag\{partition="(\d+)"', name) for name in await worker.metrics())
    return {int(match.group(1)) for match in found if match is not None}


def _assert_keys_in_order(sink: ScriptedSink) -> None:
    """First deliveries of each key came in its order; repeats may follow."""
    for key, requests in sink.by_key().items():
        firsts = list(dict.fromkeys(request.order_id or 0 for request in requests))
        assert firsts == sorted(firsts), f"{key} out of order"


async def _sync_last(leader: WorkerProcess, follower: WorkerProcess, rejoins: int = 0) -> None:
    """Let the group's leader, which has rejoined so often before, come last to the next rebalance.

    The mock brokers take the leader's plan as the end of the rebalance and answer a follower that
    asks for its share later with an error, so the leader is held until the follower has asked.
    """
    for worker, times in ((leader, rejoins + 1), (follower, 1)):
        await worker.wait_until(
            lambda w=worker, n=times: len(w.log_lines("(Re-)joining group")) >= n,  # type: ignore[misc]
            what="to join",
        )
    leader.freeze()
    await follower.wait_until(lambda: follower.log_lines("Joined group"), what="to have joined")
    leader.thaw()


async def test_two_workers_share_the_partitions(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """Two workers of one group have different partitions, and deliver everything once."""
    fragile.set_first_join_delay(8)  # they join together
    stage = fragile.stage()
    published = await stage.publish(orders(1000, keys=100))
    async with WorkerProcess(tmp_path, stage, f"{sink.url}/one", name="one") as one:
        await one.wait_log("(Re-)joining group")
        async with WorkerProcess(tmp_path, stage, f"{sink.url}/two", name="two") as two:
            await _sync_last(one, two)
            await sink.wait_for(lambda s: len(s.accepted) >= len(published), timeout=60)

            async def share() -> bool:
                ones, twos = await _partitions(one), await _partitions(two)
                return bool(ones and twos) and not ones & twos and len(ones | twos) == 3

            await eventually(share, 30, "the three partitions are shared")
            await eventually(stage.all_committed, 20, "everything is committed")
            one.sigterm()
            two.sigterm()
            assert (await one.wait(), await two.wait()) == (0, 0)
    assert {request.path for request in sink.requests} == {"/logs/one", "/logs/two"}
    assert Counter(sink.accepted_keys) == Counter(event_ids(published))
    _assert_keys_in_order(sink)


async def test_a_worker_that_joins_under_load_loses_nothing(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """In the midst of deliveries a second worker takes its share; nothing is lost or reordered."""
    sink.script = lambda request: Answer(delay_seconds=0.05)
    published = await stage.publish(orders(3000, keys=300))
    everything = set(event_ids(published))
    async with WorkerProcess(
        tmp_path, stage, f"{sink.url}/one", name="one", max_in_flight=10
    ) as one:
        await sink.wait_for(lambda s: len(s.accepted) > 100, timeout=60)
        async with WorkerProcess(tmp_path, stage, f"{sink.url}/two", name="two") as two:
            await two.wait_log("(Re-)joining group")
            await _sync_last(one, two, rejoins=1)
            await sink.wait_for(lambda s: set(s.accepted_keys) >= everything, timeout=100)
            await eventually(stage.all_committed, 20, "everything is committed")
            assert "Traceback" not in one.log_text() + two.log_text()
    assert not await stage.dead_letters()
    assert {request.path for request in sink.requests} == {"/logs/one", "/logs/two"}
    _assert_keys_in_order(sink)
