"""No secret is shown: a worker has every secret, and each operation succeeds and fails once."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from standardwebhooks import Webhook

from order_relay.settings import Settings
from order_relay.settings.secret_files import secret_fields
from tests.support.embedded import EmbeddedKafka
from tests.support.http_request import ask
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import Order, order, order_value
from tests.support.publish_command import Commands
from tests.support.publish_postgres import PostgresServer, unavailable_reason
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# With characters that URLs, JSON and headers escape.
SECRETS = {name: f"7h/+@-{name}-n0t-t0-b3-s33n" for name in secret_fields(Settings)}
SECRETS["external_logger_signing_secrets"] = "7h/+signingn0tt0b3s33n" * 2
NEW_KEY = "n3w/+signingn0tt0b3s33n+" * 2
LIMIT_SECONDS = 60.0


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A database server that the test can stop."""
    if reason := unavailable_reason():
        pytest.skip(reason)
    server = PostgresServer()
    yield server
    server.close()


class Seen:
    """All output that could show a secret, by location."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def add(self, location: str, what: object) -> None:
        """Keep the output of a location."""
        self._texts[location] = what if isinstance(what, str) else repr(what)

    def found(self) -> list[str]:
        """The secrets found and their locations, in any encoding."""
        return [
            f"{name} in {location}"
            for location, text in self._texts.items()
            for name, secret in (SECRETS | {"new key": NEW_KEY}).items()
            for written in _ways_to_write(secret)
            if written in text
        ]

    def nothing_is_empty(self) -> bool:
        """Whether each location had output."""
        return all(self._texts.values())


def _ways_to_write(secret: str) -> set[str]:
    encoded = base64.b64encode(secret.encode()).decode()

    return {secret, quote(secret, safe=""), quote(secret), secret[:20], encoded, secret.swapcase()}


def _given(way: str, folder: Path, database: str, proxy_port: int) -> dict[str, Any]:
    """Settings with all secrets, each as a variable or as a file."""
    secrets = dict(SECRETS)
    password = quote(secrets["external_logger_proxy"], safe="")
    secrets["external_logger_proxy"] = f"http://us:{password}@{LOOPBACK}:{proxy_port}"
    secrets["external_logger_headers"] = f"X-Api-Key: {secrets['external_logger_headers']}"
    secrets["external_logger_signing_secrets"] += f",whsec_{NEW_KEY}"
    if way == "variables":
        # Here the password is in the URL; setting it twice is an error.
        password = secrets.pop("database_password")
        secrets["database_url"] = database.replace("@", f":{quote(password, safe='')}@", 1)
        return dict(secrets)
    secrets["database_url"] = database
    for name, secret in secrets.items():
        (folder / name).write_text(f"{secret}\n", encoding="utf-8")
    return {f"{name}_file": folder / name for name in secrets}


def _echo(request: Received) -> Answer:
    """Answer with all request headers, token and key included, in every kind of refusal."""
    assert request.headers["x-api-key"] == SECRETS["external_logger_headers"]
    status = {2: 422, 3: 503, 4: 401, 5: 302}.get(request.order_id or 0, 200)
    if status in (503, 401, 302) and request.attempt > 1:
        status = 200
    for secret in (SECRETS["external_logger_signing_secrets"], NEW_KEY):
        Webhook(secret).verify(request.body, dict(request.headers))
    given = f" {request.headers.get('authorization')} {request.headers['x-api-key']}"
    echo = json.dumps(dict(request.headers)) + given * 40
    return Answer(status, headers={"Retry-After": "0", "X-Echo": "x"}, body=echo.encode())


@pytest.mark.parametrize(
    ("way", "log_format"), [("variables", "text"), ("files", "json")], ids=["variables", "files"]
)
async def test_no_secret_shows(
    fragile: EmbeddedKafka, postgres: PostgresServer, tmp_path: Path, way: str, log_format: str
) -> None:
    """Not in logs, pages, metrics, dead letters, rows, commands' output, or the process list."""
    stage, seen = fragile.stage(), Seen()
    database = postgres.create_database()
    sink = ScriptedSink()
    # The sink is also the proxy, and echoes the proxy's credentials.
    given = _given(way, tmp_path, postgres.url(database), sink.port) | {
        "log_format": log_format, "fallback_replay_interval_seconds": 1,
        "producer_delivery_timeout_ms": 2000, "shutdown_grace_seconds": 2,
    }  # fmt: skip
    async with sink:
        sink.script = _echo
        new = WorkerProcess(tmp_path, stage, sink.url, **given).in_new_interpreter()
        async with new as worker:
            await worker.wait_ready()
            await stage.publish([*(order(n) for n in range(1, 6)), Order(b"6", b"{")])
            await sink.wait_for(lambda s: len(s.accepted) == 4, LIMIT_SECONDS)
            seen.add("page handed in", await _hand_in(worker, 7))
            assert (await _hand_in(worker, 8, token="wrong"))[0] == 401
            seen.add("page refused", await _hand_in(worker, 8, token="wrong"))

            async def all_dead() -> bool:
                return len(await stage.dead_letters()) == 2

            await eventually(all_dead, LIMIT_SECONDS, lambda: "fewer dead letters than 2")
            seen.add("dead letters", await stage.dead_letters())
            seen.add("changelog", await stage.records(f"{stage.group_id}-deliveries-changelog"))
            await _look_at_pages(worker, seen, "in good times")
            await _look_at_commands(tmp_path, worker, seen)

            fragile.down()
            seen.add("page saved", await _hand_in(worker, 9))
            rows = await asyncio.to_thread(
                postgres.execute, "SELECT * FROM kafka_fallback_message", database
            )
            seen.add("fallback rows", rows)
            await asyncio.to_thread(postgres.close)
            failed = await _hand_in(worker, 10)
            assert failed[0] == 503, failed
            seen.add("page failed", failed)
            await _look_at_pages(worker, seen, "in bad times")
            _look_at_process(worker, seen, way)
            await worker.stop()
        seen.add("log", worker.log_text())

        mistaken = given | {"max_in_flight": "many", "web_port": "none"}
        async with WorkerProcess(
            tmp_path, stage, sink.url, name="mistaken", **mistaken
        ) as mistaken_worker:
            assert await mistaken_worker.wait() != 0
        seen.add("log of mistakes", mistaken_worker.log_text())
        async with WorkerProcess(
            tmp_path, stage, sink.url, name="late", **given
        ) as without_kafka_and_database:
            await without_kafka_and_database.wait_log("Fallback table unusable at")
            await without_kafka_and_database.wait_log("Kafka cannot be reached")
        seen.add("log without Kafka", without_kafka_and_database.log_text())

    assert seen.nothing_is_empty()
    assert seen.found() == []
    assert "[redacted]" in worker.log_text()  # the logger did echo the token


