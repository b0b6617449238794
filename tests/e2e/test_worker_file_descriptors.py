"""The shipped worker with few file descriptors and many silent clients."""

import asyncio

import pytest

from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import event_ids, order_value, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e

SOFT, HARD = 64, 200
SILENT = 300


async def test_few_file_descriptors_and_many_silent_connections(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Every order is delivered, none is given up; one line says that descriptors are few."""
    sink.script = lambda _: Answer(delay_seconds=0.05)  # keeps many in flight
    worker = new_worker(max_in_flight=None)
    async with worker.limit_file_descriptors(SOFT, HARD):
        await worker.wait_ready()
        silent = [await asyncio.open_connection(LOOPBACK, worker.web_port) for _ in range(SILENT)]
        published = await stage.publish(orders(300))
        for number in range(1001, 1021):
            _, answer = await worker.post_order(order_value(number), event_id=str(number))
            assert answer["status"] == "published"
        await sink.wait_for(lambda s: len(s.accepted) >= 320, timeout=60)
        assert sorted(sink.accepted_keys) == sorted(
            [*event_ids(published), *map(str, range(1001, 1021))]
        )
        assert await worker.live()
        metrics = await worker.metrics()
        assert metrics["process_max_fds"] == HARD
        assert metrics['order_relay_delivery_attempts_total{result="local",status="local"}'] == 0
        assert metrics['order_relay_web_connections_closed_total{reason="crowded"}'] > 0
        for _, writer in silent:
            writer.close()
        assert await worker.stop() == 0
    assert await stage.dead_letters() == []
    (line,) = worker.log_lines("File descriptors are few")
    assert f"obtainable={HARD} " in line
