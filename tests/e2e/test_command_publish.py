"""``faust -A app publish`` as a user types it, on the embedded cluster and without one."""

import asyncio
import json
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from app.publishing.fallback import RowFilter
from app.publishing.sql_store import SqlFallbackStore
from tests.support.embedded import EmbeddedKafka
from tests.support.orders import order_value
from tests.support.publish_command import Relay, end_by_signal, nothing_in
from tests.support.stage import Stage

pytestmark = pytest.mark.e2e


def relay_on(stage: Stage, folder: Path, **settings: object) -> Relay:
    """A relay on that cluster."""
    return Relay(
        folder,
        kafka_bootstrap_servers=stage.bootstrap_servers,
        kafka_declare_topics=stage.declare_topics,
        order_paid_topic=stage.topic,
        dlq_topic=stage.dlq_topic,
        consumer_group_id=stage.group_id,
        **settings,
    )


def lines(values: Iterable[bytes]) -> bytes:
    """A file of these lines."""
    return b"".join(value + b"\n" for value in values)


async def test_publishing_a_file(stage: Stage, tmp_path: Path) -> None:
    """Every good line is in Kafka byte for byte, keys in order; bad ones are named; status 1."""
    values = [order_value(n % 50, number=n) for n in range(500)]
    values[100:100] = [b"", b"{bad", b'{"eventType":"ORDER_PAID"}']
    await asyncio.to_thread((tmp_path / "orders.jsonl").write_bytes, lines(values))
    relay = relay_on(stage, tmp_path)
    ended = await relay("publish", "orders.jsonl", statuses=(1,))
    assert [line.split()[:2] for line in ended.out.splitlines()[:4]] == [
        ["published", "500"],
        ["saved", "0"],
        ["refused", "2"],
        ["failed", "0"],
    ]
    assert "line 102 refused: the value is not JSON" in ended.out
    assert "line 103 refused" in ended.out
    assert not ended.err
    rows = await stage.records()
    good = [order_value(n % 50, number=n) for n in range(500)]
    assert sorted(row.value or b"" for row in rows) == sorted(good)
    for key in range(50):
        mine = [row.value for row in rows if row.key == b"%d" % key]
        assert mine == [value for value in good if json.loads(value)["orderId"] == key]


async def test_publishing_from_a_pipe_twice(stage: Stage, tmp_path: Path) -> None:
    """JSON says where each line is; again from stdin, the same lines have the same event ids."""
    relay = relay_on(stage, tmp_path)
    content = lines(order_value(n) for n in range(1, 6))
    first = await relay("publish", "-", "--json", stdin=content)
    again = await relay("publish", "-", "--json", stdin=content)
    new = await relay("publish", "-", "--json", "--new-ids", stdin=content)
    ids = []
    for ended in (first, again, new):
        *told, summary = ended.objects
        assert summary["published"] == 5
        assert sorted(one["line"] for one in told) == [1, 2, 3, 4, 5]
        ids.append({one["event_id"] for one in told})
        assert not ended.err
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]
    found = {(row.partition, row.offset): row.text("event-id") for row in await stage.records()}
    told = [one for one in first.objects if one["type"] == "line"]
    assert all(found[one["partition"], one["offset"]] == one["event_id"] for one in told)


async def test_without_kafka_events_are_saved(tmp_path: Path) -> None:
    """All are in the table soon, in order, the reason is told once, and the status is 0."""
    relay = Relay(tmp_path)
    ended = await relay("publish", "-", stdin=lines(order_value(n) for n in range(1, 301)))
    assert "cannot be reached at 127.0.0.1:1" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ["saved", "300"] in [line.split()[:2] for line in ended.out.splitlines()]
    assert str(relay.database) in ended.out
    store = SqlFallbackStore.connect(relay.database_url)
    rows = await store.find(RowFilter(), limit=1000)
    await store.close()
    assert [row.payload for row in rows] == [order_value(n) for n in range(1, 301)]


async def test_when_nobody_takes_events(tmp_path: Path) -> None:
    """Neither Kafka nor a database: the status is 1 and the report has both causes."""
    relay = Relay(tmp_path, database_url="postgresql://relay:hush@127.0.0.1:1/orders")
    ended = await relay("publish", "-", stdin=lines([order_value(1)] * 3), statuses=(1,))
    assert "Traceback" not in ended.err
    assert "hush" not in ended.out + ended.err
    assert "neither Kafka nor the database takes events" in ended.out
    (first,) = [line for line in ended.out.splitlines() if line.startswith("line 1 failed")]
    assert "Kafka cannot be reached" in first


async def test_a_signal_ends_the_reading_only(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """After SIGTERM what was read is accounted for, though the pipe stays open."""
    stage = embedded.stage()
    process = await relay_on(stage, tmp_path).start("publish", "-", "--json")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(lines(order_value(n) for n in range(1, 4)))
    async with asyncio.timeout(90):
        told = [json.loads(await process.stdout.readline()) for _ in range(3)]
    ended = await end_by_signal(process, signal.SIGTERM)
    assert {one["result"] for one in told} == {"published"}
    (summary,) = ended.objects
    assert summary["published"] == 3
    assert "signal" in summary["stopped"]
    assert ended.status == 128 + signal.SIGTERM
    assert len(await stage.records()) == 3


async def test_wrong_arguments_get_one_line(tmp_path: Path) -> None:
    """No file, a folder, no argument: one line, status 2, and no database is made."""
    relay = Relay(tmp_path)
    for arguments in (("publish",), ("publish", "missing.jsonl"), ("publish", str(tmp_path))):
        assert "- for stdin" in await relay.refused(*arguments)
    assert "--json" in await relay.refused("publish", "-", "--jsn")
    assert nothing_in(tmp_path)
