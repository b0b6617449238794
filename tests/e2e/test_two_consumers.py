"""The shipped worker with a consumer from a folder that leaves threads or tasks, or is redriven."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.dead_letter_commands import letter, put_letters, relay_on
from tests.support.orders import orders
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import NewWorker, consumers_in

pytestmark = pytest.mark.e2e

STUCK = """
import time
from pathlib import Path

from order_relay import Consumer, OrderPaid

stuck = Consumer("stuck", topic="orders", group="stuck", event=OrderPaid)


@stuck.handler
def handle(order, delivery):
    Path("called").touch()
    while True:
        time.sleep(1)
"""

COUPONS = """
from pathlib import Path

from order_relay import Consumer

coupons = Consumer("coupons", topic="orders", group="coupons", event=bytes)


@coupons.handler
async def issue(order, delivery):
    with Path("handled").open("a") as handled:
        handled.write(f"{delivery.idempotency_key}\\n")
"""


async def test_a_thread_that_never_returns_does_not_keep_a_worker_from_ending(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """SIGTERM ends the worker with 0; only the stuck consumer's record is not committed."""
    folder = consumers_in(tmp_path, "stuck.py", STUCK)
    group = f"{stage.group_id}-stuck"
    await stage.publish(orders(20))
    async with new_worker(
        consumer_folders=folder,
        stuck_topic=stage.topic,
        stuck_group=group,
        shutdown_grace_seconds=1,
    ) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == 20, timeout=60)
        await worker.wait_until((tmp_path / "called").exists, what="to call the function")
        worker.sigterm()
        assert await worker.wait(60) == 0
    assert worker.log_lines("Process ends beside threads that do not return threads=handler_0")
    assert await stage.all_committed()
    assert not await replace(stage, group_id=group).all_committed()


IN_THREADS = """
import asyncio
import time
from pathlib import Path

from order_relay import Consumer, OrderPaid

hangs = Consumer("hangs", topic="orders", group="hangs", event=OrderPaid)
works = Consumer("works", topic="orders", group="works", event=OrderPaid)


def hang(order):
    Path(f"hangs-{order.orderId}").touch()
    time.sleep(3600)


@hangs.handler
async def handle(order, delivery):
    await asyncio.to_thread(hang, order)


@works.handler
async def work(order, delivery):
    await asyncio.to_thread(Path(f"works-{order.orderId}").touch)
"""


async def test_calls_that_hang_in_threads_delay_no_other_consumer(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """``asyncio.to_thread`` has ``max_in_flight`` threads for each consumer, not some for all."""
    folder = consumers_in(tmp_path, "in_threads.py", IN_THREADS)
    topics = {f"{name}_topic": stage.topic for name in ("hangs", "works")}
    groups = {f"{name}_group": f"{stage.group_id}-{name}" for name in ("hangs", "works")}

    def called(name: str) -> int:
        return len(list(tmp_path.glob(f"{name}-*")))

    async with new_worker(consumer_folders=folder, **topics, **groups) as worker:
        await stage.publish(orders(40))
        await worker.wait_until(lambda: called("hangs") == 40, what="to hang")
        await stage.publish(orders(20, first=41))
        await worker.wait_until(lambda: called("works") == 60, what="to work")
        await sink.wait_for(lambda s: len(s.accepted) == 60, timeout=60)
        assert await worker.stop() == 0


async def test_a_letter_is_redriven_for_the_consumer_that_gave_it_up(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Other consumers skip and commit it, even an old letter without a consumer's name."""
    folder = consumers_in(tmp_path, "coupons.py", COUPONS)
    of_coupons = replace(
        stage, dlq_topic=f"{stage.topic}.coupons.DLQ", group_id=f"{stage.group_id}-coupons"
    )
    settings: dict[str, Any] = {
        "consumer_folders": folder,
        "coupons_topic": of_coupons.topic,
        "coupons_group": of_coupons.group_id,
    }
    await put_letters(
        of_coupons, [letter(1, headers=(("dlq-consumer", b"coupons"),)), letter(2), letter(3)]
    )
    commands = relay_on(stage, tmp_path, **settings)
    unsaid = await commands("dlq", "redrive", "--all", "--yes", statuses=(2,))
    assert unsaid.only_line == "Error: --consumer must name one of: order_logging, coupons"
    await commands("dlq", "redrive", "0:0", "0:1", "--yes", "--consumer", "coupons")

    async with new_worker(**settings) as worker:
        await worker.wait_until(stage.all_committed, what="to commit what it skips")
        await worker.wait_until(of_coupons.all_committed, what="to commit what it handles")
        assert await worker.stop() == 0
    handled = (tmp_path / "handled").read_text(encoding="utf-8").splitlines()
    assert sorted(handled) == ["paid-1", "paid-2"]
    assert not sink.requests
    assert not await stage.dead_letters()


LEAVES_TASKS = """
import asyncio
import sys
from pathlib import Path

from order_relay import Consumer, OrderPaid

tasks = []


async def goes_on():
    while True:
        try:
            await asyncio.sleep(3600)
        except:
            pass


async def exits():
    sys.exit()


async def handle(order, delivery):
    asyncio.create_task(goes_on())
    Path(f"handled-{order.orderId}").touch()
    if order.orderId == 99 and not Path("exited").exists():
        Path("exited").touch()
        tasks.append(asyncio.create_task(exits()))


leaves = Consumer("leaves", topic="orders", group="leaves", event=OrderPaid, handler=handle)
"""


async def test_tasks_of_a_handlers_own_neither_keep_a_worker_nor_end_it_with_0(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """sys.exit() in a task ends the worker with 1 and a log line, although another task never ends.

    No record is lost.
    """
    folder = consumers_in(tmp_path, "leaves.py", LEAVES_TASKS)
    async with new_worker(
        consumer_folders=folder, leaves_topic=stage.topic, leaves_group=f"{stage.group_id}-leaves"
    ) as worker:
        await stage.publish(orders(3))
        await sink.wait_for(lambda s: len(s.accepted) == 3, timeout=60)
        await stage.publish(orders(1, first=99))
        assert await worker.wait() == 1
        assert worker.log_lines("Worker ended though no signal asked it to")
        published = await stage.publish(orders(1, first=100))
        worker.start()
        await sink.wait_for(lambda s: published[0].event_id in s.accepted_keys, timeout=60)
        await worker.wait_until((tmp_path / "handled-100").exists, what="to call the function")
        assert await worker.stop() == 0
    assert {"1", "2", "3", "99", "100"} == {request.key for request in sink.requests}
