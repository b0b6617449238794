"""``/orders/<orderId>`` and ``order-relay order``: what the shipped worker knows of an order."""

import json
from pathlib import Path
from typing import Any

import pytest

from order_relay.deliveries.entries import decode_entry
from order_relay.fallback.store import NewMessage
from order_relay.fallback.table import FallbackTable
from tests.support.embedded import EmbeddedKafka
from tests.support.orders import Order, order, order_value
from tests.support.publish_command import Commands
from tests.support.sink import Answer, Fault, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker, WorkerProcess

pytestmark = pytest.mark.e2e


async def asked(worker: WorkerProcess, order_id: object) -> tuple[int, dict[str, Any]]:
    """What the worker answers about an order."""
    answer = await worker.get(f"/orders/{order_id}")
    assert answer is not None
    return answer[0], json.loads(answer[1])


async def until_state(worker: WorkerProcess, order_id: int, state: str) -> dict[str, Any]:
    """Wait until an order is in a state; return what is known of it."""

    async def found() -> dict[str, Any] | None:
        status, body = await asked(worker, order_id)
        return body if status == 200 and body["state"] == state else None

    body = await eventually(found, 60, f"order {order_id} is {state}")
    assert body is not None
    return body


def files_that_others_may_use(folder: Path) -> dict[Path, int]:
    """The files with orders in a worker's folder, and the rights of other users on them."""
    found = [*folder.glob("order-relay.db*"), *(folder / "data").rglob("*")]
    return {path: path.stat().st_mode & 0o077 for path in found}


def by_id(request: Any) -> Answer:
    """Order 2 fails once, order 3 always, order 4 is refused, order 5 hangs."""
    if request.order_id == 3:
        return Answer(503, body=b"try later")
    if request.order_id == 4:
        return Answer(422, body=b"no such product")
    if request.order_id == 5:
        return Answer(fault=Fault.HANG)
    return Answer()


