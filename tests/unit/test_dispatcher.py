"""The relay's promises about one record, on a virtual clock."""

import asyncio
import dataclasses
from datetime import UTC, datetime

import pytest
from msgspec import structs

from order_relay.delivery.answer import Answer, Verdict
from order_relay.delivery.delivery_log import CONDITION_LOG_SECONDS
from order_relay.delivery.target_health import TargetState
from tests.support.fakes import NO_ANSWER, Bench, Step, answer, record
from tests.support.orders import order_value

pytestmark = pytest.mark.virtual_time

DOWN = answer(503, "try later")
LACK = Answer(Verdict.LOCAL, detail="too many open files", failure="local")


async def test_a_record_is_delivered_as_it_came() -> None:
    """The body is the record's value byte for byte, once; then the record is finished."""
    bench = Bench()
    value = b' {"note":"\xc3\xa9", ' + order_value(7).strip()[1:] + b"\n"
    one = record(7, value=value, headers=[("event-id", b"pay-7")])

    await bench.deliver(one)

    assert [(a.body, a.event_id) for a in bench.target.attempts] == [(value, "pay-7")]
    assert bench.finished == [one]
    assert bench.dead_letters.letters == []
    assert bench.observer.attempts == [("success", 0.0)]
    assert (bench.dispatcher.queued, bench.dispatcher.in_flight) == (0, 0)


async def test_a_record_is_not_finished_before_the_answer() -> None:
    """Without the target's answer, nothing is finished."""
    bench = Bench()
    one = bench.target.plan(record(0), Step(answer(200), seconds=5.0))

    await bench.submit(one)
    await asyncio.sleep(4.0)
    assert bench.finished == []
    assert (bench.dispatcher.queued, bench.dispatcher.in_flight) == (1, 1)
    await bench.until_finished(1)
    assert asyncio.get_running_loop().time() == 5.0


@pytest.mark.parametrize(
    ("paid_at", "seconds"),
    [
        ("2025-12-19T10:29:30Z", 30.0),
        ("2025-12-19T19:29:30+09:00", 30.0),
        ("2025-12-19T03:00:00", 5.0),  # no zone: the record's timestamp is used
        ("2025-12-19T10:31:00Z", 0.0),  # clocks differ: never negative
    ],
)
async def test_the_time_from_paid_to_delivered(paid_at: str, seconds: float) -> None:
    """The 2xx measures the time since paidAt; without a zone, since the record's timestamp."""
    bench = Bench()
    one = record(0, value=order_value(0, paidAt=paid_at))

    await bench.deliver(structs.replace(one, timestamp_ms=one.timestamp_ms - 5000))

    assert bench.observer.paid_to_delivered_seconds == [pytest.approx(seconds)]


@pytest.mark.parametrize(
    "failure", [answer(status) for status in (408, 425, 500, 502, 503, 504, 599)] + [NO_ANSWER]
)
async def test_four_attempts_after_1_2_and_4_seconds(failure: Answer) -> None:
    """A retryable failure is tried 1 + 3 times, after 1, 2 and 4 s, and then dead-lettered."""
    bench = Bench()
    one = bench.target.plan(record(0), *[failure] * 4)

    await bench.deliver(one)

    assert bench.target.times() == [0.0, 1.0, 3.0, 7.0]
    assert [(letter.reason, letter.attempts) for letter in bench.dead_letters.letters] == [
        ("retries_exhausted", 4)
    ]
    assert bench.finished == [one]
    assert bench.observer.retries == 3
    assert bench.observer.dead_letter_reasons == ["retries_exhausted"]


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        # The duration of a failed attempt does not shorten the wait after it.
        ([Step(NO_ANSWER, seconds=10.0), Step(DOWN, seconds=0.5)], [0.0, 11.0, 13.5]),
        # A Retry-After longer than the backoff counts; a shorter one does not.
        ([Step(answer(500, retry_after_seconds=30.0)), Step(answer(503, retry_after_seconds=0.5))],
         [0.0, 30.0, 32.0]),
    ],
)  # fmt: skip
async def test_waits_between_attempts(steps: list[Step], times: list[float]) -> None:
    """They begin when the attempt ends, and are as long as the target asks."""
    bench = Bench()
    await bench.deliver(bench.target.plan(record(0), *steps))

    assert bench.target.times() == times
    assert bench.dead_letters.letters == []


