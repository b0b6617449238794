"""Every example, run as a user runs it, against a cluster and a database."""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from order_relay.fallback.sql.migrate import migrate
from order_relay.fallback.store import Status
from order_relay.model.events import decode_order_paid
from order_relay.publishing.order_events import open_order_events
from tests.support.publish_orders import make_orders, statuses
from tests.support.publish_postgres import PostgresServer
from tests.support.publish_ways import LOOPBACK, publish_settings, read_topic, serving
from tests.support.raw_server import RawServer
from tests.support.sink import ScriptedSink

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
RUN_SECONDS = 60.0
# As users have it: without the settings of the test run.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("RELAY_URL", "API_TOKEN", "DATABASE_URL")
} | {"PYTHONPATH": str(ROOT)}


async def run(*command: object, **environment: str) -> tuple[int, str, str]:
    """Run a command; returns its status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), env=CLEAN | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), RUN_SECONDS)
    return process.returncode or 0, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def worker(
    cluster: str, topic: str, database: Path, token: str | None = None
) -> AsyncIterator[str]:
    """Serve a worker's page on a real cluster and a real database; yields its URL."""
    settings = publish_settings(cluster, database, order_paid_topic=topic)
    async with open_order_events(settings) as events, serving(events.publisher, token=token) as url:
        yield url


HTTP_CLIENTS = {
    "curl": ["sh", EXAMPLES / "http_client" / "pay.sh"],
    "python": [sys.executable, EXAMPLES / "http_client" / "pay.py"],
}


@pytest.mark.parametrize("client", HTTP_CLIENTS)
@pytest.mark.parametrize("token", [None, "s3cret"], ids=["loopback", "token"])
async def test_http_client(
    cluster: str, topic: str, tmp_path: Path, client: str, token: str | None
) -> None:
    """Each prints the relay's answer, and its event is in Kafka under the order's id."""
    brings = {"API_TOKEN": token} if token else {}
    async with worker(cluster, topic, tmp_path / "relay.db", token) as url:
        for _ in range(2):
            status, out, err = await run(*HTTP_CLIENTS[client], "123", RELAY_URL=url, **brings)
            assert (status, err) == (0, "")
            answer = json.loads(out)
            assert (answer["status"], answer["eventId"]) == ("published", "order-123-paid")
        if token:
            status, out, err = await run(*HTTP_CLIENTS[client], "124", RELAY_URL=url)
            assert status != 0
            assert "401" in out + err
    records = await asyncio.to_thread(read_topic, cluster, topic)
    assert [(record.key, record.event_id) for record in records] == [(b"123", "order-123-paid")] * 2
    for record in records:
        decode_order_paid(record.value)


@pytest.mark.parametrize("client", HTTP_CLIENTS)
async def test_http_client_of_a_busy_relay(sink: ScriptedSink, client: str) -> None:
    """It retries 429 and 503 after Retry-After, with the same id."""
    sink.fail_next(1, 429, headers={"Retry-After": "0", "Connection": "close"})
    sink.fail_next(1, 503, headers={"Retry-After": "1", "Connection": "close"})
    sink.fail_next(1, 202, headers={"Content-Type": "application/json"}, body=b"{}")
    dispatcher = f"http://{LOOPBACK}:{sink.port}"
    status, out, err = await run(*HTTP_CLIENTS[client], "123", RELAY_URL=dispatcher)
    assert (status, len(sink.requests)) == (0, 3), err
    assert out.strip().endswith("{}")
    assert {request.headers["event-id"] for request in sink.requests} == {"order-123-paid"}


@pytest.mark.parametrize("client", HTTP_CLIENTS)
async def test_http_client_whose_connection_is_lost(client: str) -> None:
    """If the connection ends before the answer, it retries with the same id."""
    answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    async with RawServer(b"", answer) as server:
        status, out, err = await run(*HTTP_CLIENTS[client], "123", RELAY_URL=server.url)
    assert (status, len(server.requests)) == (0, 2), err
    assert out.strip() == "{}"
    assert all(b"order-123-paid" in request.head for request in server.requests)


