"""The shop, the logger and the Kafka of the demo, each run alone."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from order_relay.settings import load_settings
from tests.support.child import ROOT, on_leash, run, until_sigterm
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.orders import orders
from tests.support.stage import Stage
from tests.support.waiting import eventually


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start a sample; it prints into a file of the folder."""
    with (folder / "output").open("wb") as log:
        return subprocess.Popen(
            on_leash(sys.executable, "-m", *command),
            cwd=folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@asynccontextmanager
async def running(folder: Path, *command: str, **environment: str) -> AsyncIterator[None]:
    """Run a sample, and stop it by SIGTERM with status 0."""
    process = start(folder, *command, **environment)
    async with until_sigterm(process, (folder / "output").read_text):
        yield


@asynccontextmanager
async def serving(
    folder: Path, module: str, option: str, *others: str
) -> AsyncIterator[aiohttp.ClientSession]:
    """A sample that serves HTTP, and a client of it."""
    (port,) = free_ports(1)
    async with (
        running(folder, module, option, str(port), *others),
        aiohttp.ClientSession(f"http://{LOOPBACK}:{port}") as session,
    ):

        async def up() -> bool:
            try:
                async with session.get("/") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(up)
        yield session


async def test_the_logger_by_itself(tmp_path: Path) -> None:
    """It listens on the given port and address, and counts its answers."""
    async with serving(tmp_path, "demo.logger", "--logger-port", "--host", LOOPBACK) as session:
        async with session.post("/logs", data=b"{}", headers={"Idempotency-Key": "a"}) as answer:
            assert answer.status == 201
        async with session.get("/") as response:
            figures = await response.json()
    assert figures["requests"] == figures["answers"]["accepted"] == 1


async def test_the_receiver_of_alerts(tmp_path: Path) -> None:
    """It prints a line with the runbook for each alert, and refuses other messages."""
    alert = {
        "status": "firing",
        "labels": {"alertname": "OrderRelayNoWorker", "severity": "critical"},
        "annotations": {
            "summary": "No worker answers Prometheus",
            "runbook_url": "docs/how-to/runbook.md#orderrelaynoworker",
            "console_url": "http://localhost:6066/",
        },
    }
    given: tuple[tuple[object, int], ...] = (
        ({"alerts": [alert]}, 200), ({}, 400), ([], 400), ({"alerts": [{}]}, 400),
    )  # fmt: skip
    async with serving(tmp_path, "demo.alert_receiver", "--port") as session:
        for message, status in given:
            async with session.post("/alerts", json=message) as response:
                assert response.status == status
    assert (tmp_path / "output").read_text() == (
        "FIRING critical OrderRelayNoWorker: No worker answers Prometheus "
        "(docs/how-to/runbook.md#orderrelaynoworker, http://localhost:6066/)\n"
    )


async def test_the_shop_by_itself(stage: Stage, postgres_url: str, tmp_path: Path) -> None:
    """Its orders reach Kafka through PostgreSQL's outbox; a second run creates new orders."""
    seen = 0
    for _ in range(2):
        async with running(
            tmp_path,
            *("demo.shop", "--rate", "100"),
            KAFKA_BOOTSTRAP_SERVERS=stage.bootstrap_servers,
            ORDER_PAID_TOPIC=stage.topic,
            DATABASE_URL=postgres_url,
        ):

            async def more(before: int = seen) -> bool:
                return len(await stage.records()) >= before + 20

            await eventually(more)
        seen = len(await stage.records())
    keys = [row.key for row in await stage.records()]
    assert len(set(keys)) == len(keys)


async def test_the_embedded_kafka_by_itself(tmp_path: Path) -> None:
    """The printed variables are valid settings; records can be published and read."""
    async with running(tmp_path, "demo.kafka"):
        output = tmp_path / "output"
        await eventually(lambda: re.search(r"TIMEOUT_MS=\d+\n", output.read_text()))
        printed = dict(re.findall(r"([A-Z_]+)=(\S+)", output.read_text()))
        settings = load_settings(**{name.lower(): value for name, value in printed.items()})
        assert not settings.kafka_declare_topics
        stage = Stage(settings.kafka_bootstrap_servers, "orders", "orders.DLQ", "group")
        published = await stage.publish(orders(3))
        assert {row.value for row in await stage.records()} == {one.value for one in published}


@pytest.mark.parametrize(
    ("command", "environment", "status", "complaint"),
    [
        (["demo.logger", "--logger-port", "0"], {}, 2, "0 is not in the range 1<=x<=65535"),
        (["demo.logger"], {"LOGGER_PORT": "x"}, 2, "(env var: 'LOGGER_PORT'): 'x' is not"),
        (["demo.shop", "--rate", "0"], {}, 2, "0.0 is not in the range 0.1<=x<=1000"),
        (["demo.kafka", "--port=1"], {}, 2, "No such option: --port"),
        (["demo.shop"], {"DATABASE_URL": "oracle://x"}, 1, "has the unknown driver 'oracle'"),
    ],
)
def test_a_mistake_gets_one_line(
    tmp_path: Path, command: list[str], environment: dict[str, str], status: int, complaint: str
) -> None:
    """A wrong option or setting ends it with one line that says what is allowed."""
    done = run("-m", *command, folder=tmp_path, **environment)
    assert done.returncode == status
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