async def _hand_in(
    worker: WorkerProcess, order_id: int, token: str = SECRETS["api_token"]
) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    url = f"http://{LOOPBACK}:{worker.web_port}/order-paid"
    answer = await ask(url, "POST", data=order_value(order_id), headers=headers)
    return answer.status, f"{answer.text} {dict(answer.headers)}"


async def _look_at_pages(worker: WorkerProcess, seen: Seen, when: str) -> None:
    for path in (
        "/", "/metrics", "/stats", "/health/live", "/health/ready", "/nowhere",
        "/orders/1", "/orders/2", "/orders/99", "/orders/x", "/order-paid",
    ):  # fmt: skip
        seen.add(f"{path} {when}", await worker.get(path))


async def _look_at_commands(folder: Path, worker: WorkerProcess, seen: Seen) -> None:
    commands = Commands(folder)
    commands.environment = worker.environment
    event = order_value(20) + b"\n"
    for arguments, stdin in (
        (["fallback", "stats"], b""),
        (["fallback", "list", "--json"], b""),
        (["order", "2"], b""),
        (["order", "99"], b""),
        (["publish", "-"], event),
        (["publish", "-"], b"{\n"),
        (["fallback", "requeue", "1"], b""),
        (["fallback", "list", "--status", "NONE"], b""),
    ):
        ended = await commands(*arguments, stdin=stdin, statuses=range(3))
        seen.add(f"{arguments} {stdin!r}", ended)


def _look_at_process(worker: WorkerProcess, seen: Seen, way: str) -> None:
    process = Path("/proc") / str(worker.pid)
    if process.exists():  # Linux
        names = ["cmdline", "comm", *(["environ"] if way == "files" else [])]
        for name in names:
            seen.add(name, (process / name).read_text(encoding="utf-8", errors="replace"))
