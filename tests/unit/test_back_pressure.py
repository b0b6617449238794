"""How fast the relay sends: the rules alone; for targets with limits see test_whose_fault."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from order_relay.delivery.back_pressure import (
    LATE_SECONDS,
    LIMIT_EXPIRY_SECONDS,
    MAX_HOLD_SECONDS,
    RECOVERED_SECONDS,
    Concurrency,
    Pace,
)
from tests.support.fakes import StandingClock


@pytest.fixture
def clock() -> StandingClock:
    """A clock that stands."""
    return StandingClock()


@pytest.fixture
def pace(clock: StandingClock) -> Pace:
    """A pace without a limit."""
    return Pace(clock)


def send(pace: Pace, clock: StandingClock, seconds: float) -> int:
    """Send as much as allowed for so long, all of it accepted; return how much it was."""
    end = clock.now + seconds
    count = 0
    while (wait := pace.wait_seconds()) + clock.now < end:
        clock.now += wait
        pace.sent()
        pace.accepted(clock.now)
        count += 1
        if pace.free:
            clock.now += 0.001
    clock.now = end
    return count


def test_without_a_limit_nothing_waits(clock: StandingClock, pace: Pace) -> None:
    """A target that never refuses is sent everything at once."""
    assert send(pace, clock, 10.0) >= 9_990
    assert pace.free
    assert pace.rate == math.inf
    assert not pace.throttled


def refuse(pace: Pace, seconds: float, under_way: int = 10) -> None:
    """Refuse all that is in flight now; with Retry-After unless it is 0."""
    sent_at = pace._clock()
    for _ in range(under_way):
        pace.refused(sent_at, seconds)


def test_refusals_hold_everything_back(clock: StandingClock, pace: Pace) -> None:
    """For as long as Retry-After says; then the rate is what was accepted."""
    send(pace, clock, 0.05)  # 50

    refuse(pace, 7.0)

    assert pace.wait_seconds() == pytest.approx(7.0)
    clock.now += 7.0
    assert pace.throttled
    assert pace.rate == pytest.approx(50 / 1.05, rel=0.1)
    assert 45 <= send(pace, clock, 1.0) <= 60


def test_a_refusal_among_many_answers_is_not_a_limit(clock: StandingClock, pace: Pace) -> None:
    """If one of 256 in flight is refused, only Retry-After is waited for."""
    for _ in range(100):
        sent_at = clock.now
        pace.refused(sent_at, 1.0)
        for _ in range(255):
            pace.accepted(sent_at)
        assert pace.wait_seconds() == pytest.approx(1.0)
        clock.now += 1.0
        assert pace.wait_seconds() == 0.0
        assert pace.free
        send(pace, clock, 2.0)


def test_late_answers_of_what_is_under_way_are_waited_for(clock: StandingClock, pace: Pace) -> None:
    """They decide whether a refusal is a rate limit."""
    send(pace, clock, 0.05)
    sent_at = clock.now
    pace.refused(sent_at, 1.0, under_way=200)
    clock.now += 1.0
    assert pace.wait_seconds() > 0.0
    clock.now += 1.0
    for _ in range(100):
        pace.refused(sent_at, 1.0)
    clock.now += pace.wait_seconds()

    assert pace.rate < math.inf


def test_attempts_that_fail_are_not_waited_for(clock: StandingClock, pace: Pace) -> None:
    """They say nothing about a limit; those still under way are waited for."""
    sent_at = clock.now
    pace.refused(sent_at, 1.0, under_way=7)
    for _ in range(4):
        pace.ended(sent_at)
    clock.now += 1.0
    assert pace.wait_seconds() > 0.0
    pace.ended(clock.now)  # it was sent after the refusal
    assert pace.wait_seconds() > 0.0
    pace.accepted(sent_at)
    pace.ended(sent_at)
    pace.ended(sent_at)
    clock.now += pace.wait_seconds()
    assert pace.wait_seconds() == 0.0
    assert pace.free


def test_answers_that_never_come_hold_nothing_up(clock: StandingClock, pace: Pace) -> None:
    """They may hang: after some seconds sending resumes."""
    pace.refused(clock.now, 1.0, under_way=200)
    clock.now += 1.0 + LATE_SECONDS

    assert pace.wait_seconds() == 0.0
    assert pace.free


def test_refusals_of_what_was_under_way_are_one() -> None:
    """256 refusals at once count as one refusal."""
    clock = StandingClock()
    few, many = Pace(clock), Pace(clock)
    send(few, clock, 0.05)
    for _ in range(50):
        many.accepted(clock.now)
    refuse(few, 1.0)
    refuse(many, 1.0, under_way=256)
    clock.now += 1.0

    assert many.throttled
    assert many.rate == pytest.approx(few.rate, rel=0.1)


def test_a_longer_retry_after_among_them_counts(clock: StandingClock, pace: Pace) -> None:
    """The longest wait holds, and no burst follows."""
    send(pace, clock, 0.05)
    refuse(pace, 1.0)
    refuse(pace, 30.0)

    assert pace.wait_seconds() == pytest.approx(30.0)
    clock.now += 30.0
    assert send(pace, clock, 0.1) <= 7


def test_holds_of_our_own_grow(clock: StandingClock, pace: Pace) -> None:
    """Without Retry-After: 1, 2, 4, 8, 10, 10 s, as long as nothing is accepted."""
    pace.accepted(clock.now)
    refuse(pace, 0.0)
    clock.now += pace.wait_seconds()  # until it is clear that all are refused
    holds = []
    for _ in range(6):
        holds.append(pace.wait_seconds())
        clock.now += pace.wait_seconds()
        refuse(pace, 0.0)

    assert holds == pytest.approx([0.9, 2.0, 4.0, 8.0, MAX_HOLD_SECONDS, MAX_HOLD_SECONDS])
    clock.now += pace.wait_seconds()
    pace.accepted(clock.now)
    refuse(pace, 0.0)
    assert pace.wait_seconds() == pytest.approx(1.0)


def test_cuts_that_do_not_help_end(clock: StandingClock, pace: Pace) -> None:
    """If a target refuses one in 50 at any rate, the rate stops falling."""
    send(pace, clock, 0.5)
    refuse(pace, 1.0)
    rates = []
    for _ in range(20):
        clock.now += pace.wait_seconds()
        if not pace.throttled:
            break
        rates.append(pace.rate)
        for _ in range(50):
            clock.now += pace.wait_seconds()
            pace.sent()
            pace.accepted(clock.now)
        pace.refused(clock.now, 0.0)

    assert len(rates) <= 11
    assert pace.free


def test_the_limit_is_forgotten_in_time(clock: StandingClock, pace: Pace) -> None:
    """Half a minute without a refusal: everything is sent at once again."""
    send(pace, clock, 0.05)
    refuse(pace, 1.0)
    clock.now += 1.0
    assert pace.rate < math.inf

    clock.now += LIMIT_EXPIRY_SECONDS + 0.1

    assert pace.rate == math.inf
    assert pace.wait_seconds() == 0.0
    assert pace.free


def test_a_rate_that_no_worker_reaches_is_not_known(clock: StandingClock, pace: Pace) -> None:
    """The growing limit is not shown as the target's rate: it grows to billions a second."""
    send(pace, clock, 0.05)
    refuse(pace, 1.0)
    clock.now += 1.0
    pace.wait_seconds()
    assert pace.limited

    clock.now += LIMIT_EXPIRY_SECONDS - 1.0

    assert pace.throttled
    assert not pace.limited


