"""A record's trace context in the relay: to the target, into the log, and into its dead letter."""

import logging

import pytest

from order_relay.delivery.dead_letters import dead_letter_headers
from tests.support.fakes import Bench, answer, record
from tests.support.virtual_time import virtual_time

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
HEADERS = [
    ("traceparent", TRACEPARENT.encode()),
    ("tracestate", b"rojo=1"),
    ("tracestate", b"congo=2"),
]


@virtual_time
async def test_every_attempt_carries_it(caplog: pytest.LogCaptureFixture) -> None:
    """The retries too; the lines about the record name its trace, last."""
    bench = Bench()
    traced, plain = record(0, "a", headers=HEADERS), record(1, "b", headers=[("event-id", b"1")])
    bench.target.plan(traced, answer(503), answer(503), answer(200))
    bench.target.plan(plain, answer(503), answer(200))
    await bench.deliver(traced, plain)
    of_traced = [a.trace for a in bench.target.attempts if a.event_id == traced.idempotency_key()]
    assert [trace.headers() for trace in of_traced if trace] == [
        (("traceparent", TRACEPARENT), ("tracestate", "rojo=1,congo=2"))
    ] * 3
    assert {a.trace for a in bench.target.attempts if a.event_id == "1"} == {None}
    retries = [text for text in caplog.messages if text.startswith("Retrying message ")]
    assert [text.endswith(f" trace_id={TRACE_ID}") for text in retries].count(True) == 2
    assert [text for text in retries if "trace_id" not in text] == [
        text for text in retries if "event_id=1 " in text
    ]


@virtual_time
async def test_a_malformed_one_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The record is delivered without it, and the log says nothing of a trace."""
    bench = Bench()
    broken = record(0, headers=[("traceparent", b"00-\r\nX-Injected: 1"), ("tracestate", b"a=1")])
    bench.target.plan(broken, answer(503), answer(200))
    await bench.deliver(broken)
    assert {attempt.trace for attempt in bench.target.attempts} == {None}
    assert "trace_id" not in caplog.text


@virtual_time
@pytest.mark.parametrize("malformed", [False, True])
async def test_a_dead_letter_keeps_its_headers_byte_for_byte(
    malformed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Both tracestates and their order, and what is malformed, stand in it as they came."""
    bench = Bench()
    headers = [("traceparent", b"\xff\r\n"), *HEADERS[1:]] if malformed else HEADERS
    given_up = bench.target.plan(record(0, headers=headers), answer(422))
    with caplog.at_level(logging.ERROR):
        await bench.deliver(given_up)
    (letter,) = bench.dead_letters.letters
    kept = [
        header
        for header in dead_letter_headers(letter, "group", "order_logging")
        if header[0].startswith("trace")
    ]
    assert kept == headers
    (line,) = caplog.messages
    assert line.endswith(f" trace_id={TRACE_ID}") is not malformed
