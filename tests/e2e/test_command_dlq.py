"""``order-relay dlq …`` as a user types them, on the embedded cluster."""

import asyncio
import json
import os
import signal
import struct
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from tests.support.dead_letter_commands import letter, positions, put_letters, redriving, relay_on
from tests.support.embedded import EmbeddedKafka
from tests.support.odd_records import OddName, produce_odd
from tests.support.orders import Order, order
from tests.support.publish_command import Commands, asked, end_by_signal, nothing_in
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Row, Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e

FETCH = 1  # the API key

FOREIGN = Order(
    None,
    b"\xff\x00",
    (
        ("kafka_dlt-original-topic", b"elsewhere"),
        ("kafka_dlt-original-partition", struct.pack(">i", 2)),
        ("kafka_dlt-original-offset", struct.pack(">q", 77)),
        ("nothing", None),
    ),
    partition=1,
)


async def test_listing_letters(stage: Stage, tmp_path: Path) -> None:
    """By partition and offset, filtered, counted; letters of other programs are listed, too."""
    commands = relay_on(stage, tmp_path)
    none = await commands.in_new_interpreter("dlq", "list")
    assert (none.out, none.err) == ("", "No letters\n")
    mistyped = await commands("dlq", "list", "--reason", "rejectd")
    assert (mistyped.out, mistyped.err) == ("", "No letters match\n")
    later = (("dlq-failed-at", b"2025-12-20T10:30:00.000+00:00"),)
    await put_letters(
        stage,
        [letter(1), letter(2, reason="tombstone"), letter(3, headers=later, partition=2), FOREIGN],
    )
    people = await commands("dlq", "list")
    assert [line.split()[0] for line in people.out.splitlines()[1:]] == ["0:0", "0:1", "1:0", "2:0"]
    assert "\x1b" not in people.out
    assert "paid-1" in people.out
    assert "elsewhere-2-77" in people.out
    (first,) = (await commands("dlq", "list", "--json", "--key", "1")).objects
    assert first == {
        "partition": 0, "offset": 0, "state": "open", "failed_at": "2025-12-19T10:30:00.000Z",
        "reason": "rejected", "http_status": "422", "attempts": None, "redrives": 0, "key": "1",
        "order_id": 1, "event_id": "paid-1", "message": "no such product", "original_topic": None,
        "original_partition": None, "original_offset": None,
    }  # fmt: skip
    assert await positions(commands, "--reason", "rejected") == ["0:0", "2:0"]
    assert await positions(commands, "--until", "2025-12-20", "--since", "2025-12-19") == [
        "0:0",
        "0:1",
    ]
    assert await positions(commands, "--since", "1h") == ["1:0"]
    assert await positions(commands, "--event-id", "elsewhere-2-77", "--limit", "1") == ["1:0"]
    limited = await commands("dlq", "list", "--status", "422", "--limit", "2")
    assert "2 of 3 letters; --limit shows more" in limited.err
    counts = await commands("dlq", "list", "--count", "--json")
    assert counts.objects == [
        {"reason": "rejected", "letters": 2},
        {"reason": None, "letters": 1},
        {"reason": "tombstone", "letters": 1},
    ]