def test_a_rate_that_is_set_stays() -> None:
    """Neither a faster target nor an old refusal changes it."""
    clock = StandingClock()
    pace = Pace(clock, max_rate=20.0)

    assert not pace.free
    assert send(pace, clock, 10.0) == pytest.approx(200, abs=2)
    refuse(pace, 1.0)
    clock.now += 60.0
    pace.wait_seconds()
    assert pace.rate == 20.0
    assert not pace.free


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["accepted", "refused", "late refusal", "wait"]), st.floats(0.0, 100.0)
        ),
        max_size=60,
    )
)
@example(
    [
        *[("refused", 0.0)] * 4,
        ("refused", 2.0),
        ("wait", 1.0),
        ("accepted", 0.0),
        ("refused", 0.0),
        ("wait", 1.0),
    ]
)
def test_waits_are_bounded_whatever_happens(events: list[tuple[str, float]]) -> None:
    """Never longer than the longest Retry-After, and never negative."""
    clock = StandingClock()
    pace = Pace(clock)
    for event, number in events:
        if event == "wait":
            clock.now += number
        elif event == "accepted":
            if pace.wait_seconds() == 0.0:
                pace.sent()
            pace.accepted(clock.now)
        else:
            sent_at = clock.now if event == "refused" else clock.now - 30.0
            pace.refused(sent_at, min(number, 60.0))
        assert 0.0 <= pace.wait_seconds() <= 60.001
        assert pace.rate > 0.0


class Slots:
    """Lanes that have a limit, and nothing else."""

    limit = 256


def test_a_time_out_halves_the_concurrency() -> None:
    """Once, however many attempts in flight time out with it; at least 1 is left."""
    clock = StandingClock()
    lanes = Slots()
    concurrency = Concurrency(clock, lanes)
    sent_at = clock.now
    clock.now += 10.0

    for _ in range(200):
        concurrency.timed_out(sent_at)
    assert lanes.limit == 128
    for _ in range(20):
        clock.now += 10.0
        concurrency.timed_out(clock.now, outage=True)
    assert lanes.limit == 1


def test_time_outs_at_any_concurrency_do_not_come_from_it() -> None:
    """If eight reductions do not help, all slots are used for five minutes, then fewer."""
    clock = StandingClock()
    lanes = Slots()
    concurrency = Concurrency(clock, lanes)

    def time_out() -> int:
        clock.now += 10.0
        concurrency.timed_out(clock.now)
        return lanes.limit

    assert [time_out() for _ in range(8)] == [128, 64, 32, 16, 8, 4, 2, 1]
    assert {time_out() for _ in range(30)} == {256}
    assert time_out() == 128


def test_the_concurrency_grows_by_one_a_round() -> None:
    """One round of answers allows one more attempt; after a while all are allowed."""
    clock = StandingClock()
    lanes = Slots()
    concurrency = Concurrency(clock, lanes)
    concurrency.timed_out(clock.now)
    for expected in (129, 130, 131):
        while lanes.limit < expected:
            concurrency.answered()
    assert lanes.limit == 131

    clock.now += RECOVERED_SECONDS
    for _ in range(2):
        concurrency.answered()
        assert lanes.limit == 256
