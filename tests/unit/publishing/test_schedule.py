"""When a refused row is tried again, and which rows a worker may claim."""

import asyncio
from collections import defaultdict
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.errors import KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.retry_schedule import (
    MAX_DELAY_SECONDS,
    PERMANENT_CODES,
    after_refusal,
    delay_seconds,
    is_local,
    is_permanent,
    is_unanswered,
)
from order_relay.fallback.store import FallbackRow, Outcome, Status
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_claims import Life, Step, steps
from tests.support.publish_fakes import START, Clock, gave_up, refusal, retried


def refused(error: Exception, retry_count: int = 0, max_retry: int = 3) -> Outcome:
    """The outcome of a row with so many refusals before."""
    row = FallbackRow(
        1, "orders", b"1", b"{}", (), None, retry_count, max_retry, Status.PENDING,
        START, None, START, START,
    )  # fmt: skip
    return after_refusal(row, error, START, 60)


def test_waits_one_two_four_eight_minutes() -> None:
    """The waits after the first four refusals are 1, 2, 4 and 8 minutes, from now."""
    assert [delay_seconds(n) / 60 for n in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert refused(refusal()) == retried(1, 1, START + timedelta(minutes=1), str(refusal()))


@given(st.floats(0.001, 86_400), st.integers(1, 5000))
def test_waits_double_up_to_a_day(base: float, refusals: int) -> None:
    """Every wait is twice the one before it, or a day; never over a day, whatever the base."""
    wait, following = delay_seconds(refusals, base), delay_seconds(refusals + 1, base)
    assert 0 < wait <= MAX_DELAY_SECONDS
    assert following in {2 * wait, MAX_DELAY_SECONDS}


@given(st.integers(1, 60))
def test_a_row_gets_exactly_max_retry_attempts(max_retry: int) -> None:
    """A row that is always refused is tried max_retry times, and its error is kept."""
    outcomes = [refused(refusal(), count, max_retry) for count in range(max_retry)]
    assert [one.retry_count for one in outcomes] == list(range(1, max_retry + 1))
    assert {one.status for one in outcomes[:-1]} <= {Status.PENDING}
    assert outcomes[-1] == gave_up(1, max_retry, str(refusal()))


@pytest.mark.parametrize(
    "error", [*map(refusal, sorted(PERMANENT_CODES)), RecordTooLarge("orders", 2_000_000)], ids=str
)
def test_what_kafka_never_takes_fails_at_once(error: Exception) -> None:
    """Unknown topics, missing rights and oversized records are not retried."""
    assert is_permanent(error)
    assert refused(error).status is Status.FAILED


def test_what_tells_of_an_outage() -> None:
    """Time-outs and lost connections may be an outage; a broker's answer is not."""
    assert is_unanswered(refusal("_MSG_TIMED_OUT"))
    assert is_unanswered(KafkaUnavailable("b:1", "gone"))
    assert is_unanswered(PublishRefused("orders", "the producer is not running"))
    assert not is_unanswered(refusal("NOT_ENOUGH_REPLICAS"))
    assert not is_unanswered(RuntimeError("a bug"))
    assert is_local(refusal("_QUEUE_FULL"))
    assert not is_local(refusal("_MSG_TIMED_OUT"))


@given(steps)
def test_claims_keep_the_rules(life: list[Step]) -> None:
    """No row is claimed while its lease holds, before its time, or past an unfinished one.

    In the end every PENDING row can be claimed: nothing blocks forever.
    """

    async def main() -> None:
        clock = Clock()
        store = MemoryFallbackStore(clock=clock)
        table = Life(store, clock)
        for step in life:
            before = dict(store.rows)
            claim = await table.play(step)
            if claim is None:
                continue
            taken = {row.id for row in claim.rows}
            for row_id in taken:
                row = before[row_id]
                assert row.status is Status.PENDING
                assert row.next_retry_at <= clock()
                assert row.lease_until is None or row.lease_until <= clock()
                for other in before.values():
                    same = other.topic == row.topic and other.key == row.key is not None
                    if same and other.id < row_id and other.status is Status.PENDING:
                        assert other.id in taken
        _check_order(table)
        clock.advance(3600)
        last = await store.claim(limit=1000, lease_seconds=60)
        pending = {row.id for row in store.rows.values() if row.status is Status.PENDING}
        assert {row.id for row in last.rows} == pending
        assert last.position is None

    asyncio.run(main())


def _check_order(table: Life) -> None:
    """Rows of a key were acknowledged in order, except those that a person requeued."""
    published = defaultdict(list)
    for row in table.acked:
        if row.key is not None and row.id not in table.requeued:
            published[row.key].append(row.id)
    for ids in published.values():
        assert ids == sorted(ids)