async def test_showing_a_letter(stage: Stage, tmp_path: Path) -> None:
    """Every header decoded, the value as text or in hexadecimal digits, or byte for byte."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [FOREIGN, letter(1), Order(b"k", None, (), 0)])
    (shown,) = (await commands("dlq", "show", "1:0", "--json")).objects
    assert shown["headers"] == [
        ["kafka_dlt-original-topic", "elsewhere"], ["kafka_dlt-original-partition", 2],
        ["kafka_dlt-original-offset", 77], ["nothing", None],
    ]  # fmt: skip
    assert (shown["value"], shown["key"]) == ("\\xff00", None)
    assert shown["event_id"] == "elsewhere-2-77"
    people = (await commands("dlq", "show", "0:0")).out
    assert "header mine" in people
    assert '{"orderId":1}' in people
    assert (
        await commands.in_new_interpreter("dlq", "show", "0:0", "--value")
    ).out == '{"orderId":1}'
    assert "tombstone" in (await commands("dlq", "show", "0:1")).out
    for nowhere in ("0:9", "9:0"):
        line = (await commands("dlq", "show", nowhere, statuses=(1,))).only_line
        assert f"there is no letter {nowhere} in topic {stage.dlq_topic}" in line


async def test_a_letter_whose_headers_cannot_be_read(stage: Stage, tmp_path: Path) -> None:
    """It is listed and shown without headers, and not redriven: its event-id would change.

    Kafka's client leaves a Python error set, which CPython overlooks after calls without one.
    """
    commands = relay_on(stage, tmp_path)
    before = [letter(n) for n in range(20)]
    await put_letters(stage, before)
    odd = (b"k", b'{"orderId":99}', [(OddName(b"\xff"), b"v"), ("event-id", b"paid-99")])
    await produce_odd(stage.bootstrap_servers, stage.dlq_topic, [odd])
    await put_letters(stage, [letter(20)])
    assert await positions(commands) == [f"0:{offset}" for offset in range(22)]
    (shown,) = (await commands("dlq", "show", "0:20", "--json")).objects
    assert (shown["headers_unreadable"], shown["headers"]) == (True, [])
    assert (shown["key"], shown["order_id"]) == ("k", 99)
    assert "headers_unreadable" in (await commands("dlq", "show", "0:20")).out
    redriven = await commands("dlq", "redrive", "--all", "--yes")
    assert "its headers cannot be read" in redriven.out
    assert "21 letters were redriven" in redriven.out
    assert await positions(commands) == ["0:20"]


async def test_what_was_redriven_is_not_redriven_again(stage: Stage, tmp_path: Path) -> None:
    """By position, by filter, then the rest: each goes out once, as its record came."""
    commands = relay_on(stage, tmp_path)
    often = (("dlq-redrives", b"3"),)
    await put_letters(
        stage,
        [
            *(letter(n) for n in range(4)),
            letter(4, reason="tombstone"),
            letter(5, headers=often),
            FOREIGN,
        ],
    )
    dry = await commands("dlq", "redrive", "--all", "--dry-run")
    assert f"6 letters would be redriven to {stage.topic}; nothing was changed" in dry.out
    assert "it was redriven 3 times before: --max-redrives is 3" in dry.out
    assert await stage.records() == []
    by_place = await commands("dlq", "redrive", "0:2", "0:9", "--json", statuses=(1,))
    assert [(one.get("offset"), one.get("result")) for one in by_place.objects] == [
        (9, "skipped"),
        (2, "redriven"),
        (None, None),
    ]
    assert await positions(commands) == ["0:0", "0:1", "0:3", "0:4", "0:5", "1:0"]
    again = await commands("dlq", "redrive", "0:2", statuses=(1,))
    assert "it was redriven or discarded already" in again.out
    assert "0 letters were redriven" in again.out
    by_reason = await commands("dlq", "redrive", "--reason", "tombstone", "--yes")
    assert f"1 letter was redriven to {stage.topic}" in by_reason.out
    rest = await commands("dlq", "redrive", "--all", "--yes", "--rate", "100")
    assert "4 letters were redriven" in rest.out
    assert "0:5" in rest.out
    assert await positions(commands) == ["0:5"]
    states = (await commands("dlq", "list", "--all", "--json")).objects
    assert [one["state"] for one in states] == [*["redriven"] * 5, "open", "redriven"]
    last = await commands("dlq", "redrive", "--all", "--yes", "--max-redrives", "4")
    assert "1 letter was redriven" in last.out
    assert (await commands("dlq", "list")).err == "No letters\n"

    records = await stage.records()
    assert sorted(row.text("event-id") or "" for row in records) == [
        "elsewhere-2-77", *(f"paid-{n}" for n in range(6)),
    ]  # fmt: skip
    by_id = {row.text("event-id"): row for row in records}
    assert by_id["paid-0"] == Row(
        stage.topic,
        0,
        by_id["paid-0"].offset,
        b"0",
        b'{"orderId":0}',
        (
            ("mine", b"\xff"),
            ("event-id", b"paid-0"),
            ("dlq-consumer", b"order_logging"),
            ("dlq-redrives", b"1"),
        ),
        by_id["paid-0"].timestamp_ms,
    )
    assert by_id["paid-5"].text("dlq-redrives") == "4"
    assert (by_id["elsewhere-2-77"].partition, by_id["elsewhere-2-77"].value) == (2, b"\xff\x00")
    committed = await redriving(stage).committed()
    assert {number: one.offset for number, one in committed.items()} == {0: 6, 1: 1}


async def test_redriving_on_a_terminal_asks(stage: Stage, tmp_path: Path) -> None:
    """Only yes redrives, and only the letters that the question counted, not later ones."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(1)])
    for answer, left in ((b"n\n", ["0:0"]), (b"y\n", ["0:1"])):
        async with asked(commands, "dlq", "redrive", "--all") as question:
            assert b"Redrive 1 letter to " in question.words
            if answer == b"y\n":
                await put_letters(stage, [letter(2)])
            os.write(question.terminal, answer)
            await question.process.communicate()
        assert await positions(commands) == left
    async with asked(commands, "dlq", "purge", "--all") as question:
        ended = await end_by_signal(question.process, signal.SIGINT)
    assert ended.status == 128 + signal.SIGINT
    assert "Nothing was deleted" in ended.err
    assert "Traceback" not in ended.err