async def test_what_became_of_each_order(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Delivered, delivered late, in backoff, dead-lettered, in flight, broken: each is shown."""
    sink.script = by_id
    async with new_worker(
        consumer_retry_max_attempts=1000,
        consumer_retry_initial_interval_ms=300,
        breaker_failure_threshold=0,
    ) as worker:
        await worker.wait_ready()
        (one,) = await stage.publish([order(1, event_id="paid-1")])
        first = await until_state(worker, 1, "delivered")
        sink.fail_next(1)
        await stage.publish([order(2)])
        second = await until_state(worker, 2, "delivered")
        await stage.publish([order(n) for n in (3, 4, 5)])
        await stage.publish([Order(b"6", b"{")])
        fourth = await until_state(worker, 4, "dead_lettered")
        sixth = await until_state(worker, 6, "dead_lettered")
        await eventually(lambda: len([r for r in sink.requests if r.order_id == 3]) > 1, 30)
        third = await until_state(worker, 3, "in_progress")
        fifth = await until_state(worker, 5, "in_progress")

        times = [first.pop(name) for name in ("publishedAt", "startedAt", "finishedAt")]
        assert times == sorted(times)
        assert first == {
            "orderId": 1, "state": "delivered", "attempts": 1, "eventId": "paid-1",
            "topic": stage.topic, "partition": one.partition, "offset": one.offset,
            "paidAt": "2025-12-19T10:30:00", "lastError": None, "httpStatus": None,
            "deadLetterReason": None, "worker": f"http://127.0.0.1:{worker.web_port}",
        }  # fmt: skip
        assert (second["attempts"], second["httpStatus"]) == (2, 503)
        assert third["attempts"] >= 1
        assert (third["lastError"], third["httpStatus"]) == ("try later", 503)
        assert (fourth["deadLetterReason"], fourth["httpStatus"]) == ("rejected", 422)
        assert fifth["attempts"] == 0
        assert (sixth["deadLetterReason"], sixth["paidAt"]) == ("invalid_json", None)

        for unknown in ("77", "9" * 30, "abc", "1.5", "1/2"):
            assert (await asked(worker, unknown))[0] == 404
        for malformed in ("%00", "", "%EF%BF%BD", "x" * 256, "9" * 4301):
            status, body = await asked(worker, malformed)
            assert (status, list(body)) == (400, ["error"]), malformed


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_old_orders_are_forgotten(
    stage: Stage, embedded: EmbeddedKafka, tmp_path: Path, new_worker: NewWorker, store: str
) -> None:
    """After the retention an order is unknown, and its changelog ends in a tombstone."""
    changelog = stage.settings().deliveries_changelog_topic
    embedded.create_topic(changelog)
    async with new_worker(
        deliveries_store=store, deliveries_retention_hours=6 / 3600, data_dir=tmp_path / "data"
    ) as worker:
        await worker.wait_ready()
        await stage.publish([order(1)])
        await until_state(worker, 1, "delivered")

        async def forgotten() -> bool:
            return (await asked(worker, 1))[0] == 404

        await eventually(forgotten, 60, "order 1 is forgotten")
        assert await worker.stop() == 0
        rows = await stage.records(changelog)
        assert [row.key for row in rows] == [b"1", b"1"]
        assert decode_entry(rows[0].value or b"") is not None
        assert rows[1].value is None
    written = files_that_others_may_use(tmp_path)
    assert len(written) > (3 if store == "rocksdb" else 0)
    assert not any(written.values()), written


async def test_switched_off_there_is_no_table(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Every copy of an event is sent; /orders names the setting as the reason."""
    async with new_worker(deliveries_store="off") as worker:
        await worker.wait_ready()
        for _ in range(2):
            await stage.publish([order(1, event_id="a")])
        await sink.wait_for(lambda s: len(s.accepted) == 2, timeout=30)
        status, body = await asked(worker, 1)
        assert status == 404
        assert "DELIVERIES_STORE=off" in body["error"]
    assert not (tmp_path / "order-relay-data").exists()


async def test_order_status_asks_a_worker_or_else_kafka(
    stage: Stage, tmp_path: Path, new_worker: NewWorker
) -> None:
    """It prints known and saved orders, with and without a worker; each error is one line."""
    async with new_worker() as worker:
        await worker.wait_ready()
        await stage.publish([order(1), order(2), Order(b"3", order_value(3, eventType="OTHER"))])
        for order_id, state in ((1, "delivered"), (3, "dead_lettered")):
            await until_state(worker, order_id, state)
        commands = Commands(
            tmp_path,
            web_port=worker.web_port,
            kafka_bootstrap_servers=stage.bootstrap_servers,
            order_paid_topic=stage.topic,
            consumer_group_id=stage.group_id,
        )
        shown = await commands.in_new_interpreter("order", "1")
        assert "delivered" in shown.out
        assert str(worker.web_port) in shown.out
        (by_worker,) = (await commands("order", "3", "--json")).objects
        assert by_worker["deadLetterReason"] == "invalid_event"
        unknown = await commands("order", "77", statuses=(1,))
        assert "order 77 is not known" in unknown.only_line
        assert await worker.stop() == 0
    table = FallbackTable(commands.database_url)
    await table.open()
    row_id = await table.save(NewMessage(stage.topic, b"78", b"{}", error_message="down"))
    await table.close()
    (saved,) = (await commands("order", "78", "--json")).objects
    assert (saved["state"], saved["fallbackId"], saved["lastError"]) == ("saved", row_id, "down")
    assert saved["fallbackStatus"] == "PENDING"
    (by_kafka,) = (await commands("order", "3", "--json")).objects
    assert by_kafka == {name: value for name, value in by_worker.items() if name != "worker"}
    unknown = await commands("order", "77", statuses=(1,))
    assert "order 77 is not known" in unknown.err.splitlines()[-1]
    for arguments in ((), ("a\tb",), ("9" * 4301,)):
        mistake = (await commands("order", *arguments, statuses=(2,))).only_line
        assert "ORDER_ID" in mistake
    for url in ("example.org", "http://h:abc", "http://h:99999", "http://[::1", "http://:6066"):
        mistake = (await commands("order", "1", "--url", url, statuses=(2,))).only_line
        assert "must be an http:// or https:// URL" in mistake
    commands.environment["CONSUMER_GROUP_ID"] = "another-group"
    missing = await commands("order", "1", statuses=(1,))
    assert "topic another-group-deliveries-changelog cannot be used: " in missing.err
    assert "Unknown topic" in missing.err
