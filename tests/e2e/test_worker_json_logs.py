"""LOG_FORMAT=json: every line that the shipped programs write to the log is one JSON object."""

import asyncio
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.embedded import EmbeddedKafka
from tests.support.orders import order, order_value, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import ROOT, NewWorker, WorkerProcess

pytestmark = pytest.mark.e2e

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def parsed(text: str) -> list[dict[str, Any]]:
    """The lines of a log; fails at a line that is not an object with the common fields."""
    lines = []
    for line in text.splitlines():
        try:
            fields = json.loads(line, parse_constant=pytest.fail)
        except ValueError:
            pytest.fail(f"not a line of JSON: {line!r}")
        assert re.fullmatch(TIMESTAMP, fields["timestamp"]), line
        assert fields["level"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), line
        assert isinstance(fields["logger"], str)
        assert isinstance(fields["message"], str)
        lines.append(fields)
    return lines


def saying(lines: list[dict[str, Any]], phrase: str) -> list[dict[str, Any]]:
    """The lines whose message has a phrase."""
    return [line for line in lines if phrase in line["message"]]


async def test_a_worker_s_whole_log_is_json_with_the_data_as_fields(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """From start to SIGTERM: phrases are messages, and figures are numbers."""
    headers = (("traceparent", TRACEPARENT.encode()), ("tracestate", b"rojo=1,congo=2"))
    retried = replace(order(1, event_id="retried"), headers=(("event-id", b"retried"), *headers))
    broken = replace(order(2, event_id="broken"), value=b"{", headers=headers)
    sink.script = lambda request: Answer(
        503 if request.order_id == 1 and len(sink.attempts("retried")) == 1 else 200
    )
    await stage.publish([retried, broken, *orders(20, first=10)])
    async with new_worker(log_format="json", fallback_stats_interval_seconds=0.5) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == 21, timeout=60)
        await worker.wait_log("Fallback message stats")
        await eventually(stage.all_committed, 20, "everything is committed")
        assert await worker.stop() == 0
    lines = parsed(worker.log_text())
    (retry,) = saying(lines, "Retrying message")
    assert retry["message"] == "Retrying message"
    assert retry["level"] == "WARNING"
    assert retry["topic"] == stage.topic
    assert isinstance(retry["partition"], int)
    assert isinstance(retry["offset"], int)
    assert retry["event_id"] == "retried"
    assert retry["status"] == 503
    assert retry["failures"] == 1
    assert retry["trace_id"] == TRACE_ID
    (given_up,) = saying(lines, "Publishing failed message to DLQ")
    assert given_up["reason"] == "invalid_json"
    assert given_up["status"] is None
    assert given_up["attempts"] == 0
    page = f"/dead-letters?consumer=order_logging&event_id={given_up['event_id']}"
    assert given_up["console"] == f"http://127.0.0.1:{worker.web_port}{page}"
    assert given_up["trace_id"] == TRACE_ID
    figures = saying(lines, "Fallback message stats")[0]
    assert figures["message"] == "Fallback message stats - pending: 0, published: 0, failed: 0"
    assert figures["pending"] == figures["published"] == figures["failed"] == 0
    assert saying(lines, "Worker starting")[0]["group"] == stage.group_id
    assert saying(lines, "Signal received")
    # Successful deliveries log nothing.
    assert not [line for line in lines if line.get("event_id") not in (None, "retried", "broken")
                and not line["message"].startswith("Publishing failed")]  # fmt: skip


async def test_a_kafka_outage_is_told_in_json(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """Warnings of the Kafka clients are JSON, and repeats are limited."""
    stage = fragile.stage()
    first = await stage.publish(orders(50))
    async with WorkerProcess(tmp_path, stage, sink.url, log_format="json") as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(first), timeout=60)
        await worker.wait_ready()
        fragile.down()

        async def noticed() -> bool:
            return not await worker.ready()

        await worker.wait_log("aiokafka")
        await worker.wait_until(noticed, 60, "to notice that Kafka is away")
        await asyncio.to_thread(fragile.up)
        second = await stage.publish(orders(50, first=1000))
        await sink.wait_for(lambda s: len(s.accepted) >= len(first) + len(second), timeout=90)
        assert await worker.stop() == 0
    lines = parsed(worker.log_text())
    complaints = [
        line for line in lines if line["logger"].startswith("aiokafka") and line["level"] != "INFO"
    ]
    assert complaints
    assert len(complaints) < 100


async def test_a_command_prints_what_it_always_prints_and_logs_in_json(
    fragile: EmbeddedKafka, tmp_path: Path
) -> None:
    """``publish`` prints its report on stdout as ever; its log on stderr is JSON."""
    stage = fragile.stage()
    fragile.down()
    environment = {
        "PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT),
        "KAFKA_BOOTSTRAP_SERVERS": stage.bootstrap_servers, "ORDER_PAID_TOPIC": stage.topic,
        "LOG_FORMAT": "json",
    }  # fmt: skip
    command = [sys.executable, "-m", "order_relay", "-l", "warn", "publish", "-"]
    ended = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=tmp_path,
        env=environment,
        input=order_value(1) + b"\n",
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "saved" in ended.stdout.decode()
    logged = [line for line in ended.stderr.decode().splitlines() if line.startswith("{")]
    (saved,) = saying(parsed("\n".join(logged)), "Saved fallback message")
    assert saved["id"] == 1
    assert saved["topic"] == stage.topic
    # The only other line is the command's remark that Kafka is down.
    (remark,) = set(ended.stderr.decode().splitlines()) - set(logged)
    assert "saving events in" in remark
