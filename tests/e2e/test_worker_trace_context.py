"""A record's trace at the logger and at its dead letter; in an outage: test_worker_fallback."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.orders import order
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.e2e

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
STATE = "rojo=1,congo=2"


async def test_a_trace_reaches_the_logger_and_the_dead_letters(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """On every attempt, unchanged; a dead letter has the record's own headers byte for byte."""
    trace = (("traceparent", TRACEPARENT.encode()), ("tracestate", b"rojo=1"),
             ("tracestate", b"congo=2"))  # fmt: skip
    malformed = (("traceparent", b"00-\xff\r\nX-Injected: 1"), ("tracestate", b"a=1"))
    given_up = replace(order(1), headers=trace)
    odd = replace(order(2), headers=malformed)
    plain = order(3)
    sink.script = lambda request: Answer(200 if request.order_id == 3 else 500)
    await stage.publish([given_up, odd, plain])
    async with WorkerProcess(
        tmp_path, stage, sink.url, breaker_failure_threshold=0, consumer_retry_max_attempts=2
    ) as worker:
        await sink.wait_for(lambda s: len(s.requests) == 7, timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        assert await worker.stop() == 0
    by_order: dict[int | None, list[dict[str, str]]] = {}
    for request in sink.requests:
        named = {name: value for name, value in request.headers.items() if "trace" in name}
        by_order.setdefault(request.order_id, []).append(named)
        assert "x-injected" not in request.headers
    assert by_order == {
        1: [{"traceparent": TRACEPARENT, "tracestate": STATE}] * 3,
        2: [{}] * 3,
        3: [{}],
    }
    letters = {letter.key: letter for letter in await stage.dead_letters()}
    assert letters[b"1"].headers[:3] == trace
    assert letters[b"2"].headers[:2] == malformed
    for phrase, times in (("Retrying message", 2), ("Publishing failed message to DLQ", 1)):
        traced = [line.rstrip() for line in worker.log_lines(phrase) if "trace_id" in line]
        assert len(traced) == times
        assert all(line.endswith(f" trace_id={TRACE_ID}") for line in traced)
