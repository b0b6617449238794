"""Topics and records on real Kafka: declared, with few partitions, compressed, odd."""

import asyncio
import struct
import time
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from tests.kafka.administration import Administration
from tests.kafka.scene import Scene
from tests.support.dead_letter_commands import relay_on
from tests.support.kafka.cluster import RealKafka
from tests.support.odd_records import OddName, produce_odd
from tests.support.orders import Order, order, order_value, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Committed, Row, Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

DEFAULTS: dict[str, Any] = {
    "kafka_declare_topics": None, "order_paid_topic": None, "dlq_topic": None,
    "consumer_group_id": None,
}  # fmt: skip
"""Settings that are left to the product."""
OLD_MS = 1000
# Just under Kafka's default limit for a record with its framing, 1,048,588 bytes.
LARGE_BYTES = 1_048_000


async def test_a_worker_with_its_defaults_on_a_new_cluster(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """It declares both topics, joins its group, delivers exact bytes, and dead-letters the rest.

    Dead letters keep key, value and partition, even of a record of nearly the largest size, and
    have Spring's headers.
    """
    stage = Stage(
        kafka.bootstrap_servers,
        "order-paid-events",
        "order-paid-events.DLQ",
        "logging-consumer-group",
    )
    admin = Administration(stage)
    async with ScriptedSink() as sink:
        sink.script = lambda request: Answer(422 if len(request.body) > 1_000_000 else 200)
        worker = WorkerProcess(tmp_path, stage, sink.url, **DEFAULTS)
        async with worker:
            await worker.wait_ready()

            for topic in (stage.topic, stage.dlq_topic):
                assert [replicas for replicas, _ in await admin.replication(topic)] == [3, 3, 3]
            limits = [
                int(await admin.topic_config(topic, "max.message.bytes") or 0)
                for topic in (stage.topic, stage.dlq_topic)
            ]
            assert limits == [1_048_588, 2 * 1024 * 1024]
            group = await admin.settled_group(1)
            assert list(group.members.values()) == [[0, 1, 2]]

            odd = (
                b' { "orderItems" : [ {"orderQuantity":2,"productId":1} ],"paidAt":'
                b'"2025-12-19T10:30:00" ,\r\n"userId":2,"orderId":1,"eventType":"ORDER_PAID",'
                b'"note":"\xc3\xa9 \\u00e9 \xf0\x9f\x9b\x92","big":1e400}  '
            )
            good = [
                Order(b"odd", odd, partition=1),
                order(2, event_id="an id with spaces", partition=2),
                Order(None, order_value(3), partition=0),
            ]
            large = order(4, partition=2, filler="x" * (LARGE_BYTES - 200))
            trace: tuple[tuple[str, bytes | None], ...] = (("trace", b"\x00\xff"), ("trace", None))
            bad = [Order(b"k1", b"\xff\x00 not json", trace, 1), Order(b"k2", None, (), 2), large]
            await stage.publish(good + bad, config={"message.max.bytes": 2_000_000})

            await worker.wait_until(stage.all_committed, what="to commit everything")
            assert sorted(sink.accepted_bodies) == sorted(one.value or b"" for one in good)
            assert {r.idempotency_key for r in sink.requests if r.body == good[1].value} == {
                "an%20id%20with%20spaces"
            }
            letters = {row.key: row for row in await stage.dead_letters()}
            assert len(letters) == len(bad)
            for one in bad:
                row = letters[one.key]
                assert (row.value, row.partition) == (one.value, one.partition)
                assert row.headers[: len(one.headers)] == one.headers
            records = {row.key: row for row in await stage.records()}
            for key, reason in ((b"k1", "invalid_utf8"), (b"k2", "tombstone"), (b"4", "rejected")):
                check_headers(letters[key], records[key], stage, reason)
            assert await worker.stop() == 0
            assert not (await admin.group()).members


def check_headers(letter: Row, record: Row, stage: Stage, reason: str) -> None:
    """Check a dead letter's headers against its record."""
    assert letter.source == (record.partition, record.offset)
    assert letter.text("kafka_dlt-original-topic") == stage.topic
    assert letter.header("kafka_dlt-original-timestamp") == struct.pack(">q", record.timestamp_ms)
    assert letter.text("kafka_dlt-original-timestamp-type") == "CreateTime"
    assert letter.text("kafka_dlt-original-consumer-group") == stage.group_id
    assert letter.text("kafka_dlt-exception-fqcn")
    assert letter.text("kafka_dlt-exception-message")
    assert letter.text("kafka_dlt-exception-stacktrace")
    assert letter.text("dlq-reason") == reason
    assert letter.text("dlq-attempts") == ("1" if reason == "rejected" else "0")
    assert letter.text("dlq-http-status") == ("422" if reason == "rejected" else None)
    assert letter.text("dlq-redrives") == "0"
    assert letter.text("event-id") == f"{stage.topic}-{record.partition}-{record.offset}"


async def test_headers_with_names_of_any_bytes_delay_nothing(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Such records are delivered, or dead-lettered with the name escaped.

    Other records in the same fetch, of this and other partitions, are not lost.
    """
    async with Scene(kafka, tmp_path) as scene:
        worker = await scene.ready_worker("a")
        await scene.until_all_committed()
        topic = scene.stage.topic
        names = [(OddName(b"\xff-name"), b"\x00\xff")]
        # More than a worker fetches at once, so that other records are fetched with the odd ones.
        backlog = [order(number, partition=number % 3) for number in range(30_000)]
        scene.latency_seconds = 0.2
        producing = asyncio.create_task(scene.stage.publish(backlog))
        await scene.until_accepted(200)
        good = [(b"k1", order_value(50_001), names), (b"k2", order_value(50_002), [])]
        bad = (b"k3", b"no JSON", names)
        *_, bad_at = await produce_odd(kafka.bootstrap_servers, topic, [*good, bad], partition=1)
        scene.dead_lettered.add((1, bad_at))
        await producing
        scene.latency_seconds = 0.0
        await worker.wait_log("Header name is not UTF-8")
        await worker.wait_log("Publishing failed message to DLQ")
        (letter,) = await eventually(scene.stage.dead_letters, 60, "a dead letter")
        assert (letter.key, letter.value, letter.source) == (b"k3", b"no JSON", (1, bad_at))
        assert letter.headers[0] == (r"\xff-name", b"\x00\xff")
        await scene.until_accepted(2 + len(backlog))
        await scene.until_all_committed()
        assert {order_value(50_001), order_value(50_002)} <= set(scene.sink.accepted_bodies)


async def test_an_audit_tells_that_kafka_has_deleted_all_records(
    kafka: RealKafka, stage: Stage, tmp_path: Path
) -> None:
    """An empty partition has no oldest record that would tell how far back one can see."""
    topic = stage.topic
    for name in (stage.topic, stage.dlq_topic):
        await asyncio.to_thread(kafka.create_topic, name, 3)
    commands = relay_on(stage, tmp_path, deliveries_store="off")

    async def remarks() -> str:
        ended = await commands("audit", "--json")
        return "\n".join(ended.objects[-1]["remarks"])

    assert "deleted" not in await remarks()  # none was ever there
    await stage.publish([order(n, partition=n % 3) for n in range(12)])
    for partition in (0, 2):
        await Administration(stage).delete_records(topic, partition, before=4)
    await Administration(stage).delete_records(topic, 1, before=2)
    some = await remarks()
    assert "Kafka has deleted all records of partition 0, 2 from before now" in some
    assert "Kafka keeps records from" in some
    await Administration(stage).delete_records(topic, 1, before=4)
    assert "of partition 0, 1, 2 from before now" in await remarks()
    ended = await commands("audit")
    assert "The ledger closes" in ended.out
    assert "of partition 0, 1, 2 from before now" in " ".join(ended.err.split())


async def test_records_among_gaps_of_every_kind_are_delivered_and_committed(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Two partitions instead of three, deleted beginnings, all compressions, and transactions.

    The worker warns about the partitions. It begins at the first existing record, with or without
    an earlier commit, and logs records that were deleted after a commit. Transaction markers,
    which have offsets, do not stop commits; aborted records are not delivered. Records behind an
    open transaction count as lag, and are delivered when it ends. Records near their deletion are
    counted.
    """
    # So long that records of 1970 are kept, but have passed three quarters of it.
    retention = {"retention.ms": str(round(time.time() * 1.15 * 1000))}
    async with Scene(kafka, tmp_path, partitions=2, topic_configs=retention) as scene:
        stage = scene.stage
        of_1970 = partial(stage.publish, timestamp_ms=OLD_MS)
        scene.commits.not_records = {(p, offset) for p in (0, 1) for offset in range(6)}
        ids = iter(range(1, 1000))

        def some(count: int, partition: int) -> list[Order]:
            return [order(next(ids), partition=partition) for _ in range(count)]

        old = [*some(10, 0), *some(10, 1)]
        await of_1970(old)
        for partition in (0, 1):
            await scene.admin.delete_records(stage.topic, partition, before=6)
        await stage.commit({1: Committed(2)})
        live = [*old[6:10], *old[16:20]]
        for codec in ("gzip", "snappy", "lz4", "zstd"):
            batch = [*some(5, 0), *some(5, 1)]
            live += batch
            await of_1970(batch, config={"compression.type": codec, "linger.ms": 500})
        for partition, ending in ((0, "commit"), (1, "abort"), (1, "commit"), (0, "abort")):
            batch = some(4, partition)
            offsets = [one.offset for one in await of_1970(batch, transaction=ending)]
            scene.commits.not_records.add((partition, offsets[-1] + 1))
            if ending == "commit":
                live += batch
            else:
                scene.commits.not_records.update((partition, offset) for offset in offsets)

        scene.hold()
        worker = await scene.ready_worker("a")

        async def shown(name: str) -> list[float | None]:
            found = await worker.metrics()
            labels = [f'{{partition="{one}",topic="{stage.topic}"}}' for one in (0, 1)]
            return [found.get(f"order_relay_{name}{one}") for one in labels]

        async def are_near() -> bool:
            near = await shown("near_deletion_records")
            return near == [len(old) // 2 + 4 * 5 + 4 - 6] * 2

        # Records up to the first marker, which has the current time.
        await worker.wait_until(are_near, what="to count what is near its deletion")
        scene.let_go()
        await scene.until_accepted(len(live))
        assert sorted(scene.sink.accepted_bodies) == sorted(one.value or b"" for one in live)
        # Both partitions end with a marker.
        await scene.until_all_committed()
        await of_1970(some(1, 0) + some(1, 1))
        await scene.until_all_committed()

        open_one = Producer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "transactional.id": f"{stage.topic}-open",
                "log_level": 0,
            }
        )
        await asyncio.to_thread(open_one.init_transactions, 60)
        open_one.begin_transaction()
        (first,) = some(1, 0)
        open_one.produce(stage.topic, first.value, first.key, 0)
        assert await asyncio.to_thread(open_one.flush, 60) == 0
        behind = some(3, 0)
        published = await stage.publish(behind)
        scene.commits.not_records |= {(0, published[0].offset - 1), (0, published[-1].offset + 1)}

        async def held_back() -> bool:
            seconds = (await shown("transaction_open_seconds"))[0]
            return bool(seconds) and (await shown("consumer_lag"))[0] == 4

        await worker.wait_until(held_back, what="to count what an open transaction holds back")
        accepted = len(scene.accepted)
        await asyncio.to_thread(open_one.abort_transaction, 60)
        await scene.until_accepted(accepted + len(behind))
        await scene.until_all_committed()
        scene.assert_nothing_repeated()
        (told,) = worker.log_lines("Records were deleted before they were delivered")
        assert f"topic={stage.topic} partition=1 first=2 last=5 count=4" in told
        assert (await worker.metrics())["order_relay_deleted_records_total"] == 4
        assert worker.log_lines(f"Topic {stage.topic} has 2 partitions, fewer than TOPIC_PARTITIO")


async def test_a_topic_that_is_deleted_and_made_again(
    kafka: RealKafka, stage: Stage, tmp_path: Path
) -> None:
    """Undelivered records of the old topic are logged as lost; all of the new one are delivered.

    Late deliveries of the old topic do not commit the new one's records at the same offsets.
    """
    topic, admin = stage.topic, Administration(stage)
    kafka.create_topic(topic, 1)
    gate = asyncio.Semaphore(0)
    async with ScriptedSink() as sink:
        sink.script = lambda request: Answer(gate=gate if (request.order_id or 0) <= 30 else None)
        settings: dict[str, Any] = {"max_in_flight": 10, "external_logger_timeout_seconds": 60}
        async with WorkerProcess(tmp_path, stage, sink.url, **settings) as worker:
            await worker.wait_ready()
            await stage.publish(orders(30))
            await sink.wait_for(lambda s: s.open_requests == 10, timeout=60)
            await admin.delete_topic(topic)
            await worker.wait_log("Revoking previously assigned partitions")
            await asyncio.to_thread(kafka.create_topic, topic, 1)
            new = orders(50, first=100)
            await stage.publish(new)
            for _ in range(10):
                gate.release()
            await worker.wait_until(stage.all_committed, what="to commit everything")

            assert {one.value for one in new} <= set(sink.accepted_bodies)
            (told,) = worker.log_lines("Records were deleted before they were delivered")
            assert f"topic={topic} partition=0 first=10 last=29 count=20" in told
            assert (await worker.metrics())["order_relay_deleted_records_total"] == 20
