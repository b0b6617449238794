"""Paid orders over HTTP, from the client to the external logger, through the shipped worker."""

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from order_relay.fallback.sql.engine import make_engine
from order_relay.fallback.sql.schema import fallback_message
from tests.support.embedded import EmbeddedKafka
from tests.support.publish_ways import body
from tests.support.sink import ScriptedSink
from tests.support.worker import NewWorker, WorkerProcess

pytestmark = pytest.mark.e2e


async def post(
    worker: WorkerProcess, number: int, data: Any = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Post an order, or other data; returns status and answer."""
    return await worker.post_order(
        data or body(number), **({"event_id": f"order-{number}"} | headers)
    )


async def test_from_the_client_to_the_logger(
    sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Every accepted order reaches the logger byte for byte, under the id that the client gave.

    A body that is too large is counted as refused.
    """
    database = f"sqlite:///{tmp_path}/relay.db"
    async with new_worker(database_url=database, api_token="s3cret") as worker:
        await worker.wait_ready()
        bearer = {"Authorization": "Bearer s3cret"}
        assert (await post(worker, 0))[0] == 401
        assert (await post(worker, 0, BytesIO(b" " * 1_100_000), **bearer))[0] == 413
        counted = await worker.metrics()
        assert counted['order_relay_published_total{result="refused"}'] == 1
        assert counted['order_relay_published_total{result="busy"}'] == 0
        answers = await asyncio.gather(*(post(worker, number, **bearer) for number in range(200)))
        assert {(status, answer["status"]) for status, answer in answers} == {(202, "published")}
        await sink.wait_for(lambda s: len(s.accepted) == 200, timeout=60)
        assert set(sink.accepted) == {(f"order-{number}", body(number)) for number in range(200)}
        assert await worker.stop() == 0


async def test_stopping_while_kafka_is_away(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """A client that waits for Kafka when the worker stops is told that its order is saved."""
    url = f"sqlite:///{tmp_path}/relay.db"
    # The producer's own time-out, 2 minutes, does not end the wait.
    async with WorkerProcess(
        tmp_path, fragile.stage(), sink.url, database_url=url, shutdown_grace_seconds=5
    ) as worker:
        await worker.wait_ready()
        assert (await post(worker, 1))[0] == 202
        fragile.down()
        waiting = [asyncio.create_task(post(worker, number)) for number in range(2, 12)]
        # The worker's loop takes requests in order: once this one is answered, it has the others.
        assert (await post(worker, 99, event_id=""))[0] == 400
        assert await worker.stop() == 0
        for status, answer in await asyncio.gather(*waiting):
            assert (status, answer["status"]) == (202, "saved")
    engine = make_engine(url)
    async with engine.connect() as connection:
        keys = set(await connection.scalars(sa.select(fallback_message.c.message_key)))
    await engine.dispose()
    assert keys == {str(number) for number in range(2, 12)}
