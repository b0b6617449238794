"""Workers that replay thousands of rows into real Kafka, and are killed meanwhile.

Several side by side: test_scale_out.
"""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from order_relay.fallback.sql.schema import TABLE_NAME, fallback_message, insert_values
from order_relay.fallback.store import NewMessage, Status
from tests.kafka.publish_scene import PATIENT, PublishScene, Saved
from tests.support.kafka.cluster import RealKafka
from tests.support.orders import order_value
from tests.support.publish_service import order_event_id
from tests.support.waiting import POLL_SECONDS
from tests.support.worker import WorkerProcess

# More than the 2,000 that each of two workers leases at a time.
ROWS = 5_000
MOST_ROWS = 5 * ROWS
KEYS = 2_500
INSERT_CHUNK = 1_000


@pytest.mark.parametrize("database", ["sqlite_url", "postgres_url"])
async def test_a_worker_killed_while_it_replays(
    kafka: RealKafka, tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    """Its rows wait until the lease runs out; then another worker takes over; none is lost.

    Only rows that it had sent and not yet marked may be in Kafka twice.
    """
    url: str = request.getfixturevalue(database)
    async with PublishScene(kafka, tmp_path, url, **PATIENT) as scene:
        await save_rows(scene)
        worker = scene.worker("killed")
        await scene.until_counted(Status.PUBLISHED, ROWS // 10)
        rows, count = await killed_amid_a_batch(scene, worker)
        leased = leased_rows(rows)
        held = held_back(rows, leased)

        heir = scene.worker("heir")
        await scene.until_counted(Status.PUBLISHED, count - len(held))
        await heir.wait_until(lambda: len(scene.replayed(heir)) > 0, what="to publish the rest")
        rows = await scene.saved()
        assert {row.id for row in rows if row.status is Status.PENDING} == held
        assert {row.id for row in rows if row.token} == leased
        once = await scene.records()
        assert once.copies == {}

        await let_leases_run_out(scene)
        await scene.until_settled()
        records = await scene.records()
        records.check_orders(count)
        rows = await scene.saved()
        assert records.copies.keys() <= {row.event_id for row in rows if row.id in leased}
        assert set(records.copies.values()) <= {2}
        records.check_order(rows, first=True)
        assert held <= scene.replayed(heir).keys()


async def save_rows(scene: PublishScene, first_order: int = 1) -> None:
    """Save ROWS orders in the table, as an outage does, in one transaction."""
    rows = [
        insert_values(
            NewMessage(
                scene.stage.topic,
                f"key-{number % KEYS}".encode(),
                order_value(number),
                (("event-id", order_event_id(number).encode()),),
            )
        )
        for number in range(first_order, first_order + ROWS)
    ]
    async with scene.engine.begin() as connection:
        for first in range(0, ROWS, INSERT_CHUNK):
            await connection.execute(
                sa.insert(fallback_message), rows[first : first + INSERT_CHUNK]
            )


async def killed_amid_a_batch(
    scene: PublishScene, worker: WorkerProcess
) -> tuple[list[Saved], int]:
    """Kill the worker while it has a lease on some rows and others wait.

    Between two batches it has no lease, so it is frozen for each look. On a busy machine it may
    publish all rows before the next look; then more are saved.

    Returns:
        The remaining rows, and how many were saved.
    """
    saved = ROWS
    while True:
        worker.freeze()
        rows = await scene.saved()
        pending = {row.id for row in rows if row.status is Status.PENDING}
        if 0 < len(held_back(rows, leased_rows(rows))) < len(pending):
            worker.kill9()
            return await scene.saved(), saved
        worker.thaw()
        if not pending:
            assert saved < MOST_ROWS, "the worker was done before it could be killed"
            await save_rows(scene, saved + 1)
            saved += ROWS
        await asyncio.sleep(POLL_SECONDS)


def leased_rows(rows: list[Saved]) -> set[int]:
    """Rows that a worker was about to publish."""
    return {row.id for row in rows if row.token and row.status is Status.PENDING}


def held_back(rows: list[Saved], leased: set[int]) -> set[int]:
    """The leased rows, and those that wait behind one of their key."""
    first: dict[str, int] = {}
    for row in rows:
        if row.id in leased:
            first.setdefault(row.key, row.id)
    return {row.id for row in rows if row.id >= first.get(row.key, row.id + 1)}


async def let_leases_run_out(scene: PublishScene) -> None:
    """Let all leases expire."""
    past = "2000-01-01 00:00:00.000000"
    if scene.engine.dialect.name == "postgresql":
        past += "+00"
    async with scene.engine.begin() as connection:
        await connection.execute(
            sa.text(
                f"UPDATE {TABLE_NAME} SET lease_until = '{past}' WHERE lease_token IS NOT NULL"  # noqa: S608 - our own words
            )
        )
