"""Shipped workers share the work of one consumer group."""

import re
from pathlib import Path

import pytest

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


async def _rejoin_last(leader: WorkerProcess, follower: WorkerProcess) -> None:
    """Let the group's leader come last to the rebalance that the follower's joining causes.

    The mock brokers take the leader's plan as the end of the rebalance and answer a follower that
    asks for its share later with an error, so the leader is held until the follower has asked.
    """
    await follower.wait_log("(Re-)joining group")
    await leader.wait_until(
        lambda: len(leader.log_lines("(Re-)joining group")) == 2, what="to join anew"
    )
    leader.freeze()
    await follower.wait_log("Joined group")
    leader.thaw()


async def test_a_worker_that_joins_under_load_takes_its_share(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """In the midst of deliveries partitions move to a second worker; nothing is lost or reordered.

    The mock brokers take no commits during a rebalance (Kafka does), so what finished since the
    last one repeats here.
    """
    sink.script = lambda request: Answer(delay_seconds=0.05)
    published = await stage.publish(orders(3000, keys=300))
    everything = set(event_ids(published))
    async with WorkerProcess(
        tmp_path, stage, f"{sink.url}/one", name="one", max_in_flight=10
    ) as one:
        await sink.wait_for(lambda s: len(s.accepted) > 100, timeout=60)
        async with WorkerProcess(tmp_path, stage, f"{sink.url}/two", name="two") as two:
            await _rejoin_last(one, two)

            async def share() -> bool:
                ones, twos = await _partitions(one), await _partitions(two)
                return bool(ones and twos) and not ones & twos and len(ones | twos) == 3

            await eventually(share, 30, "the three partitions are shared")
            await sink.wait_for(lambda s: set(s.accepted_keys) >= everything, timeout=60)
            await eventually(stage.all_committed, 20, "everything is committed")
            for worker in (one, two):
                worker.sigterm()
            assert (await one.wait(), await two.wait()) == (0, 0)
            assert "Traceback" not in one.log_text() + two.log_text()
    assert not await stage.dead_letters()
    assert {request.path for request in sink.requests} == {"/logs/one", "/logs/two"}
    for key, requests in sink.by_key().items():
        firsts = list(dict.fromkeys(request.order_id or 0 for request in requests))
        assert firsts == sorted(firsts), f"{key} out of order"