async def test_every_attempt_carries_the_same_key_and_body() -> None:
    """All attempts at one event carry one Idempotency-Key, and the same bytes."""
    bench = Bench()
    one = bench.target.plan(record(7, partition=2), DOWN, NO_ANSWER, answer(401), DOWN)

    await bench.deliver(one)

    sent = {(attempt.event_id, attempt.body) for attempt in bench.target.attempts}
    assert sent == {("order-paid-events-2-7", one.value)}
    assert len(bench.target.attempts) == 5


@pytest.mark.parametrize("status", [400, 402, 406, 409, 411, 413, 415, 422, 431, 451, 499])
async def test_a_message_that_is_refused_goes_to_the_dead_letters_at_once(status: int) -> None:
    """A 4xx for the message's own fault is dead-lettered after one attempt, with the answer."""
    bench = Bench()
    one = bench.target.plan(record(0), answer(status, "no such order", retry_after_seconds=60))

    await bench.deliver(one)

    assert bench.target.times() == [0.0]
    (letter,) = bench.dead_letters.letters
    assert (letter.record, letter.reason, letter.attempts) == (one, "rejected", 1)
    assert letter.http_status == status
    assert letter.message == f"HTTP {status}: no such order"
    assert letter.failed_at == datetime(2025, 12, 19, 10, 30, tzinfo=UTC)
    assert bench.finished == [one]


@pytest.mark.parametrize("status", [404, 405, 410])
@pytest.mark.parametrize(
    ("seconds", "times", "reason", "ends_at"),
    [
        # Another key succeeded in the last minute: the record's own fault. The relay waits a
        # second, in which others might get the same answer.
        (50, [50.0], "rejected", 51.0),
        (61, [61.0, 62.0, 64.0, 68.0], "retries_exhausted", 68.0),
    ],
)
async def test_nothing_at_the_address_for_one_record(
    status: int, seconds: float, times: list[float], reason: str, ends_at: float
) -> None:
    """If others succeed it is dead-lettered after one attempt, else it is retried as usual."""
    bench = Bench(breaker_threshold=20)
    one = bench.target.plan(record(1, "one"), *[answer(status, "no such order")] * 4)

    await bench.submit(record(0, "good"))
    await asyncio.sleep(seconds)
    await bench.deliver(one)

    assert bench.target.times(one) == times
    (letter,) = bench.dead_letters.letters
    assert (letter.record, letter.reason, letter.attempts) == (one, reason, len(times))
    assert f"HTTP {status}: no such order" in letter.message
    assert asyncio.get_running_loop().time() == ends_at


async def test_nothing_at_the_address_while_others_are_in_flight() -> None:
    """Their answers decide, also late ones: the address may be gone for all."""
    bench = Bench(breaker_threshold=20)
    await bench.deliver(record(0, "good"))
    first = bench.target.plan(record(1, "one"), answer(404))
    late = bench.target.plan(record(2, "two"), Step(answer(404), seconds=2.5))

    await bench.submit(first, late)
    await bench.until_finished(3)

    assert bench.dead_letters.letters == []
    assert bench.target.times(first) == [0.0, 4.0]


