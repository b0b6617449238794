"""The fallback table at size: claims out of a million due rows, and draining saved rows.

    python -m benchmarks.fallback [--rows 1000000] [--drain 100000] [--only sqlite|postgresql]

Uses a SQLite file in a temporary folder, a private PostgreSQL server where its programs are
installed, and the embedded cluster in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.brokers import embedded
from order_relay.fallback.replay import Replay
from order_relay.fallback.store import (
    NewMessage,
    Outcome,
    Position,
    RowFilter,
    Status,
)
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from order_relay.settings import load_settings
from tests.support.publish_postgres import PostgresServer, unavailable_reason

CLAIM = 500
CLAIMS = 50
TOPIC = "order-paid-events"
PAYLOAD = (
    '{"eventType":"ORDER_PAID","orderId":%d,"userId":456,"paidAt":"2025-12-19T10:30:00",'
    '"orderItems":[{"productId":1,"orderQuantity":2}]}'
)


def main() -> None:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="due rows to claim from")
    parser.add_argument("--drain", type=int, default=100_000, help="saved rows to drain")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    if arguments.only != "postgresql":
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite+aiosqlite:///{Path(folder) / 'relay.db'}"
            asyncio.run(measure("SQLite", url, arguments.rows, arguments.drain))
    if arguments.only != "sqlite":
        if reason := unavailable_reason():
            print(f"PostgreSQL: not measured: {reason}")
            return
        with PostgresServer(durable=True) as server:
            name = server.create_database()
            asyncio.run(measure("PostgreSQL", server.url(name), arguments.rows, arguments.drain))


async def measure(name: str, url: str, rows: int, drain: int) -> None:
    """Fill one database, claim from it, and drain it."""
    store = FallbackTable(url)
    try:
        await store.open()
        await save_together(name, store)
        await empty(store)
        await fill(store, rows)
        await claims(name, store, rows)
        await timed(f"{name}: stats with {rows:,} rows", store.stats)
        await hold_back(name, store, rows)
        await empty(store)
        await fill(store, drain)
        await drained(name, store, drain)
    finally:
        await store.close()


async def save_together(name: str, store: FallbackTable, saves: int = 5000) -> None:
    """Save in parallel, like publishes in an outage."""
    started = time.perf_counter()
    limit = asyncio.Semaphore(256)

    async def save(number: int) -> None:
        async with limit:
            await store.save(NewMessage(TOPIC, b"%d" % number, (PAYLOAD % number).encode()))

    await asyncio.gather(*(save(number) for number in range(saves)))
    seconds = time.perf_counter() - started
    print(f"{name}: {saves:,} saves, 256 at a time: {saves / seconds:,.0f} a second")


async def claims(name: str, store: FallbackTable, rows: int) -> None:
    """Claim and settle batches, as a sweep does."""
    claim_seconds: list[float] = []
    settle_seconds: list[float] = []
    position: Position | None = None
    for _ in range(CLAIMS):
        started = time.perf_counter()
        claim = await store.claim(limit=CLAIM, lease_seconds=60, after=position)
        claimed = time.perf_counter()
        await store.settle(claim.token, [Outcome(row.id, Status.PUBLISHED) for row in claim.rows])
        settle_seconds.append(time.perf_counter() - claimed)
        claim_seconds.append(claimed - started)
        assert len(claim.rows) == CLAIM
        position = claim.position
    print(f"{name}: claim of {CLAIM} out of {rows:,} due rows: {spread(claim_seconds)}")
    print(f"{name}: settling them: {spread(settle_seconds)}")


async def hold_back(name: str, store: FallbackTable, rows: int) -> None:
    """Claim while the longest due rows all wait for one of their key."""
    async with store.engine.connect() as plain:
        connection = await plain.execution_options(relay_begin="IMMEDIATE")
        async with connection.begin():
            held = await connection.scalar(
                sa.text(
                    "SELECT id FROM kafka_fallback_message WHERE status = 'PENDING'"
                    " ORDER BY id LIMIT 1"
                )
            )
            await connection.execute(
                sa.text(
                    "UPDATE kafka_fallback_message SET message_key = 'hot'"
                    " WHERE id BETWEEN :first AND :last"
                ),
                {"first": held, "last": held + rows // 10},
            )
    claim = await store.claim(limit=1, lease_seconds=3600)
    assert claim.rows[0].id == held
    await timed(
        f"{name}: claim of {CLAIM} behind {rows // 10:,} rows that wait for one",
        lambda: store.claim(limit=CLAIM, lease_seconds=60),
    )


async def drained(name: str, store: FallbackTable, rows: int) -> None:
    """Publish all rows into the embedded cluster."""
    with embedded() as brokers:
        producer = KafkaProducer(load_settings(kafka_bootstrap_servers=brokers.servers))
        await producer.start()
        started = time.perf_counter()
        sweep = await Replay(store, producer).run_once()
        seconds = time.perf_counter() - started
        await producer.stop()
    assert sweep.published == rows, sweep
    assert await store.count(RowFilter(status=Status.PUBLISHED)) == rows
    print(
        f"{name}: {rows:,} saved rows drained into the embedded cluster in {seconds:.1f} s: "
        f"{rows / seconds:,.0f} a second"
    )


async def fill(store: FallbackTable, rows: int) -> None:
    """Write due rows as plain SQL would."""
    sql = sa.text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)"
        " INSERT INTO kafka_fallback_message (topic, message_key, payload)"
        " SELECT :topic, CAST(i AS TEXT),"
        " REPLACE(CAST(:payload AS TEXT), '%d', CAST(i AS TEXT)) FROM n"
    )
    await run(store, sql, rows=rows, topic=TOPIC, payload=PAYLOAD)


async def empty(store: FallbackTable) -> None:
    """Delete all rows."""
    await run(store, sa.text("DELETE FROM kafka_fallback_message"))


async def run(store: FallbackTable, sql: sa.TextClause, **values: Any) -> None:
    """Run one statement."""
    async with store.engine.begin() as connection:
        await connection.execute(sql, values)


async def timed(what: str, work: Callable[[], Awaitable[object]]) -> None:
    """Print how long something takes."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - started)
    print(f"{what}: {spread(seconds)}")


def spread(seconds: list[float]) -> str:
    """Return the median and the worst."""
    return f"{statistics.median(seconds) * 1000:.1f} ms (worst {max(seconds) * 1000:.1f} ms)"


if __name__ == "__main__":
    main()
