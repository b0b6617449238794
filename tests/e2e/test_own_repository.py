"""A team's own repository with consumers: examples/own-repository, installed, tested and run."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.child import run
from tests.support.embedded import EmbeddedKafka
from tests.support.orders import order
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import ROOT, WorkerProcess

pytestmark = pytest.mark.e2e

LIMIT_SECONDS = 60


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(ROOT / "examples" / "own-repository", tmp_path / "repository"))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the engine alone, as a wheel installs it: none of our app, agents, tables."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "order_relay").symlink_to(ROOT / "order_relay")
    return folder


def test_its_own_tests_pass(repository: Path, installed: Path) -> None:
    """The handler is tested without Kafka and without a worker."""
    # The plugin of a library of our own tests needs more than is installed.
    ended = run(
        *("-m", "pytest", "-q", "-p", "no:cloudcoil"),
        folder=repository,
        PATH="",
        PYTHONPATH=installed,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout


def test_commands_work_on_its_consumers(repository: Path, installed: Path) -> None:
    """``order-relay`` finds the application in the current folder, as Faust does."""
    ended = run("-m", "order_relay", "check", folder=repository, PATH="", PYTHONPATH=installed)
    assert ended.stdout.startswith("ok   settings: the consumers are coupons\n"), ended.stderr
    assert "target of coupons" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_it_can_be_built(repository: Path, installed: Path, tmp_path: Path) -> None:
    """Its wheel has its consumers and its app."""
    ended = run(
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("-w", str(tmp_path), "."),
        folder=repository,
        PATH="",
        PYTHONPATH=installed,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (wheel,) = tmp_path.glob("shop_consumers-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"app.py", "agents/coupons.py"} <= set(archive.namelist())


async def test_its_worker_runs_its_consumers(
    embedded: EmbeddedKafka, stage: Stage, sink: ScriptedSink, repository: Path, installed: Path
) -> None:
    """Events are handled, a rejected one is a dead letter, and the commands know the consumer."""
    dlq_topic = f"{stage.topic}.coupons.DLQ"
    embedded.create_topic(dlq_topic)
    coupons = replace(stage, dlq_topic=dlq_topic, group_id=f"{stage.group_id}-coupons")
    worker = WorkerProcess(
        repository, stage, sink.url, coupons_topic=coupons.topic, coupons_group=coupons.group_id
    )
    worker.environment["PYTHONPATH"] = str(installed)
    await stage.publish([order(1), order(2, userId=0), order(3)])
    async with worker:
        await worker.wait_ready()
        await worker.wait_log("Publishing failed message to DLQ")
        await worker.wait_log("Fallback table opened")
        await eventually(coupons.all_committed, LIMIT_SECONDS, worker.log_text)
        assert len(worker.log_lines("Coupon issued")) == 2
        assert await worker.stop() == 0
    assert len(await coupons.dead_letters()) == 1
    assert sink.requests == []
    assert "Traceback" not in worker.log_text()
