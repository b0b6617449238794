"""The shipped worker's log in any locale and into an unread pipe; and its signals."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.orders import event_ids, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import NewWorker, consumers_in

pytestmark = pytest.mark.e2e

# ASCII; Python must not choose UTF-8 instead.
POOR_LOCALE: dict[str, Any] = {"lc_all": "C", "pythonutf8": 0, "pythoncoerceclocale": 0}


PRINTS = """
from order_relay import Consumer, OrderPaid

prints = Consumer("prints", topic="orders", group="prints", event=OrderPaid)


@prints.handler
async def handle(order, delivery):
    print("x" * 1000)
"""


async def test_an_unread_log_and_signals_do_not_stop_deliveries(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """A full pipe and SIGUSR2 delay nothing, even if a consumer prints; SIGHUP stops the worker.

    The first line names topics, groups and targets.
    """
    failed: set[str] = set()

    def once(key: str) -> Answer:
        if key in failed:
            return Answer()
        failed.add(key)
        # The log has this text: more than a pipe holds.
        return Answer(500, body=b"\xc3\xa4" * 300)

    sink.script = lambda request: once(request.idempotency_key)
    published = await stage.publish(orders(400))
    async with new_worker(
        breaker_failure_threshold=0,
        consumer_folders=consumers_in(tmp_path, "prints.py", PRINTS),
        prints_topic=stage.topic,
        prints_group=f"{stage.group_id}-prints",
        **POOR_LOCALE,
    ).log_into_pipe() as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=120)
        worker.send_signal(signal.SIGUSR2)
        published += await stage.publish(orders(1, first=1000))
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=60)
        worker.read_log()
        await worker.wait_log("Stacks of all threads")
        worker.send_signal(signal.SIGHUP)
        assert await worker.wait() == 0
    assert sorted(sink.accepted_keys) == sorted(event_ids(published))
    assert await stage.all_committed()
    first, *others = worker.log_text().splitlines()
    assert first.startswith("Worker starting version=")
    assert f"consumers=order_logging,prints topic={stage.topic},{stage.topic} " in first
    assert f"group={stage.group_id}," in first
    assert f"target={sink.url},handle dead_letters={stage.dlq_topic}," in first
    assert not [line for line in others if "\N{BOX DRAWINGS LIGHT VERTICAL}" in line]
    assert "x" * 1000 in worker.log_text()
    assert "Traceback" not in worker.log_text()
    assert "Signal received: " in worker.log_text()


async def test_a_worker_without_streams_starts_and_delivers(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """It delivers with closed stdin and stderr, and a full stdout."""
    async with new_worker().redirect("<&- 2>&- >/dev/full") as worker:
        await stage.publish(orders(3))
        await worker.wait_until(lambda: len(sink.accepted) == 3, what="to deliver")
        assert await worker.stop() == 0
    assert await stage.all_committed()
