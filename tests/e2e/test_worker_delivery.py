"""The shipped worker delivers: bytes, dead letters, damaged partitions."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from tests.support.odd_records import produce_broken
from tests.support.orders import Order, Published, event_ids, order, order_value, orders
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Committed, Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e


async def test_every_record_arrives_byte_for_byte(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Each record is posted unchanged, with its event id, and committed.

    Faust's own environment variables have no effect.
    """
    strays = {
        "broker_url": "kafka://127.0.0.1:1", "consumer_auto_offset_reset": "latest",
        "processing_guarantee": "exactly_once", "web_enabled": "false",
    }  # fmt: skip
    plain = order_value(1)
    odd = [
        Order(
            b"spaces", b' \t{ "orderId" : 2 ,' + plain[1:].replace(b'"orderId":1,', b"") + b"\r\n"
        ),
        Order(b"escapes", order_value(3, note="\u00e4\n\u2028")),
        Order(b"utf8", '{"naïve":"日本",'.encode() + plain[1:]),
        Order(b"nested", order_value(5, extra={"a": [1, {"b": None}]}, big=10**30)),
        Order(b"large", order_value(6, pad="x" * 700_000)),
        Order(None, order_value(7)),
        Order(b"", order_value(8)),
        Order(b"\x00\xff", order_value(9)),
        Order(b"event-id", order_value(10), (("event-id", b"my-event-10"),)),
        Order(b"odd-id", order_value(11), (("event-id", "näh 11".encode()), ("other", None))),
    ]
    published = await stage.publish([*odd, *orders(500, first=100)])
    async with new_worker(**strays) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        await worker.wait_ready()
        assert await worker.live()

        sent = {record.value: record.event_id for record in published}
        got = {body: key for key, body in sink.accepted}
        strange = odd[-1].value
        assert got.keys() == sent.keys()
        assert {b: k for b, k in got.items() if b != strange} == {
            b: k for b, k in sent.items() if b != strange
        }
        assert got[strange or b""].isascii()
        assert len(sink.requests) == len(published)
        assert not await stage.dead_letters()

        metrics = await worker.metrics()
        assert metrics['order_relay_deliveries_total{outcome="delivered"}'] == len(published)
        attempts = 'order_relay_delivery_attempts_total{result="success",status="2xx"}'
        assert metrics[attempts] == len(published)
        assert metrics["order_relay_paid_to_delivered_seconds_count"] == len(published)
        assert metrics["order_relay_in_flight"] == 0
        assert metrics["order_relay_oldest_unfinished_seconds"] == 0
        assert metrics["order_relay_breaker_state"] == 0
        assert any(name.startswith("faust_") for name in metrics)

        async def no_lag() -> bool:
            found = await worker.metrics()
            lags = {n: v for n, v in found.items() if n.startswith("order_relay_consumer_lag{")}
            return len(lags) == 3 and not any(lags.values())

        await eventually(no_lag, 20, "the lag of three partitions is 0")
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log_text()
    # It leaves only the fallback table in its folder.
    left = await asyncio.to_thread(lambda: [path.name for path in tmp_path.iterdir()])
    assert sorted(left) == ["order-relay.db", worker.log.name]


