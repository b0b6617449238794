"""The deliveries table on real Kafka: after kills and rebalances, and over several workers."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.kafka.administration import Administration
from tests.kafka.scene import SESSION
from tests.support.kafka.cluster import RealKafka
from tests.support.orders import Order, order
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

LIMIT_SECONDS = 120.0


def paid(first: int, last: int) -> list[Order]:
    """Orders whose events have ids, as the publisher sets them."""
    return [order(n, event_id=f"paid-{n}") for n in range(first, last + 1)]


async def until_finished(stage: Stage, sink: ScriptedSink, last: int) -> None:
    """Wait until the events 1 to ``last`` were accepted, and everything is committed."""
    wanted = {f"paid-{n}" for n in range(1, last + 1)}
    await eventually(lambda: wanted <= set(sink.accepted_keys), LIMIT_SECONDS, sink.summary)
    await eventually(stage.all_committed, LIMIT_SECONDS, "everything is committed")


async def states(worker: WorkerProcess, first: int, last: int) -> Counter[str]:
    """Count these orders by the state that a worker reports, or by the status of its answer."""

    async def state(order_id: int) -> str:
        answer = await worker.get(f"/orders/{order_id}")
        assert answer is not None
        return json.loads(answer[1]).get("state") or str(answer[0])

    found: Counter[str] = Counter()
    for begin in range(first, last + 1, 20):
        chunk = range(begin, min(begin + 20, last + 1))
        found.update(await asyncio.gather(*(state(order_id) for order_id in chunk)))
    return found


async def until_known(worker: WorkerProcess, last: int) -> None:
    """Wait until a worker reports all orders from 1 to this one as delivered."""

    async def known() -> bool:
        return await states(worker, 1, last) == {"delivered": last}

    await eventually(known, LIMIT_SECONDS, f"{worker.name} knows {last} orders")


async def duplicates(*workers: WorkerProcess) -> float:
    """The number of duplicates that these workers found."""
    name = 'order_relay_deliveries_total{outcome="duplicate"}'
    return sum([(await worker.metrics())[name] for worker in workers])


async def test_orders_do_not_wait_for_a_changelog_that_cannot_be_made(
    kafka: RealKafka, stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """One line reports it; deliveries and commits continue without the table."""
    for topic in (stage.topic, stage.dlq_topic):
        kafka.create_topic(topic, 3)
    async with WorkerProcess(
        tmp_path, stage, sink.url, topic_replication_factor=5, **SESSION
    ) as worker:
        await worker.wait_ready()
        await stage.publish(paid(1, 50))
        await until_finished(stage, sink, 50)
        (line,) = worker.log_lines("its changelog is not made by Kafka")
        assert "replication" in line.lower()
        assert await worker.stop() == 0


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_a_killed_worker_comes_back_and_knows(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, store: str
) -> None:
    """After a kill -9 under load every order is known, and delivered orders are not repeated."""
    async with WorkerProcess(
        tmp_path, stage, sink.url, deliveries_store=store, max_in_flight=20, **SESSION
    ) as worker:
        await worker.wait_ready()
        await stage.publish(paid(1, 300))
        await until_finished(stage, sink, 300)
        sink.script = lambda request: Answer(delay_seconds=0.1)
        await stage.publish(paid(301, 600))
        await sink.wait_for(lambda s: len(s.accepted) > 350, timeout=LIMIT_SECONDS)
        worker.kill9()
        # The logger still reads requests sent before the kill.
        await eventually(lambda: sink.open_requests == 0, LIMIT_SECONDS, "the sink at rest")
        # A service without an answer publishes again.
        await stage.publish(paid(1, 600))
        at_kill = {request.idempotency_key for request in sink.requests}
        worker.start()
        await until_finished(stage, sink, 600)

        assert await states(worker, 1, 600) == {"delivered": 600}
        assert await states(worker, 601, 605) == {"404": 5}
        repeated = {one for one, count in Counter(sink.accepted_keys).items() if count > 1}
        # Only orders without a stored entry: about 20 in flight, and those of the last 50 ms.
        assert repeated <= at_kill - {f"paid-{n}" for n in range(1, 301)}
        assert await duplicates(worker) >= 600 - len(repeated)
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log_text()


async def test_every_worker_answers_for_all(
    kafka: RealKafka, stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """Each of two workers answers for every order, also after a join and a kill.

    The changelog is compacted, and as wide as its source, which differs from TOPIC_PARTITIONS.
    """
    kafka.create_topic(stage.topic, 5)
    admin = Administration(stage)
    async with (
        WorkerProcess(tmp_path, stage, sink.url, name="a", **SESSION) as a,
        WorkerProcess(tmp_path, stage, sink.url, name="b", **SESSION) as b,
    ):
        await a.wait_ready()
        await stage.publish(paid(1, 200))
        await until_finished(stage, sink, 200)
        await admin.settled_group(2)
        for worker in (a, b):
            await worker.wait_ready()
            await until_known(worker, 200)
            assert await states(worker, 201, 205) == {"404": 5}
        changelog = f"{stage.group_id}-deliveries-changelog"
        assert len(await admin.replication(changelog)) == 5
        assert await admin.topic_config(changelog, "cleanup.policy") == "compact"
        # What one delivered, the other does not deliver again.
        await stage.publish(paid(1, 300))
        await until_finished(stage, sink, 300)
        assert set(Counter(sink.accepted_keys).values()) == {1}
        assert await duplicates(a, b) == 200

        a.kill9()
        # A dead worker's orders are not reported as unknown.
        assert set(await states(b, 1, 300)) <= {"delivered", "503"}
        await until_known(b, 300)
        await stage.publish(paid(1, 300))
        await eventually(stage.all_committed, LIMIT_SECONDS, "everything is committed")
        assert set(Counter(sink.accepted_keys).values()) == {1}
        assert await b.stop() == 0