async def test_a_rejected_order_is_delivered_after_all(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Rejected, redriven with its event id, rejected again, redriven, delivered once."""

    def rejecting(request: Received) -> Answer:
        return Answer(422) if request.order_id == 1 else Answer()

    sink.script = rejecting
    commands = relay_on(stage, tmp_path)
    async with new_worker() as worker:
        await worker.wait_ready()
        (one,) = await stage.publish([order(1)])
        await eventually(stage.all_committed, 30, "the order is dead-lettered")
        await commands("dlq", "redrive", "--all", "--yes")
        await sink.wait_for(lambda s: len(s.requests) == 2)
        await eventually(stage.all_committed, 30, "the order is dead-lettered again")
        first, second = await stage.dead_letters()
        assert (first.text("dlq-redrives"), second.text("dlq-redrives")) == ("0", "1")
        assert (first.source, second.source) == (
            (one.partition, one.offset),
            (one.partition, one.offset + 1),
        )
        assert [name for name, _ in second.headers].count("event-id") == 1
        assert (second.key, second.value) == (one.key, one.value)

        sink.script = lambda request: Answer()
        assert await positions(commands) == [f"{one.partition}:{second.offset}"]
        await commands("dlq", "redrive", "--all", "--yes")
        await sink.wait_for(lambda s: len(s.accepted) == 1)
        await eventually(stage.all_committed, 30, "the order is delivered")
        assert {r.idempotency_key for r in sink.requests} == {one.event_id}
        assert {r.body for r in sink.requests} == {one.value}
        assert (await stage.records())[-1].text("dlq-redrives") == "2"

        # Once more, as after a crash between publishing and committing.
        await put_letters(
            stage, [Order(second.key, second.value, second.headers, second.partition)]
        )
        await commands("dlq", "redrive", "--all", "--yes")
        await eventually(stage.all_committed, 30, "the duplicate is finished")
        assert len(sink.requests) == 3
        metrics = await worker.metrics()
        assert metrics['order_relay_deliveries_total{outcome="duplicate"}'] == 1
        assert await worker.stop() == 0


async def test_purging_where_brokers_cannot(stage: Stage, tmp_path: Path) -> None:
    """A dry run counts letters; the embedded cluster's refusal is one line."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(n) for n in range(3)])
    for arguments, letters in ((("--all",), 3), (("--before", "1h"), 3), ((), 0)):
        (first, *_) = (await commands("dlq", "purge", "--dry-run", "--json", *arguments)).objects
        assert first == {
            "partition": 0, "before": letters, "letters": letters, "open": letters, "dry_run": True,
        }  # fmt: skip
    line = (await commands("dlq", "purge", "--all", "--yes", statuses=(1,))).only_line
    assert "cannot delete records" in line


async def test_wrong_arguments_get_one_line(tmp_path: Path) -> None:
    """The line names what is wrong and what is allowed; nothing is made in the folder."""
    commands = Commands(tmp_path)
    wrong = {
        "list --since yesterday": "ISO 8601",
        "list --since 1h --until 2h": "--since must be before --until",
        "list --limit 0": "1<=x",
        "list --status 42": "100<=x<=599",
        "show": "PARTITION:OFFSET",
        "show first": "PARTITION:OFFSET",
        "show 0:1 --value --json": "not both",
        "redrive": "say which letters",
        "redrive 7": "PARTITION:OFFSET",
        "redrive 0:1 --all": "not both",
        "redrive --all": "--yes",
        "redrive --all --yes --rate 0": "--rate",
        "redrive --all --yes --rate nan": "--rate",
        "redrive --yes --message=": "must not be empty",
        "purge": "--yes",
        "purge --all --before 1h --yes": "not both",
    }
    lines = await asyncio.gather(*(commands.refused("dlq", *words.split()) for words in wrong))
    for told, line in zip(wrong.values(), lines, strict=True):
        assert told in line
    assert nothing_in(tmp_path)


async def test_kafka_that_cannot_be_used_gets_one_line(tmp_path: Path) -> None:
    """Without Kafka, the line names the servers; no stack trace."""
    commands = Commands(tmp_path)
    told = await asyncio.gather(
        commands("dlq", "list", statuses=(1,)),
        commands("dlq", "show", "0:0", statuses=(1,)),
        commands("dlq", "redrive", "--all", "--yes", statuses=(1,)),
        commands("dlq", "purge", "--dry-run", statuses=(1,)),
    )
    for ended in told:
        assert "Kafka cannot be reached at 127.0.0.1:1" in ended.only_line


async def test_a_topic_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    """The summary counts what was redriven before, and says why the rest was not."""
    with EmbeddedKafka() as kafka:
        stage = kafka.stage()
        commands = relay_on(stage, tmp_path)
        await put_letters(stage, [letter(n, partition=n % 2) for n in range(8)])
        arguments = ("--all", "--yes", "--rate", "4", "--json")
        process = await commands.start("dlq", "redrive", *arguments)
        assert process.stdout is not None
        first = await process.stdout.readline()
        kafka.refuse(KafkaError.TOPIC_AUTHORIZATION_FAILED, count=1_000, api_key=FETCH)
        out, _ = await process.communicate()
    *lines, summary = (json.loads(line) for line in (first + out).splitlines())
    assert process.returncode == 1
    assert [one["result"] for one in lines] == ["redriven"] * len(lines)
    assert summary["redriven"] == len(lines) < 8
    assert f"{stage.dlq_topic} cannot be used" in summary["stopped"]
