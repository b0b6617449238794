"""TRACING=otlp: one trace from the order service to the logger, through retries and redrives."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from order_relay.publishing.order_events import open_order_events
from order_relay.publishing.publisher import Published
from tests.support.dead_letter_commands import relay_on
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.orders import order, orders
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.publish_ways import paid
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TRACE_HEADERS = (("traceparent", f"00-{TRACE_ID}-{CALLER}-01".encode()), ("tracestate", b"rojo=1"))
# Parts of events, answers and settings that no span may contain.
SECRETS = ("Bearer", "t0ken", "no such product", "productX", "orderItems", "/logs")


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OtlpReceiver]:
    """A collector; the order service of this process sends to it, too."""
    async with OtlpReceiver() as listening:
        for name, value in traced(listening.url).items():
            monkeypatch.setenv(name.upper(), str(value))
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        yield listening


def traced(url: str) -> dict[str, Any]:
    """Settings that soon send spans there."""
    return {"tracing": "otlp", "otel_exporter_otlp_endpoint": url, "otel_bsp_schedule_delay": 100}


def only(spans: list[ReceivedSpan], name: str, parent: str, **attributes: object) -> ReceivedSpan:
    """The one span of that name, parent and attributes (with "_" for ".")."""
    (found,) = (
        span
        for span in spans
        if (span.name, span.parent_id) == (name, parent)
        and attributes.items()
        <= {key.replace(".", "_"): value for key, value in span.attributes.items()}.items()
    )
    return found


async def test_an_order_s_trace_from_the_shop_to_the_logger(
    stage: Stage, sink: ScriptedSink, receiver: OtlpReceiver, tmp_path: Path, new_worker: NewWorker
) -> None:
    """A retry, and a dead letter with its redrive: each span's parent is its cause."""

    def script(request: Received) -> Answer:
        if request.order_id == 1:
            return Answer(503 if request.attempt == 1 else 200)
        return Answer(422, body=b"no such product: productX") if request.attempt == 1 else Answer()

    sink.script = script
    async with (
        open_order_events(
            stage.settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/shop.db")
        ) as events,
        new_worker(
            external_logger_token="t0ken", breaker_failure_threshold=0, **traced(receiver.url)
        ) as worker,
    ):
        first = await events.publisher.publish(paid(1), headers=TRACE_HEADERS)
        second = await events.publisher.publish(paid(2))
        await sink.wait_for(lambda s: len(s.requests) == 3, timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        (letter,) = await stage.dead_letters()
        commands = relay_on(stage, tmp_path, **traced(receiver.url))
        position = f"{letter.partition}:{letter.offset}"
        await commands.in_new_interpreter("dlq", "redrive", position, "--yes")
        await sink.wait_for(lambda s: len(s.accepted) == 2, timeout=60)
        await receiver.wait_for(lambda spans: len(spans) >= 12)
        assert await worker.stop() == 0
    assert isinstance(first, Published)
    assert isinstance(second, Published)
    spans = receiver.of_trace(TRACE_ID)
    publish = only(spans, f"publish {stage.topic}", CALLER)
    assert (publish.kind, publish.service, publish.failed) == ("producer", "shop", False)
    place = {
        "messaging.system": "kafka",
        "messaging.destination.name": stage.topic,
        "messaging.destination.partition.id": str(first.partition),
        "messaging.kafka.offset": first.offset,
    }
    assert publish.attributes == place | {
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    for attempt, status, verdict in ((1, 503, "retryable"), (2, 200, "success")):
        error = {"error.type": str(status)} if status != 200 else {}
        process = only(
            spans, f"process {stage.topic}", publish.span_id, order_relay_attempt=attempt
        )
        assert (process.kind, process.service) == ("consumer", "order-relay")
        assert process.attributes == place | error | {
            "messaging.operation.name": "process", "messaging.operation.type": "process",
            "messaging.consumer.group.name": stage.group_id, "messaging.message.id": first.event_id,
            "http.response.status_code": status, "order_relay.consumer": "order_logging",
            "order_relay.attempt": attempt, "order_relay.verdict": verdict,
        }  # fmt: skip
        post = only(spans, "POST", process.span_id)
        assert post.kind == "client"
        assert post.attributes == error | {
            "http.request.method": "POST", "http.response.status_code": status,
            "server.address": LOOPBACK, "server.port": sink.port, "url.scheme": "http",
        }  # fmt: skip
        assert process.failed is post.failed is bool(error)
        sent = [one for one in sink.requests if one.order_id == 1][attempt - 1]
        assert post.is_parent_in(sent.headers["traceparent"])
        assert sent.headers["tracestate"] == "rojo=1" == post.trace_state
    assert len(spans) == 5
    # The second order's trace begins with the shop's publish.
    (root,) = (span for span in receiver.spans if not span.parent_id)
    spans = receiver.of_trace(root.trace_id)
    assert (root.name, root.service) == (f"publish {stage.topic}", "shop")
    refused = only(spans, f"process {stage.topic}", root.span_id, order_relay_verdict="rejected")
    assert only(spans, "POST", refused.span_id).attributes["error.type"] == "422"
    dead_letter = only(
        spans,
        f"dead_letter {stage.dlq_topic}",
        root.span_id,
        order_relay_dead_letter_reason="rejected",
        messaging_destination_name=stage.dlq_topic,
    )
    assert dead_letter.is_parent_in(letter.text("traceparent"))
    redrive = only(spans, f"redrive {stage.topic}", dead_letter.span_id)
    assert redrive.kind == dead_letter.kind == "producer"
    accepted = only(spans, f"process {stage.topic}", redrive.span_id, order_relay_verdict="success")
    assert (
        accepted.attributes["messaging.kafka.offset"]
        == redrive.attributes["messaging.kafka.offset"]
    )
    last = only(spans, "POST", accepted.span_id)
    assert last.is_parent_in(sink.requests[-1].headers["traceparent"])
    assert len(spans) == 7
    assert not [word for word in SECRETS if word in repr(receiver.spans)]
    for phrase, trace_id in (
        ("Retrying message", TRACE_ID),
        ("Publishing failed message to DLQ", root.trace_id),
    ):
        (line,) = worker.log_lines(phrase)
        assert line.rstrip().endswith(f" trace_id={trace_id}")


async def test_a_record_without_a_trace_begins_one(
    stage: Stage, sink: ScriptedSink, receiver: OtlpReceiver, new_worker: NewWorker
) -> None:
    """All attempts and log lines are in the new trace, even if the record's own is malformed."""
    sink.script = lambda request: Answer(503 if request.attempt == 1 else 200)
    malformed = (("traceparent", b"00-\xff\r\nX-Injected: 1"), ("tracestate", b"a=1"))
    await stage.publish([replace(order(1), headers=()), replace(order(2), headers=malformed)])
    async with new_worker(**traced(receiver.url)) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == 2, timeout=60)
        await receiver.wait_for(lambda spans: len(spans) == 10)
        assert await worker.stop() == 0
    begun = [span for span in receiver.spans if not span.parent_id]
    assert [(span.name, span.kind) for span in begun] == [(f"receive {stage.topic}", "client")] * 2
    for span in begun:
        names = [one.name for one in receiver.of_trace(span.trace_id)]
        assert sorted(names) == sorted([span.name, *["POST"] * 2, *[f"process {stage.topic}"] * 2])
    logged = [line.rstrip().rpartition("trace_id=")[2] for line in worker.log_lines("Retrying")]
    assert sorted(logged) == sorted(span.trace_id for span in begun)


@pytest.mark.parametrize("collector", ["absent", "hanging", "refusing"])
async def test_no_delivery_depends_on_the_collector(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker, collector: str
) -> None:
    """Each order is sent once, the worker stops cleanly, and the log has few lines about it."""
    async with OtlpReceiver() as receiver:
        url = receiver.url
        if collector == "absent":
            url = f"http://{LOOPBACK}:{free_ports(1)[0]}"
        elif collector == "hanging":
            receiver.gate.clear()
        else:
            receiver.status = 400
        count = 600
        await stage.publish(orders(count))
        async with new_worker(
            # Small, so that it is full: most spans are dropped.
            otel_bsp_max_queue_size=64,
            otel_bsp_max_export_batch_size=32,
            **traced(url),
        ) as worker:
            await sink.wait_for(lambda s: len(s.accepted) == count, timeout=60)
            await eventually(stage.all_committed, 20, "everything is committed")
            if collector != "absent":
                await eventually(lambda: receiver.requests > 0, 20, "the collector is asked")
            assert await worker.stop() == 0
        assert not receiver.spans
    assert len(sink.requests) == count
    # Each message is logged at most once in 30 seconds.
    assert len(worker.log_lines("otel")) + len(worker.log_lines("span")) <= 10
    assert not worker.log_lines("Traceback")