@pytest.mark.parametrize("client", HTTP_CLIENTS)
async def test_http_client_without_an_order(client: str) -> None:
    """One line says how to call it."""
    status, _, err = await run(*HTTP_CLIENTS[client])
    assert status != 0
    assert "usage:" in err.rstrip()
    assert "\n" not in err.rstrip()


@pytest.mark.parametrize(
    "example", ["after_commit/pay_after_commit.py", "outbox/pay_with_outbox.py"]
)
async def test_order_service(cluster: str, topic: str, database_url: str, example: str) -> None:
    """Two orders commit and are published, the third rolls back and is not.

    DATABASE_URL is written as hosting providers give it.
    """
    given = database_url.replace("+asyncpg", "").replace("+aiosqlite", "")
    status, out, err = await run(
        sys.executable,
        EXAMPLES / example,
        KAFKA_BOOTSTRAP_SERVERS=cluster,
        ORDER_PAID_TOPIC=topic,
        DATABASE_URL=given + ("?sslmode=disable" if "postgresql" in given else ""),
    )
    assert status == 0, err
    assert len(out.splitlines()) == 3
    records = await asyncio.to_thread(read_topic, cluster, topic)
    assert sorted(decode_order_paid(record.value).orderId for record in records) == [1, 2]
    engine = await make_orders(database_url)
    expected = [Status.PUBLISHED] * 2 if "outbox" in example else []
    assert await statuses(engine) == expected
    await engine.dispose()
    assert out.splitlines()[2].startswith("user 3: ")
    assert "Published" not in out.splitlines()[2]


async def replay_and_check(cluster: str, topic: str, url: str, order_id: int) -> None:
    """Replay the row that the SQL wrote, and check its event."""
    engine = await make_orders(url)
    assert await statuses(engine) == [Status.PENDING]
    async with engine.begin() as connection:  # of this test's own, on the shared cluster
        await connection.execute(
            sa.text("UPDATE kafka_fallback_message SET topic = :topic"), {"topic": topic}
        )
    async with open_order_events(publish_settings(cluster, url)) as events:
        await events.replay.run_once()
    assert await statuses(engine) == [Status.PUBLISHED]
    await engine.dispose()
    (record,) = await asyncio.to_thread(read_topic, cluster, topic)
    event = decode_order_paid(record.value)
    assert (event.orderId, event.userId) == (order_id, 456)
    assert event.paid_at().utcoffset() is not None
    assert record.key == str(order_id).encode()
    assert record.event_id == f"order-{order_id}-paid"


async def test_plain_sql_on_postgresql(
    cluster: str, topic: str, postgres_server: PostgresServer
) -> None:
    """The script runs in psql; a second run of the same order changes nothing."""
    psql = shutil.which("psql")
    assert psql is not None, "psql comes with PostgreSQL"
    name = postgres_server.create_database()
    url = postgres_server.url(name)
    await migrate(url)
    script = EXAMPLES / "outbox_plain_sql" / "postgresql.sql"
    command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "order_id=123", "-f", script]
    database = url.replace("+asyncpg", "")
    assert await run(*command, database) == (0, "", "")
    status, _, err = await run(*command, database)
    assert status != 0
    assert "duplicate key" in err
    await replay_and_check(cluster, topic, url, 123)
    postgres_server.drop_database(name)


async def test_plain_sql_on_sqlite(cluster: str, topic: str, tmp_path: Path) -> None:
    """The script runs in sqlite3, or in Python's module where sqlite3 is not installed."""
    path = tmp_path / "shop.db"
    url = f"sqlite+aiosqlite:///{path}"
    await migrate(url)
    script = EXAMPLES / "outbox_plain_sql" / "sqlite.sql"
    if sqlite := shutil.which("sqlite3"):
        assert await run(sqlite, "-bail", path, f".read {script}") == (0, "", "")
    else:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(script.read_text(encoding="utf-8"))
    await replay_and_check(cluster, topic, url, 1)
