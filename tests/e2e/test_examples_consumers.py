"""The example consumers, in one shipped worker beside the consumer of the log."""

import json
import sqlite3
import uuid
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded import EmbeddedKafka
from tests.support.orders import Order, event_ids, order
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import ROOT, NewWorker

pytestmark = pytest.mark.e2e

GOOD = 30
ITEMS = [{"productId": 7, "orderQuantity": 2}, {"productId": "mug", "orderQuantity": 1}]
LIMIT_SECONDS = 60.0


def of_consumer(embedded: EmbeddedKafka, stage: Stage, name: str, topic: str) -> Stage:
    """The names of a consumer; makes its dead-letter topic."""
    dlq_topic = f"{topic}.{name}.DLQ"
    embedded.create_topic(dlq_topic)
    return replace(stage, topic=topic, dlq_topic=dlq_topic, group_id=f"{stage.group_id}-{name}")


def refund(refund_id: str, order_id: int) -> Order:
    """A refund of an order, with its own key and an unknown field."""
    value = {"refundId": refund_id, "order": order_id, "amountCents": 1990, "note": "late"}
    return Order(refund_id.encode(), json.dumps(value).encode())


def paid(order_id: int, **fields: Any) -> Order:
    """An order of two products."""
    return order(order_id, **{"orderItems": ITEMS, **fields})


ONCE = {
    "Order 1 is paid": Answer(429, {"Retry-After": "1"}),
    "Order 2 is paid": Answer(401),
    "Order 3 is paid": Answer(503),
    "Order 4 is paid": Answer(307, {"Location": "/elsewhere"}),
}


def notification(request: Received) -> Answer:
    """Some first attempts fail; the notification of order 901 is rejected."""
    text = request.json["text"]
    if text == "Order 901 is paid":
        return Answer(422)
    return ONCE.get(text, Answer()) if request.attempt == 1 else Answer()


async def test_the_examples_handle_every_event(
    embedded: EmbeddedKafka, stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Each handles all events except those it rejects, which become its own dead letters."""
    refund_topic = f"refund-paid-{uuid.uuid4().hex[:8]}"
    embedded.create_topic(refund_topic)
    stages = {
        "notifications": of_consumer(embedded, stage, "notifications", stage.topic),
        "analytics": of_consumer(embedded, stage, "analytics", stage.topic),
        "refunds": of_consumer(embedded, stage, "refunds", refund_topic),
    }
    database = tmp_path / "analytics.db"
    async with AsyncExitStack() as running:
        notified = await running.enter_async_context(ScriptedSink())
        refunded = await running.enter_async_context(ScriptedSink())
        notified.script = notification
        refunded.script = lambda got: Answer(422 if got.json["refundId"] == "r-901" else 200)
        worker = await running.enter_async_context(
            new_worker(
                consumer_folders=ROOT / "examples" / "consumers",
                notifications_service_url=notified.url,
                refunds_url=refunded.url,
                analytics_database=database,
                # Without this table, the function is called for a duplicate, too.
                analytics_deliveries_store="off",
                **{f"{name}_topic": one.topic for name, one in stages.items()},
                **{f"{name}_group": one.group_id for name, one in stages.items()},
            )
        )
        published = await stage.publish(
            [
                *(paid(n) for n in range(1, GOOD + 1)),
                paid(800, event_id="paid-800"),
                replace(paid(800, event_id="paid-800"), key=b"elsewhere"),  # the event once more
                paid(901),
                paid(902, orderItems=[*ITEMS, {"productId": 8, "orderQuantity": 0}]),
                Order(b"broken", b"{"),
            ]
        )
        # Two refunds of one order are two events.
        refunds = await stages["refunds"].publish(
            [refund("r-1", 5), refund("r-2", 5), refund("r-901", 6), Order(b"7", b'{"order":7}')]
        )
        await worker.wait_ready()
        for one in (stage, *stages.values()):
            await eventually(one.all_committed, LIMIT_SECONDS, f"{one.group_id} has committed")

        letters = {name: await one.dead_letters() for name, one in stages.items()}
        assert {name: sorted(row.key or b"" for row in rows) for name, rows in letters.items()} == {
            "notifications": [b"901", b"broken"],
            "analytics": [b"902", b"broken"],
            "refunds": [b"7", b"r-901"],
        }
        for name, rows in letters.items():
            assert {row.text("dlq-consumer") for row in rows} == {name}

        good = {record.event_id for record in published if record.key != b"broken"}
        assert set(sink.accepted_keys) == good
        told = {record.event_id for record in published if record.key not in (b"901", b"broken")}
        assert set(notified.accepted_keys) == told
        assert all(len(notified.attempts(one)) >= 2 for one in event_ids(published[: len(ONCE)]))
        assert set(refunded.accepted) == {(one.event_id, one.value) for one in refunds[:2]}
        with closing(sqlite3.connect(database)) as tables:
            sold = dict(tables.execute("SELECT product, quantity FROM sold").fetchall())
            events = {key for (key,) in tables.execute("SELECT idempotency_key FROM counted")}
        orders_counted = GOOD + 2  # 800, although it came twice, and 901
        assert sold == {"7": 2 * orders_counted, "mug": orders_counted}
        assert events == good - {published[-2].event_id}

        for name, one in stages.items():
            stats = await worker.json(f"/stats?consumer={name}")
            assert stats["group"] == one.group_id
            assert {part["topic"] for part in stats["partitions"]} == {one.topic}
            counted = stats["deliveries"]
            assert counted["dead_lettered"] == 2
            handled = len(refunds if name == "refunds" else published) - 2
            assert counted["delivered"] + counted["duplicate"] == handled
            metrics = await worker.metrics(name)
            for outcome, count in counted.items():
                assert metrics[f'order_relay_deliveries_total{{outcome="{outcome}"}}'] == count
        assert (await worker.json("/orders/1?consumer=notifications"))["state"] == "delivered"
        rejected = await worker.json("/orders/901?consumer=notifications")
        assert (rejected["state"], rejected["deadLetterReason"]) == ("dead_lettered", "rejected")
        assert (await worker.json("/orders/901"))["state"] == "delivered"
        assert (await worker.json("/orders/5?consumer=refunds"))["state"] == "delivered"
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log_text()
        assert "Unclosed" not in worker.log_text()
