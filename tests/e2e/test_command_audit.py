"""``order-relay audit`` as a user types it, over the shipped worker."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.support.dead_letter_commands import relay_on
from tests.support.orders import Order, order, orders
from tests.support.publish_command import Ended
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e


def counts(ended: Ended) -> dict[str, int]:
    """The states of the summary that are not 0."""
    summary = ended.objects[-1]
    assert summary["type"] == "summary"
    found = {name: n for name, n in summary.items() if type(n) is int and n}
    assert found.pop("records", 0) == sum(found.values())
    return found


async def test_every_record_is_accounted_for(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Delivered, dead-lettered, redriven and waiting ones; a duplicate counts as delivered."""
    refused = {3, 5}
    sink.script = lambda request: Answer(422 if request.order_id in refused else 200)
    commands = relay_on(stage, tmp_path)
    async with new_worker() as worker:
        await worker.wait_ready()
        first = order(1)
        same = replace(first, headers=(*first.headers, ("event-id", b"paid-once")))
        await stage.publish([same, same, *orders(20, first=2), Order(b"x", b"no JSON")])
        await eventually(stage.all_committed, 60, "everything is committed")
        ended = await commands("audit", "--json")
        assert counts(ended) == {"delivered": 20, "dead_lettered": 3}
        refused.remove(3)
        await commands("dlq", "redrive", "--key", "3", "--yes")
        await sink.wait_for(lambda s: len(s.accepted) == 20, timeout=60)
        await eventually(stage.all_committed, 60, "everything is committed")
        # Its first record was given up, its second one is the order's entry in the table.
        assert counts(await commands("audit", "--json")) == {
            "delivered": 21,
            "dead_lettered": 2,
            "redriven": 1,
        }
    await stage.publish(orders(4, first=100))
    ended = await commands("audit", "--list", "waiting", "--json")
    assert counts(ended)["waiting"] == 4
    listed = [one for one in ended.objects if one["type"] == "record"]
    assert [one["state"] for one in listed] == ["waiting"] * 4
    text = (await commands("audit")).out
    assert "The ledger closes" in text
    assert "28" in text
    assert counts(await commands("audit", "--until", "1h", "--json")) == {}


async def test_a_producer_whose_clock_is_ahead(
    stage: Stage, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Its records are delivered, and so entered, hours before their own time."""
    commands = relay_on(stage, tmp_path)
    hour_ms = 3_600_000
    now_ms = int(time.time() * 1000)
    async with new_worker() as worker:
        await worker.wait_ready()
        await stage.publish(orders(5), timestamp_ms=now_ms + 5 * hour_ms)
        await eventually(stage.all_committed, 60, "everything is committed")
    since = datetime.fromtimestamp((now_ms + 4 * hour_ms) / 1000, UTC).isoformat()
    assert counts(await commands("audit", "--since", since, "--json")) == {"delivered": 5}


async def test_a_finished_record_without_a_trace_does_not_close(
    stage: Stage, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Records that a worker without a deliveries table finished are listed; the status is 1."""
    commands = relay_on(stage, tmp_path)
    async with new_worker() as worker:
        await worker.wait_ready()
        await stage.publish(orders(6))
        await eventually(stage.all_committed, 60, "everything is committed")
        assert await worker.stop() == 0  # else the next one waits until the group removes it
    async with new_worker(deliveries_store="off") as worker:
        await worker.wait_ready()
        await stage.publish(orders(3, first=50))
        await eventually(stage.all_committed, 60, "everything is committed")
    ended = await commands("audit", "--json", statuses=(1,))
    assert counts(ended) == {"delivered": 6, "unaccounted": 3}
    assert not ended.objects[-1]["closes"]
    assert len([one for one in ended.objects if one.get("state") == "unaccounted"]) == 3
    assert "DOES NOT CLOSE" in (await commands("audit", statuses=(1,))).out


async def test_missing_tables_are_named(
    stage: Stage, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Without a deliveries table records are "finished"; a missing database is reported."""
    settings = {"deliveries_store": "off", "database_url": "sqlite+aiosqlite:////nowhere/relay.db"}
    commands = relay_on(stage, tmp_path, **settings)
    async with new_worker(deliveries_store="off") as worker:
        await worker.wait_ready()
        await stage.publish(orders(6))
        await eventually(stage.all_committed, 60, "everything is committed")
    ended = await commands("audit", "--json")
    assert counts(ended) == {"finished": 6}
    remarks = "\n".join(ended.objects[-1]["remarks"])
    assert "DELIVERIES_STORE=off" in remarks
    assert "The fallback table was not read" in remarks


async def test_entries_that_left_the_changelog_are_no_loss(
    stage: Stage, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Kafka deleted entries earlier than the table would: their records count as finished."""
    async with new_worker() as worker:
        await worker.wait_ready()
        await stage.publish(orders(6))
        await eventually(stage.all_committed, 60, "everything is committed")
    # The embedded cluster drops the oldest of what is over 5 MiB.
    table = replace(stage, topic=stage.settings().deliveries_changelog_topic)
    large = [Order(b"later", b"x" * 900_000, partition=n % 3) for n in range(24)]
    await table.publish(large)
    ended = await relay_on(stage, tmp_path)("audit", "--json")
    assert counts(ended) == {"finished": 6}
    assert "The deliveries table begins at" in "".join(ended.objects[-1]["remarks"])


async def test_a_time_that_no_calendar_has(stage: Stage, tmp_path: Path) -> None:
    """Records may have any timestamp, even beyond the calendar; the audit still works."""
    producer = Producer({"bootstrap.servers": stage.bootstrap_servers})
    for _ in range(8):
        producer.produce(stage.topic, b"x" * 900_000, partition=0, timestamp=2**62)
        assert producer.flush(30) == 0
    ended = await relay_on(stage, tmp_path, deliveries_store="off")("audit", "--json")
    assert set(counts(ended)) == {"waiting"}
    assert "Kafka keeps records from" in "".join(ended.objects[-1]["remarks"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--since", "soon"), "must be ISO 8601"),
        (("--since", "1h", "--until", "2h"), "--since must be before --until"),
        (("--list", "lost"), "is not one of"),
        (("--limit", "0"), "is not in the range"),
        (("--consumer", "nobody"), "must name one of: order_logging"),
    ],
)
async def test_wrong_arguments_are_told(
    stage: Stage, tmp_path: Path, arguments: tuple[str, ...], error: str
) -> None:
    """One line that names what is allowed."""
    assert error in await relay_on(stage, tmp_path).refused("audit", *arguments)
