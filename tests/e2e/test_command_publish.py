"""``order-relay publish`` as a user types it, on the embedded cluster and without one."""

import asyncio
import json
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from order_relay.fallback.store import RowFilter
from order_relay.fallback.table import FallbackTable
from tests.support.dead_letter_commands import relay_on
from tests.support.embedded import EmbeddedKafka
from tests.support.orders import order_value
from tests.support.publish_command import LIMIT_SECONDS, Commands, end_by_signal, nothing_in
from tests.support.stage import Stage

pytestmark = pytest.mark.e2e


def lines(values: Iterable[bytes]) -> bytes:
    """A file of these lines."""
    return b"".join(value + b"\n" for value in values)


async def test_publishing_a_file(stage: Stage, tmp_path: Path) -> None:
    """Every good line is in Kafka byte for byte, keys in order; bad ones are named; status 1."""
    values = [order_value(n % 50, number=n) for n in range(500)]
    values[100:100] = [b"", b"{bad", b'{"eventType":"ORDER_PAID"}']
    await asyncio.to_thread((tmp_path / "orders.jsonl").write_bytes, lines(values))
    commands = relay_on(stage, tmp_path)
    ended = await commands.in_new_interpreter("publish", "orders.jsonl", statuses=(1,))
    assert [line.split()[:2] for line in ended.out.splitlines()[:4]] == [
        ["published", "500"], ["saved", "0"], ["refused", "2"], ["failed", "0"],
    ]  # fmt: skip
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
    """JSON has each line's partition and offset; published again, lines keep their event ids."""
    commands = relay_on(stage, tmp_path)
    content = lines(order_value(n) for n in range(1, 6))
    first = await commands("publish", "-", "--json", stdin=content)
    again = await commands("publish", "-", "--json", stdin=content)
    new = await commands("publish", "-", "--json", "--new-ids", stdin=content)
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
    """All are saved in order, one line has the reason, and the status is 0."""
    commands = Commands(tmp_path)
    ended = await commands("publish", "-", stdin=lines(order_value(n) for n in range(1, 301)))
    assert "cannot be reached at 127.0.0.1:1" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ["saved", "300"] in [line.split()[:2] for line in ended.out.splitlines()]
    assert str(commands.database) in ended.out
    store = FallbackTable(commands.database_url)
    rows = await store.find(RowFilter(), limit=1000)
    await store.close()
    assert [row.payload for row in rows] == [order_value(n) for n in range(1, 301)]


async def test_events_that_neither_kafka_nor_the_database_takes(tmp_path: Path) -> None:
    """Without Kafka and a database, the status is 1; the report has both causes."""
    commands = Commands(tmp_path, database_url="postgresql://relay:hush@127.0.0.1:1/orders")
    ended = await commands("publish", "-", stdin=lines([order_value(1)] * 3), statuses=(1,))
    assert "Traceback" not in ended.err
    assert "hush" not in ended.out + ended.err
    assert "neither Kafka nor the database takes events" in ended.out
    (first,) = [line for line in ended.out.splitlines() if line.startswith("line 1 failed")]
    assert "Kafka cannot be reached" in first


async def test_a_signal_ends_the_reading_only(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """SIGTERM ends it with an open pipe; the report counts all lines read."""
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


async def test_a_dry_run_publishes_nothing(tmp_path: Path) -> None:
    """Every line is checked, without Kafka and a database; the status is that of a real run."""
    commands = Commands(tmp_path)
    good = lines([order_value(1), order_value(2)])
    people = await commands("publish", "-", "--dry-run", stdin=good + b"{bad\n", statuses=(1,))
    assert people.out.splitlines()[0].split() == [
        *("would", "be", "published", "2", "to", "topic", "order-paid-events")
    ]
    assert "line 3 would be refused: the value is not JSON" in people.out
    assert people.out.endswith("nothing was published\n")
    assert not people.err
    told = (await commands("publish", "-", "--dry-run", "--json", stdin=good)).objects
    assert [one.get("result") for one in told] == ["published", "published", None]
    assert all(one["dry_run"] for one in told)
    in_earnest = (await commands("publish", "-", "--json", stdin=good)).objects
    assert [one.get("event_id") for one in told] == [one.get("event_id") for one in in_earnest]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    await Commands(fresh)("publish", "-", "--dry-run", stdin=good)
    assert nothing_in(fresh)


@pytest.mark.parametrize("line", [order_value(1), b"{bad"])
async def test_a_reader_of_the_report_that_leaves(tmp_path: Path, line: bytes) -> None:
    """When stdout breaks, it stops reading, finishes what it began, and prints one line."""
    report, stdout = os.pipe()
    try:
        process = await Commands(tmp_path).start("publish", "-", "--json", stdout=stdout)
    finally:
        os.close(stdout)
    assert process.stdin is not None
    assert process.stderr is not None
    async with asyncio.timeout(LIMIT_SECONDS):
        process.stdin.write(lines([line]))
        assert await asyncio.to_thread(os.read, report, 1)
        os.close(report)
        process.stdin.write(lines([line] * 20))
        err = (await process.stderr.read()).decode()
        assert await process.wait() == 1
    process.stdin.close()
    assert "Traceback" not in err
    told = err.splitlines()[-1]
    assert told.startswith("stdout cannot be written: Broken pipe; 0 published, 21 ")
    assert told.endswith("; stopped there; publish the file again for the rest")


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--json", "--dry-run")])
async def test_a_disk_that_is_full(tmp_path: Path, arguments: Sequence[str]) -> None:
    """A report that cannot be written is one line, and status 1."""
    event = lines([order_value(1)])
    told = await Commands(tmp_path).into_a_full_disk("publish", "-", *arguments, stdin=event)
    assert told[-1].startswith("stdout cannot be written: No space left on device; ")
    assert len(told) == (1 if "--dry-run" in arguments else 2)  # Kafka cannot be reached


async def test_wrong_arguments_get_one_line(tmp_path: Path) -> None:
    """No file, a folder, no argument: one line, status 2, and no database is made."""
    commands = Commands(tmp_path)
    for arguments in (("publish",), ("publish", "missing.jsonl"), ("publish", str(tmp_path))):
        assert "FILE" in await commands.refused(*arguments)
    assert "--json" in await commands.refused("publish", "-", "--jsn")
    assert nothing_in(tmp_path)