async def test_nothing_at_the_address_for_less_than_a_second() -> None:
    """The second record gets the same, and is not the first one's evidence when all works again."""
    bench = Bench(breaker_threshold=20)
    await bench.deliver(*[record(n, f"{n}") for n in range(100, 300)])
    first = bench.target.plan(record(1, "one"), answer(404))
    second = bench.target.plan(record(2, "two"), answer(404))

    await bench.submit(first)
    await asyncio.sleep(0.1)
    await bench.submit(second)
    await asyncio.sleep(0.4)
    await bench.submit(record(3, "three"))
    await bench.until_finished(203)

    assert bench.dead_letters.letters == []
    assert bench.target.times(first) == [0.0, 2.0]


async def test_nothing_at_the_address_in_an_outage_of_less_than_a_second() -> None:
    """Under load the next record may still be accepted; that an outage began is enough."""
    bench = Bench(breaker_threshold=20)
    await bench.deliver(*[record(n, f"{n}") for n in range(100, 300)])
    first = bench.target.plan(record(1, "first"), Step(answer(404), seconds=0.01))
    accepted = bench.target.plan(record(2, "next"), Step(answer(200), seconds=0.015))
    others = [record(n, f"{n}") for n in range(3, 33)]
    for one in others:
        bench.target.plan(one, Step(answer(404), seconds=0.02))

    await bench.submit(first, accepted, *others)
    await asyncio.sleep(0.1)
    assert not bench.dispatcher.breaker.closed
    bench.dispatcher.breaker.probe_now()
    await bench.submit(record(40, "probe"))
    await asyncio.sleep(0.1)
    more = [record(n, f"{n}") for n in range(300, 500)]
    await bench.submit(*more)
    await bench.until_finished(200 + len(others) + 3 + len(more))

    assert bench.dead_letters.letters == []
    assert len(bench.target.times(first)) == 2


@pytest.mark.parametrize("status", [401, 403, 301, 302, 307, 308])
async def test_an_outage_is_never_held_against_the_message(status: int) -> None:
    """Attempts with wrong credentials and redirects are repeated without limit."""
    bench = Bench()
    one = bench.target.plan(record(0), *[answer(status)] * 200)

    await bench.deliver(one)

    assert bench.dead_letters.letters == []
    assert bench.target.times()[:6] == [0.0, 1.0, 3.0, 7.0, 15.0, 25.0]
    assert len(bench.target.attempts) == bench.outcomes[0].attempts == 201


async def test_outages_spend_no_attempt() -> None:
    """After any number of 401 a message still has all its attempts."""
    bench = Bench()
    one = record(0)
    bench.target.plan(one, answer(401), DOWN, answer(403), DOWN, answer(302), DOWN, DOWN)

    await bench.deliver(one)

    assert len(bench.target.attempts) == bench.outcomes[0].attempts == 7
    assert bench.dead_letters.letters[0].attempts == 4


async def test_a_fault_of_ours_loses_nothing() -> None:
    """An unexpected error is retried, and finally dead-lettered with its name."""
    bench = Bench()
    lucky, unlucky = record(0, "lucky"), record(1, "unlucky")
    bench.target.plan(lucky, ZeroDivisionError("bug"))
    bench.target.plan(unlucky, *[ZeroDivisionError("bug")] * 4)

    await bench.deliver(lucky, unlucky)

    assert bench.finished_offsets == [0, 1]
    (letter,) = bench.dead_letters.letters
    assert (letter.reason, letter.attempts) == ("retries_exhausted", 4)
    assert letter.cause_type == "builtins.ZeroDivisionError"
    assert "bug" in letter.message


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"),
        (b"\xff", "invalid_utf8"),
        (b"{", "invalid_json"),
        (b"{}", "invalid_event"),
        (order_value(1)[:-1] + b',"x":' + b"[" * 200_000, "invalid_json"),
    ],
)
async def test_broken_messages_go_to_the_dead_letters_at_once(
    value: bytes | None, reason: str
) -> None:
    """What is not an ORDER_PAID event is dead-lettered with its bytes; the next one follows."""
    bench = Bench()
    broken, after = record(0, value=value), record(1)

    await bench.deliver(broken, after)

    (letter,) = bench.dead_letters.letters
    assert letter.record is broken
    assert (letter.reason, letter.attempts, letter.http_status) == (reason, 0, None)
    assert [attempt.event_id for attempt in bench.target.attempts] == ["order-paid-events-0-1"]
    assert bench.finished_offsets == [0, 1]
    assert asyncio.get_running_loop().time() == 0.0


