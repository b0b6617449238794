"""The console of any worker shows all workers and all consumers."""

from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.kafka.coupons import COUPONS
from tests.support.kafka.cluster import RealKafka
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess, consumers_in

TOKEN = "s3cret"


@pytest.fixture
def stage(kafka: RealKafka, stage: Stage) -> Stage:
    """A topic with one partition, so that a second worker of a consumer is idle."""
    kafka.create_topic(stage.topic, 1)
    kafka.create_topic(stage.dlq_topic, 1)
    return stage


def url(worker: WorkerProcess, path: str = "/") -> str:
    """The address of a page."""
    return f"http://127.0.0.1:{worker.web_port}{path}"


async def test_idle_workers_and_consumers_of_other_processes_are_shown(
    stage: Stage, tmp_path: Path
) -> None:
    """A pause reaches the idle worker, and pages of a consumer lead to a worker that runs it."""
    folder = consumers_in(tmp_path, "coupons.py", COUPONS)
    (folder / "mood").write_text("well", encoding="utf-8")
    async with ScriptedSink() as sink, AsyncExitStack() as running:
        workers = []
        for name, consumers in (("a", "order_logging"), ("b", "order_logging"), ("c", "coupons")):
            worker = WorkerProcess(
                tmp_path / name, stage, sink.url, name=name, api_token=TOKEN,
                consumers=consumers, consumer_folders=folder, coupons_topic=stage.topic,
                coupons_group=f"{stage.group_id}-coupons",
            )  # fmt: skip
            workers.append(await running.enter_async_context(worker))
        *pair, three = workers
        await three.wait_ready()

        async def one_has_the_partition() -> bool:
            return [await worker.ready() for worker in pair].count(True) == 1

        await eventually(one_has_the_partition, 60)
        one, two = pair if await pair[0].ready() else reversed(pair)

        async def shown(by: WorkerProcess) -> bool:
            answer = await by.get("/")
            return answer is not None and all(url(worker) in answer[1] for worker in workers)

        for worker in workers:
            await eventually(lambda by=worker: shown(by), 60)  # type: ignore[misc]
        answer = await one.get("/")
        assert answer is not None
        assert f'href="{url(three)}dead-letters?consumer=coupons"' in answer[1]
        async with aiohttp.ClientSession() as client:
            async with client.get(url(one, "/dead-letters?consumer=coupons")) as page:
                assert (page.status, page.url.port) == (200, three.web_port)
            async with client.post(
                url(two, "/consumers/pause"),
                json={"consumer": "order_logging", "dry_run": False, "actor": "Ada"},
                headers={"Authorization": f"Bearer {TOKEN}"},
            ) as changed:
                assert "on all others" in (await changed.json())["text"]
        for worker, paused in ((one, True), (two, True), (three, False)):
            assert (await worker.json("/stats"))["paused"] is paused
