"""``order-relay status``: the state of the shipped worker, and what needs a person."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from order_relay.fallback.store import NewMessage
from order_relay.fallback.table import FallbackTable
from tests.support.dead_letter_commands import relay_on
from tests.support.orders import order, orders
from tests.support.publish_command import Commands, nothing_in
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e


async def test_a_worker_that_is_well_and_one_that_is_not(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """0 without problems; 1 for open letters, FAILED rows, a refusing target, a silent worker."""
    sink.script = lambda request: Answer(422 if request.order_id == 7 else 200)
    commands = relay_on(stage, tmp_path)
    async with new_worker(
        database_url=commands.database_url,
        fallback_stats_interval_seconds=1,
        fallback_replay_interval_seconds=3600,
    ) as worker:
        url = f"http://127.0.0.1:{worker.web_port}"
        commands.environment["WEB_PORT"] = str(worker.web_port)
        await worker.wait_ready()
        await stage.publish(orders(5, first=100))
        await eventually(stage.all_committed, 30, "all orders are finished")

        async def counted() -> bool:
            ended = await commands("status", "--json")
            return ended.objects[0]["open_dead_letters"] is not None

        await eventually(counted, 30, "to know the open letters")
        (row,) = (await commands("status", "--json")).objects
        assert (row["url"], row["consumer"], row["problems"]) == (url, "order_logging", [])
        assert (row["target"], row["open_dead_letters"], row["failed_rows"]) == ("works", 0, 0)
        assert row["oldest_dead_letter_seconds"] == 0
        assert row["since_seconds"] > 0
        shown = (await commands.in_new_interpreter("status")).out.splitlines()
        # A worker without a partition delivers nothing, whatever the target does.
        assert shown[0].split()[:5] == ["worker", "consumer", "target", "partitions", "lag"]
        assert shown[1].split()[-5:-3] == [str(row["partitions"]), "0"]
        assert shown[1].split()[:4] == [url, "order_logging", "works", "for"]
        both = await commands("status", "--url", url, "--url", "http://127.0.0.1:1", statuses=(1,))
        assert "no worker answers at http://127.0.0.1:1" in both.err
        assert "order_logging" in both.out

        await stage.publish([order(7)])

        async def letter_noticed() -> bool:
            ended = await commands("status", "--json", statuses=(0, 1))
            (now,) = ended.objects
            assert (ended.status == 1) == (now["open_dead_letters"] == 1) == bool(now["problems"])
            return ended.status == 1

        await eventually(letter_noticed, 60, "to say that a letter is open")
        told = (await commands("status", statuses=(1,))).out
        assert re.search(
            rf"order_logging at {url}: 1 dead letter waits for a person, the oldest for \d+ s\. "
            rf"{url}/dead-letters\?consumer=order_logging",
            told,
        )

        sink.script = lambda request: Answer(401)
        table = FallbackTable(commands.database_url)
        await table.open()
        await table.save(NewMessage(stage.topic, b"1", b"{}", max_retry=0))
        async with table.engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE kafka_fallback_message SET status = 'FAILED'")
        await table.close()
        await stage.publish(orders(3, first=200))

        async def noticed() -> bool:
            ended = await commands("status", "--json", statuses=(0, 1))
            (now,) = ended.objects
            return len(now["problems"]) == 3 and ended.status == 1

        await eventually(noticed, 60, "to say all three")
        told = (await commands("status", statuses=(1,))).out
        assert f"order_logging at {url}: The target refuses our token, URL or certificate" in told
        row_told = "1 row of the fallback table waits for a person."
        assert f"{row_told} {url}/fallback?status=FAILED" in told


FIGURES = {
    "version": "1", "consumer": "order_logging", "consumers": ["order_logging"],
    "paused": False, "kafka_up": True, "in_flight": 0, "deleted_records": 0,
    "near_deletion_records": 0, "partitions": [{"lag": 7}, {"lag": None}],
    "target": {"state": "works", "since_seconds": 1, "said": "works for 1 s"},
    "open_dead_letters": {"total": 0, "oldest_seconds": 0, "deleted": 0},
    "fallback": {"database_up": True, "failed": 0, "files_replaced": 0},
}  # fmt: skip


@asynccontextmanager
async def worker_that_says(tmp_path: Path, **pages: Any) -> AsyncIterator[Commands]:
    """The commands, with a worker that has these pages."""

    async def page(request: web.Request) -> web.Response:
        return web.json_response(pages[request.path[1:]])

    application = web.Application()
    for name in pages:
        application.router.add_get(f"/{name}", page)
    async with TestServer(application) as server:
        yield Commands(tmp_path, web_port=server.port)


async def test_a_lag_that_is_not_known_is_not_zero(tmp_path: Path) -> None:
    """With a partition that is not measured, the lag is unknown."""
    async with worker_that_says(tmp_path, stats=FIGURES) as commands:
        assert (await commands("status", "--json")).objects[0]["lag"] is None
        assert re.search(r"works for 1 s +2 +\? +0 +0", (await commands("status")).out)


async def test_a_record_that_is_stuck_is_a_problem(tmp_path: Path) -> None:
    """Its handler hangs: the target has not failed, and nothing is delivered."""
    stuck = {
        "oldest_unfinished_seconds": 360.0, "breaker": {"state": "closed"},
        "deliveries": {"delivered": 0},
    }  # fmt: skip
    minutes = [
        {"at": time.time() - 60.0 * ago, "oldest_seconds": 60.0, "delivered": 0}
        for ago in range(5, -1, -1)
    ]
    async with worker_that_says(
        tmp_path, stats=FIGURES | stuck, history={"minutes": minutes, "target": []}
    ) as commands:
        told = (await commands("status", statuses=(1,))).out
        assert "A record is 6 min old and still not finished: its handler or the target" in told


async def test_no_worker_is_one_line(tmp_path: Path, sink: ScriptedSink) -> None:
    """Nothing listens, or another program does; the status is 2, also of a wrong URL."""
    commands = Commands(tmp_path, web_port=1)
    assert "no worker answers at http://127.0.0.1:1: " in await commands.refused("status")
    other = await commands.refused("status", "--json", "--url", sink.url)
    assert f"no worker answers at {sink.url}: " in other
    assert "must be an http:// or https:// URL" in await commands.refused("status", "--url", "x")
    assert nothing_in(tmp_path)
