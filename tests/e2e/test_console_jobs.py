"""Jobs of the console that change many letters: two at once, and a worker that is killed."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.dead_letter_commands import letter, put_letters, relay_on
from tests.support.http_request import ask
from tests.support.orders import order
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.e2e

LETTERS = 400
CHANGE = {"consumer": "order_logging", "filter": {}, "dry_run": False, "actor": "Ada"}


async def redrive(worker: WorkerProcess, **more: object) -> str:
    """Begin to redrive all letters; returns the job."""
    url = f"http://127.0.0.1:{worker.web_port}/dead-letters/redrive"
    return str((await ask(url, "POST", json=CHANGE | more)).json["job"])


async def ended(worker: WorkerProcess, job: str) -> dict[str, Any]:
    """The job's end."""

    async def found() -> dict[str, Any] | None:
        state: dict[str, Any] = await worker.json(f"/jobs/{job}")
        return state if state["ended"] else None

    return await eventually(found, 60) or {}


async def test_jobs_of_two_people_and_of_a_killed_worker(stage: Stage, tmp_path: Path) -> None:
    """After a kill, the rest stays open. Two jobs at once redrive each letter once."""
    await put_letters(
        stage, [replace(letter(n), value=order(n).value, partition=n % 3) for n in range(LETTERS)]
    )
    commands = relay_on(stage, tmp_path)
    async with (
        ScriptedSink() as sink,
        WorkerProcess(tmp_path / "one", stage, sink.url, name="one") as one,
        WorkerProcess(tmp_path / "two", stage, sink.url, name="two") as two,
    ):
        for worker in (one, two):
            await worker.wait_ready()

        async def under_way(job: str) -> bool:
            return int((await one.json(f"/jobs/{job}"))["done"]) >= 40

        job = await redrive(one, rate=40)
        await eventually(lambda: under_way(job), 60)
        state = await one.json(f"/jobs/{job}")
        assert (state["total"], state["ended"]) == (LETTERS, False)
        one.kill9()
        published = Counter(row.text("event-id") for row in await stage.records())
        left = len((await commands("dlq", "list", "--json", "--limit", str(LETTERS))).objects)
        # Published, and not committed yet: at most the batch that was under way.
        assert LETTERS - len(published) <= left <= LETTERS - len(published) + 10
        assert 0 < left < LETTERS
        one.start()
        await one.wait_ready()

        # On one worker: the embedded cluster does not show a group's members, and refuses commits
        # while another member joins. tests/kafka tests two workers.
        jobs = await asyncio.gather(redrive(one), redrive(one))
        results = [await ended(one, job) for job in jobs]
        assert sorted(int(result["done"]) for result in results) == [0, left], results
        assert (await ended(two, await redrive(two)))["done"] == 0
        assert (await commands("dlq", "list")).err == "No letters\n"
        twice = Counter(row.text("event-id") for row in await stage.records())
        assert len(twice) == LETTERS
        assert sum(twice.values()) - LETTERS == left - (LETTERS - len(published))
        await sink.wait_for(lambda s: len(s.accepted) >= LETTERS, timeout=60)
        assert len({event for event, _ in sink.accepted}) == LETTERS
