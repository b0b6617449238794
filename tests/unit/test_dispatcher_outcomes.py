"""What the relay reports when a record ends, and its trace."""

import asyncio
import logging

import pytest

from order_relay.delivery.answer import RetryPolicy
from order_relay.delivery.dead_letters import dead_letter_headers
from order_relay.delivery.outcome import FailureState, Outcome
from tests.support.fakes import START_SECONDS, Bench, Step, answer, record

pytestmark = pytest.mark.virtual_time

START_MS = int(START_SECONDS * 1000)
PAID_AT = "2025-12-19T10:30:00"
DOWN = answer(503, "try later")


async def test_a_delivery_is_told_with_its_attempts_and_last_error() -> None:
    """All attempts count, also the successful one; the error is the last one before it."""
    bench = Bench()
    one = bench.target.plan(record(7), answer(500, "first"), DOWN)

    await bench.deliver(one)

    assert bench.outcomes == [
        Outcome(True, 3, 7, PAID_AT, START_MS, http_status=503, last_error="try later")
    ]


async def test_a_dead_letter_is_told_with_its_reason() -> None:
    """The outcome has the same reason and texts as the dead letter."""
    bench = Bench(policy=RetryPolicy(max_retries=1))
    bench.target.default = Step(DOWN)

    await bench.deliver(record(7), record(8, value=b"{"))

    broken, exhausted = sorted(bench.outcomes, key=lambda outcome: outcome.attempts)
    assert (broken.order_id, broken.reason, broken.paid_at) == (None, "invalid_json", "")
    assert exhausted.order_id == 7
    assert (exhausted.delivered, exhausted.attempts) == (False, 2)
    assert (exhausted.reason, exhausted.http_status) == ("retries_exhausted", 503)
    assert "try later" in exhausted.last_error


async def test_an_event_that_was_delivered_is_finished_without_an_attempt() -> None:
    """It counts as a duplicate; the next record of its key is sent."""
    bench = Bench()
    before, after = record(1, headers=[("event-id", b"paid")]), record(2)
    bench.delivered_before = {"paid"}

    await bench.deliver(before, after)

    assert bench.finished == [before, after]
    assert bench.outcomes[0] == Outcome(delivered=True, attempts=0, duplicate=True)
    assert [attempt.event_id for attempt in bench.target.attempts] == [after.idempotency_key()]
    assert (bench.observer.duplicates, len(bench.observer.paid_to_delivered_seconds)) == (1, 1)


async def test_the_breaker_does_not_hold_a_duplicate_up() -> None:
    """A duplicate is finished without the target."""
    bench = Bench(breaker_threshold=1)
    one, twin = record(1, "a"), record(2, "b", headers=[("event-id", b"paid")])
    bench.delivered_before = {"paid"}
    bench.target.default = Step(DOWN)

    await bench.submit(one, twin)
    await bench.until_finished(1, within_seconds=4.0)

    assert bench.finished == [twin]
    await bench.dispatcher.drain(attempt_seconds=0)


async def test_a_held_record_is_found_with_its_failures() -> None:
    """In backoff, in flight or behind its key; not once it is finished."""
    bench = Bench()
    failing, behind, slow = record(1, "a"), record(2, "a"), record(3, "b")
    bench.target.plan(failing, DOWN)
    bench.target.plan(slow, Step(answer(200), seconds=60.0))

    await bench.submit(failing, behind, slow)
    await asyncio.sleep(0.5)  # of virtual time: the first attempt has failed, its backoff is 1 s

    assert bench.dispatcher.find(lambda one: one == failing) == (
        failing,
        FailureState(1, "try later", 503),
    )
    assert bench.dispatcher.find(lambda one: one == behind) == (behind, None)
    assert bench.dispatcher.find(lambda one: one == slow) == (slow, None)
    assert bench.dispatcher.find(lambda one: one == record(9)) is None
    await bench.until_finished(3)
    assert bench.dispatcher.find(lambda one: True) is None


@pytest.mark.parametrize("ends", ["finished", "given back"])
async def test_earlier_failures_are_forgotten(ends: str) -> None:
    """A record that is read again after it finished or was given back has no failures."""
    bench = Bench()
    again = bench.target.plan(record(1), DOWN, *[Step(answer(200), seconds=5.0)] * 2)
    await bench.submit(again)
    if ends == "finished":
        await bench.until_finished(1)
    else:
        await asyncio.sleep(0.5)
        await bench.dispatcher.drain(attempt_seconds=0.0)
        bench.dispatcher.resume()

    await bench.submit(again)
    await asyncio.sleep(0.5)
    assert bench.dispatcher.find(lambda _: True) == (again, None)
    await bench.until_finished(2 if ends == "finished" else 1)


@pytest.mark.parametrize("status", [503, 401])
async def test_every_failed_attempt_is_counted(status: int) -> None:
    """Also those that never count against the message."""
    bench = Bench(policy=RetryPolicy(max_retries=10))
    one = bench.target.plan(record(1), *[answer(status, "no")] * 3, Step(answer(200), seconds=5.0))

    await bench.submit(one)
    await asyncio.sleep(9.0)  # of virtual time: after 1, 2 and 4 s the fourth attempt has begun

    assert bench.dispatcher.find(lambda _: True) == (one, FailureState(3, "no", status))
    await bench.until_finished(1)


TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
HEADERS = [
    ("traceparent", TRACEPARENT.encode()),
    ("tracestate", b"rojo=1"),
    ("tracestate", b"congo=2"),
]


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


async def test_a_malformed_one_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The record is delivered without it, and the log has no trace."""
    bench = Bench()
    broken = record(0, headers=[("traceparent", b"00-\r\nX-Injected: 1"), ("tracestate", b"a=1")])
    bench.target.plan(broken, answer(503), answer(200))
    await bench.deliver(broken)
    assert {attempt.trace for attempt in bench.target.attempts} == {None}
    assert "trace_id" not in caplog.text


@pytest.mark.parametrize("malformed", [False, True])
async def test_a_dead_letter_keeps_its_headers_byte_for_byte(
    malformed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Both tracestates in their order, and malformed headers, stay as they came."""
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
