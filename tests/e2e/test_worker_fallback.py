"""The shipped worker with its fallback table: outages of Kafka and of the database."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded import EmbeddedKafka
from tests.support.orders import event_ids, order_value, orders
from tests.support.publish_command import Commands
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.worker import NewWorker, WorkerProcess

pytestmark = pytest.mark.e2e

QUICK: dict[str, Any] = {
    "fallback_replay_interval_seconds": 1, "fallback_stats_interval_seconds": 1,
    "producer_delivery_timeout_ms": 3000, "producer_request_timeout_ms": 1000,
}  # fmt: skip


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACE = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01", "tracestate": "rojo=1,congo=2"}


def database(folder: Path) -> dict[str, Any]:
    """The test's own database file."""
    return {"database_url": f"sqlite+aiosqlite:///{folder / 'relay.db'}"}


def delete_database(folder: Path) -> None:
    """Delete that file, and SQLite's own files beside it."""
    for file in folder.glob("relay.db*"):
        file.unlink()


async def test_an_order_paid_while_kafka_is_down_arrives_when_it_is_back(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """It is saved and reported; then published and delivered with its event id and trace.

    The table's file was deleted before: the worker makes another, and logs that.
    """
    stage = fragile.stage()
    async with WorkerProcess(tmp_path, stage, sink.url, **QUICK, **database(tmp_path)) as worker:
        await worker.wait_ready()
        status, published = await worker.post_order(order_value(1), **TRACE)
        assert (status, published.get("status")) == (202, "published"), published
        await worker.wait_log("Fallback table opened")
        delete_database(tmp_path)
        fragile.down()
        status, saved = await worker.post_order(order_value(2), **TRACE)
        assert (status, saved.get("status")) == (202, "saved"), saved
        await worker.wait_log("Saved fallback message")
        waits = await worker.json("/orders/2")
        assert (waits["state"], waits["fallbackId"]) == ("saved", saved["id"])
        metrics = await worker.metrics()
        assert metrics['order_relay_published_total{result="saved"}'] == 1
        assert metrics["order_relay_fallback_files_replaced_total"] == 1
        assert len(worker.log_lines("Fallback table's file was deleted or replaced")) == 1
        commands = Commands(tmp_path, **database(tmp_path))
        (row,) = (await commands("fallback", "list", "--status", "PENDING", "--json")).objects
        assert row["payload"].encode() == order_value(2)
        fragile.up()
        await worker.wait_log("Fallback message published successfully")
        await sink.wait_for(lambda s: len(s.accepted) == 2, timeout=60)
        await worker.wait_log("Fallback message stats - pending: 0, published: 1, failed: 0")
        assert await worker.stop() == 0
    for request in sink.requests:
        assert {name: request.headers[name] for name in TRACE} == TRACE
    for phrase in ("Saved fallback message", "Fallback message published successfully"):
        (line,) = worker.log_lines(phrase)
        assert line.rstrip().endswith(f" trace_id={TRACE_ID}")
    # Two orders are two keys: either may come first.
    assert len(sink.accepted_keys) == 2
    assert set(sink.accepted_keys) == {published["eventId"], saved["eventId"]}
    assert "Traceback" not in worker.log_text()


async def test_a_database_that_is_down_does_not_stop_deliveries(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """One line without the password; records are delivered, and Kafka takes orders."""
    url = "postgresql://relay:hush@127.0.0.1:1/orders"
    async with new_worker(database_url=url, **QUICK) as worker:
        await worker.wait_ready()
        await worker.wait_log("Fallback table unusable")
        published = await stage.publish(orders(20))
        status, answer = await worker.post_order(order_value(99))
        assert (status, answer["status"]) == (202, "published")
        await sink.wait_for(lambda s: len(s.accepted) == 21, timeout=60)
        assert (await worker.metrics())["order_relay_fallback_database_up"] == 0
        assert await worker.stop() == 0
    assert set(event_ids(published)) < set(sink.accepted_keys)
    assert len(worker.log_lines("Fallback table unusable")) == 1
    assert "hush" not in worker.log_text()
