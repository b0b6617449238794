"""When a refused row is tried again."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.errors import KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.retry_schedule import (
    MAX_DELAY_SECONDS,
    PERMANENT_CODES,
    RetrySchedule,
    is_local,
    is_permanent,
    is_unanswered,
)
from order_relay.fallback.store import FallbackRow, GiveUp, Retry, Status
from tests.support.publish_fakes import START, refusal


def row(retry_count: int = 0, max_retry: int = 3) -> FallbackRow:
    """A row that was refused so often."""
    return FallbackRow(
        1, "orders", b"1", b"{}", (), None, retry_count, max_retry, Status.PENDING,
        START, None, START, START,
    )  # fmt: skip


def test_waits_one_two_four_eight_minutes() -> None:
    """The waits after the first four refusals are 1, 2, 4 and 8 minutes."""
    schedule = RetrySchedule()
    assert [schedule.delay_seconds(n) / 60 for n in (1, 2, 3, 4)] == [1, 2, 4, 8]


@given(st.floats(0.001, 86_400), st.integers(1, 5000))
def test_waits_double_up_to_a_day(base: float, refusals: int) -> None:
    """Every wait is twice the one before it, or a day; never over a day, whatever the base."""
    schedule = RetrySchedule(base)
    wait, following = schedule.delay_seconds(refusals), schedule.delay_seconds(refusals + 1)
    assert 0 < wait <= MAX_DELAY_SECONDS
    assert following in {2 * wait, MAX_DELAY_SECONDS}


def test_no_wait_before_the_first_refusal() -> None:
    """A wait without a refusal is a mistake of the caller's."""
    with pytest.raises(ValueError, match="refusal"):
        RetrySchedule().delay_seconds(0)


@given(st.integers(1, 60))
def test_a_row_gets_exactly_max_retry_attempts(max_retry: int) -> None:
    """A row that is always refused is tried max_retry times, and its error is kept."""
    schedule, current, waits = RetrySchedule(), row(0, max_retry), []
    while True:
        outcome = schedule.after_refusal(current, refusal(), START)
        if isinstance(outcome, GiveUp):
            break
        waits.append(outcome.next_retry_at - START)
        current = row(outcome.retry_count, max_retry)
    assert outcome.retry_count == max_retry
    assert len(waits) == max_retry - 1
    assert waits == sorted(waits)
    assert "NOT_ENOUGH_REPLICAS" in outcome.error_message


def test_a_refusal_sets_the_next_attempt() -> None:
    """The first refusal counts one and waits a minute from now."""
    outcome = RetrySchedule().after_refusal(row(), refusal(), START)
    assert outcome == Retry(1, 1, START + timedelta(minutes=1), str(refusal()))


@pytest.mark.parametrize("code", sorted(PERMANENT_CODES))
def test_what_kafka_never_takes_fails_at_once(code: str) -> None:
    """Unknown topics, missing rights and oversized records spend no retries."""
    assert isinstance(RetrySchedule().after_refusal(row(), refusal(code), START), GiveUp)
    assert is_permanent(refusal(code))


def test_a_record_that_is_too_large_fails_at_once() -> None:
    """Nobody waits for a record to shrink."""
    error = RecordTooLarge("orders", 2_000_000)
    assert isinstance(RetrySchedule().after_refusal(row(), error, START), GiveUp)


def test_what_tells_of_an_outage() -> None:
    """Time-outs and lost connections may be an outage; answers of a broker are none."""
    assert is_unanswered(refusal("_MSG_TIMED_OUT"))
    assert is_unanswered(KafkaUnavailable("b:1", "gone"))
    assert is_unanswered(PublishRefused("orders", "the producer is not running"))
    assert not is_unanswered(refusal("NOT_ENOUGH_REPLICAS"))
    assert not is_unanswered(RuntimeError("a bug"))
    assert is_local(refusal("_QUEUE_FULL"))
    assert not is_local(refusal("_MSG_TIMED_OUT"))
