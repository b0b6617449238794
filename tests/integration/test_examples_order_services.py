"""The order services in examples/, each started as a user starts it, on a cluster.

An order that is paid over HTTP arrives in Kafka with its event id; one that is rolled back does
not.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from order_relay.fallback.sql.engine import make_engine
from order_relay.fallback.store import Status
from order_relay.model.events import decode_order_paid
from tests.support.child import on_leash
from tests.support.kafka.ports import free_ports
from tests.support.publish_fakes import Sent
from tests.support.publish_orders import statuses
from tests.support.publish_ways import LOOPBACK, read_topic
from tests.support.stage import Stage
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
END_SECONDS = 60.0
PORT = "{port}"


@dataclass(frozen=True)
class Example:
    """An order service.

    Attributes:
        name: Its folder in examples/.
        server: The arguments of Python that start it.
        database: The scheme of its DATABASE_URL.
        prepare: What is run before it.
        worker: What runs beside it.
        paths: Where orders are paid; the first one uses the outbox.
    """

    name: str
    server: tuple[str, ...]
    database: str = "sqlite"
    prepare: tuple[str, ...] = ()
    worker: tuple[str, ...] = ()
    paths: tuple[str, ...] = ("/orders",)


EXAMPLES = [
    Example(
        "fastapi",
        ("-m", "uvicorn", "app.main:app", "--port", PORT),
        database="sqlite+aiosqlite",
        paths=("/orders", "/orders/after-commit"),
    ),
    Example("flask", ("-m", "flask", "--app", "app", "run", "--port", PORT)),
    Example(
        "django",
        ("manage.py", "runserver", "--noreload", f"{LOOPBACK}:{PORT}"),
        prepare=("manage.py", "migrate"),
        worker=("manage.py", "publish_orders"),
    ),
]


@dataclass(frozen=True)
class Service:
    """An order service that runs."""

    example: Example
    url: str
    engine: AsyncEngine
    http: aiohttp.ClientSession

    async def pay(self, path: str, user_id: int, card: str = "4242") -> tuple[int, dict[str, Any]]:
        """Pay an order; returns the status and the answer."""
        order = {
            "userId": user_id,
            "orderItems": [{"productId": 1, "orderQuantity": 2}],
            "card": card,
        }
        async with self.http.post(self.url + path, json=order) as answer:
            return answer.status, await answer.json()


@contextlib.asynccontextmanager
async def running(
    arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Python with these arguments in the example's folder; Ctrl-C ends it cleanly."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *on_leash(sys.executable, *arguments),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Processes in the background of a shell ignore Ctrl-C.
            preexec_fn=_allow_interrupts,
        )
    try:
        yield process
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), END_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    check_log(log)


def _allow_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def check_log(log: Path) -> None:
    """Fail with the whole log if it has a stack trace."""
    text = log.read_text(encoding="utf-8")
    assert "Traceback" not in text, text


def installed(folder: Path) -> str:
    """A folder with the package alone, as pip installs it, without this project's ``app``."""
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "order_relay").symlink_to(ROOT / "order_relay")
    return str(folder / "site-packages")


@pytest.fixture(params=EXAMPLES, ids=lambda example: example.name)
async def service(
    request: pytest.FixtureRequest, stage: Stage, tmp_path: Path
) -> AsyncIterator[Service]:
    """Each example in turn, with a database of its own."""
    example: Example = request.param
    (port,) = free_ports(1)
    database = tmp_path / "shop.db"
    # As users have it: without the settings of the test run.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
        "PYTHONPATH": installed(tmp_path), "PYTHONDONTWRITEBYTECODE": "1",
        "DATABASE_URL": f"{example.database}:///{database}",
        "KAFKA_BOOTSTRAP_SERVERS": stage.bootstrap_servers, "ORDER_PAID_TOPIC": stage.topic,
        "FALLBACK_REPLAY_INTERVAL_SECONDS": "0.5",
    }  # fmt: skip
    folder = ROOT / "examples" / example.name
    if example.prepare:
        log = tmp_path / "prepare.log"
        async with running(example.prepare, folder, environment, log) as process:
            assert await asyncio.wait_for(process.wait(), START_SECONDS) == 0, log.read_text()
    server = tuple(argument.replace(PORT, str(port)) for argument in example.server)
    async with contextlib.AsyncExitStack() as stack:
        if example.worker:
            log = tmp_path / "worker.log"
            await stack.enter_async_context(running(example.worker, folder, environment, log))
        log = tmp_path / "server.log"
        await stack.enter_async_context(running(server, folder, environment, log))
        engine = make_engine(f"sqlite:///{database}")
        stack.push_async_callback(engine.dispose)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://{LOOPBACK}:{port}"

        async def answers() -> bool:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with http.get(url + "/orders") as answer:
                    return answer.status == 405  # orders are posted
            return False

        await eventually(answers, START_SECONDS, log.read_text)
        yield Service(example, url, engine, http)


async def test_paid_orders_are_published_and_those_rolled_back_are_not(
    service: Service, stage: Stage
) -> None:
    """Of two orders, the one whose card is declined leaves no row and no event."""
    paid: dict[str, int] = {}
    for user_id, path in enumerate(service.example.paths):
        status, answer = await service.pay(path, user_id, card="declined")
        assert (status, answer) == (402, {"detail": "payment declined"})
        status, answer = await service.pay(path, user_id)
        assert (status, list(answer)) == (201, ["orderId"])
        paid[f"order-{answer['orderId']}-paid"] = user_id

    async def events_in_kafka() -> list[Sent]:
        found = await asyncio.to_thread(read_topic, stage.bootstrap_servers, stage.topic)
        return found if len(found) >= len(paid) else []

    records = await eventually(events_in_kafka)
    orders = {record.event_id: decode_order_paid(record.value) for record in records}
    assert {event_id: order.userId for event_id, order in orders.items()} == paid
    for record in records:
        assert record.key == str(orders[record.event_id].orderId).encode()

    async def row_is_settled() -> bool:
        return await statuses(service.engine) == [Status.PUBLISHED]

    await eventually(row_is_settled)