async def test_the_log_phrases(caplog: pytest.LogCaptureFixture) -> None:
    """Retries are warnings and dead letters errors, on one line, in the phrases people grep."""
    bench = Bench()
    one = record(7, partition=2)
    bench.target.plan(one, *[dataclasses.replace(DOWN, detail="line one\nline two")] * 4)

    await bench.deliver(one)

    lines = [(entry.levelname, entry.getMessage()) for entry in caplog.records]
    assert [level for level, _ in lines] == ["WARNING"] * 3 + ["ERROR"]
    batch_index = "topic=order-paid-events partition=2 offset=7 event_id=order-paid-events-2-7"
    assert lines[0][1].startswith(
        f"Retrying message {batch_index} failures=1 status=503 wait_seconds=1"
    )
    assert lines[3][1].startswith(f"Publishing failed message to DLQ {batch_index} ")
    assert not [text for _, text in lines if "\n" in text]


async def test_a_conflict_with_an_attempt_of_our_own_is_no_rejection() -> None:
    """409 to a repeat after a time-out: the target still processes the first one."""
    bench = Bench()
    late = bench.target.plan(record(1), NO_ANSWER, answer(409), answer(409))
    refused = bench.target.plan(record(2), answer(409))
    failed = bench.target.plan(record(3), DOWN, answer(409))
    for one in (late, refused, failed):
        await bench.deliver(one)
    given_up = [letter.record for letter in bench.dead_letters.letters]
    assert given_up == [refused, failed]


async def test_throttling_and_local_faults_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each start, and the end of throttling; not each attempt, and again the next time."""
    bench = Bench()

    def told(phrase: str) -> int:
        return sum(entry.getMessage().startswith(phrase) for entry in caplog.records)

    for times in (1, 2):
        refusal = answer(429, retry_after_seconds=5.0)
        throttled = bench.target.plan(record(10 * times), refusal, refusal)
        lacking = bench.target.plan(record(10 * times + 1, "other"), *[LACK] * 3)
        await bench.submit(throttled)
        await asyncio.sleep(7.0)
        assert bench.dispatcher.target().state is TargetState.THROTTLES
        await asyncio.sleep(10.0)
        await bench.deliver(lacking)
        await asyncio.sleep(CONDITION_LOG_SECONDS)
        await bench.deliver(record(10 * times + 2))
        assert bench.dispatcher.target().state is TargetState.WORKS
        assert told("Target throttles") == times
        assert told("Throttling is over") == times
        assert told("This host lacks something to send with") == times
        assert not [
            entry for entry in caplog.records
            if "too many open files" in entry.getMessage()
            and entry.getMessage().startswith("Retrying")
        ]  # fmt: skip


@pytest.mark.parametrize("other", [DOWN, NO_ANSWER, answer(400), answer(401), answer(404), LACK])
async def test_retry_after_is_not_prolonged_by_attempts_that_fail(other: Answer) -> None:
    """Those under way end otherwise: a second is a second."""
    bench = Bench(max_in_flight=64)
    bench.target.default = Step(answer(200), seconds=0.01)
    for offset in range(20):
        bench.target.plan(record(offset, f"{offset}"), Step(other, seconds=0.2))
    asked = answer(429, retry_after_seconds=1.0)
    bench.target.plan(record(20, "20"), Step(asked, seconds=0.1))
    await bench.submit(*[record(offset, f"{offset}") for offset in range(21)])
    await asyncio.sleep(0.3)
    later = record(30, "30")
    await bench.submit(later)
    await bench.until_finished(22)
    assert bench.target.times(later) == [1.1]