async def test_what_cannot_be_delivered_is_dead_lettered_and_blocks_nothing(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Poison, tombstones, rejected and hopeless records are dead letters; the rest arrives."""
    poison = {
        "invalid_utf8": b'{"eventType":"ORDER_PAID","note":"\xff"}', "invalid_json": b"{not json",
        "invalid_event": b'{"eventType":"ORDER_PAID","orderId":"one"}',
        "deep": b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "empty": b"",
    }  # fmt: skip

    def script(request: Received) -> Answer:
        if request.order_id == 400:
            return Answer(422, body=b'{"error":"no such product"}')
        if request.order_id == 500:
            return Answer(503, body=b"overloaded")
        return Answer()

    sink.script = script
    # All in one partition and of one key, so that a blocked record would block the rest.
    bad = [
        *(Order(b"k", value, (("trace", b"t-1"),), 0) for value in poison.values()),
        Order(b"k", None, (), 0),
        order(400, key="k", partition=0),
        order(500, key="k", partition=0),
    ]
    good = [order(1000 + n, key="k", partition=0) for n in range(len(bad))]
    published = await stage.publish([one for pair in zip(bad, good, strict=True) for one in pair])
    async with new_worker() as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(good), timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        metrics = await worker.metrics()
        assert await worker.stop() == 0
    assert sink.accepted_bodies == [one.value for one in good]

    letters = await stage.dead_letters()
    records = [record for record in published if record.value not in sink.accepted_bodies]
    assert [(row.key, row.value) for row in letters] == [(r.key, r.value) for r in records]
    assert [row.source for row in letters] == [(r.partition, r.offset) for r in records]
    assert {row.partition for row in letters} == {0}
    assert [row.text("dlq-reason") for row in letters] == [
        "invalid_utf8", "invalid_json", "invalid_event", "invalid_json", "invalid_json",
        "tombstone", "rejected", "retries_exhausted",
    ]  # fmt: skip
    assert [row.text("dlq-attempts") for row in letters] == ["0"] * 6 + ["1", "4"]
    assert [row.text("dlq-http-status") for row in letters] == [None] * 6 + ["422", "503"]
    assert [row.text("event-id") for row in letters] == event_ids(records)
    assert letters[0].text("trace") == "t-1"
    for row in letters:
        assert row.text("kafka_dlt-original-topic") == stage.topic
        assert row.text("kafka_dlt-original-consumer-group") == stage.group_id
        assert row.text("kafka_dlt-exception-fqcn")
        assert row.text("kafka_dlt-exception-message")
    assert "no such product" in (letters[6].text("kafka_dlt-exception-message") or "")
    assert "overloaded" in (letters[7].text("kafka_dlt-exception-message") or "")
    rejected, exhausted = records[-2:]
    assert len(sink.attempts(rejected.event_id)) == 1
    assert len(sink.attempts(exhausted.event_id)) == 4
    assert json.loads(exhausted.value or b"")["orderId"] == 500

    assert len(worker.log_lines("Publishing failed message to DLQ")) == len(letters)
    assert "Traceback" not in worker.log_text()
    assert metrics['order_relay_deliveries_total{outcome="dead_lettered"}'] == len(letters)
    assert metrics['order_relay_dead_letters_total{reason="invalid_json"}'] == 3
    assert metrics['order_relay_dead_letters_total{reason="retries_exhausted"}'] == 1


async def test_a_partition_that_is_shorter_than_what_was_committed(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Kafka lost the partition's end, or the topic was recreated: its records are delivered."""
    await stage.commit({partition: Committed(5000, "") for partition in range(3)})
    published = await stage.publish(orders(60))
    async with new_worker() as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        await worker.wait_log("Partition is shorter than what was read of it")
        assert sorted(sink.accepted_keys) == sorted(event_ids(published))


def accepted(sink: ScriptedSink, count: int) -> bool:
    """Whether ``count`` records were accepted."""
    return len(sink.accepted) >= count


async def test_a_batch_that_cannot_be_read_holds_up_its_partition_alone(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Records of other partitions in the same fetches are neither lost nor delayed."""
    async with new_worker() as worker:
        await worker.wait_ready()
        await produce_broken(stage.bootstrap_servers, stage.topic, 1)
        await worker.wait_log("Fetch failed, trying again")
        published: list[Published] = []
        for first in range(0, 3_000, 150):
            numbers = range(first, first + 150)
            published += await stage.publish(order(n, partition=2 * (n % 2)) for n in numbers)
            # Publish steadily, so that records are fetched all the time.
            await eventually(partial(accepted, sink, first), 30, f"{first} orders accepted")
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=30)
        assert set(sink.accepted_keys) == set(event_ids(published))
        ends = await stage.ends()

        async def all_but_it() -> bool:
            committed = {p: one.offset for p, one in (await stage.committed()).items()}
            return {**ends, 1: 0} == {1: 0, **committed}

        await eventually(all_but_it, 20, "everything that can be read is committed")
