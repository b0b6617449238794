"""Whose fault is it? When a record is given up, and the target's state."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from order_relay.delivery.answer import Answer, RetryPolicy, Verdict
from order_relay.delivery.first_attempts import (
    KEYS_EACH_SECOND,
    MAX_EVIDENCE_SECONDS,
    FirstAttempts,
)
from order_relay.delivery.gate import NO_PROBE
from order_relay.delivery.target_health import Target, TargetHealth, TargetState
from tests.support.fakes import StandingClock, answer

DOWN = answer(500, "down")
LACK = Answer(Verdict.LOCAL, detail="no name server")
ME = "me"
# First attempts: second, whether it failed, and key.
HISTORY = st.lists(
    st.tuples(st.integers(0, 300), st.booleans(), st.sampled_from([ME, "a", "b", "c", "d"])),
    max_size=200,
).map(sorted)


def health_after(
    history: list[tuple[int, bool, str]], threshold: int = 1_000_000
) -> tuple[TargetHealth, StandingClock]:
    """The health after these first attempts, none of which opened the breaker."""
    clock = StandingClock()
    start = clock.now
    health = TargetHealth(
        RetryPolicy(), clock, breaker_threshold=threshold, breaker_probe_interval_seconds=5.0
    )
    for second, failed, key in history:
        clock.now = start + second
        if failed:
            health.failed(key, DOWN, NO_PROBE, first=True)
        else:
            health.succeeded(key, first=True)
    clock.now = start + 300.0
    return health, clock


def shares(history: list[tuple[int, bool, str]], seconds: int) -> list[float]:
    """The share of others' first attempts that failed in the last seconds, and lately.

    Attempts are counted by the second: one of exactly so long ago still counts.
    """
    found = []
    for window, least in ((seconds, 1), (10, 5)):
        others = [failed for at, failed, key in history if key != ME and 300 - at <= window]
        if len(others) >= least:
            found.append(sum(others) / len(others))
    return found


@given(HISTORY, st.integers(1, 40), st.integers(0, 300))
def test_no_record_is_given_up_while_the_target_explains_its_failures(
    history: list[tuple[int, bool, str]], failures: int, failing_for: int
) -> None:
    """It is not if p to the power of its failures is over 1 in 10,000."""
    health, clock = health_after(history)

    given_up = health.gives_up(ME, failures, clock.now - failing_for)

    for share in shares(history, max(60, failing_for)):
        if share**failures > 1.0001e-4:
            assert not given_up
    if failures <= 3:
        assert not given_up, "retries are left"


@given(HISTORY, st.integers(4, 40))
def test_a_hopeless_record_is_given_up_once_others_succeed(
    history: list[tuple[int, bool, str]], failures: int
) -> None:
    """After a minute with only successes of others, whatever was before."""
    health, clock = health_after(history)
    for _ in range(61):
        clock.now += 1.0
        health.succeeded("another", first=True)

    assert health.gives_up(ME, failures, clock.now - 60.0)


@given(HISTORY)
@example([(240, True, "a")])
@example([*[(290, False, "a")] * 20, (300, True, "b")])
def test_with_few_failures_of_others_the_retries_decide(
    history: list[tuple[int, bool, str]],
) -> None:
    """With p up to 0.1, or without attempts at other keys, it is the fourth attempt.

    Or the fifth, if all of others failed since its first one.
    """
    health, clock = health_after(history)
    p = shares(history, 60)
    now = {failed for at, failed, key in history if at == 300 and key != ME}

    if not p or max(p) <= 0.1:
        last = 5 if now == {True} else 4
        given_up = [health.gives_up(ME, n, clock.now) for n in range(1, 7)]
        assert given_up == [n >= last for n in range(1, 7)]


@pytest.mark.parametrize(
    ("others", "attempts"),
    [
        ([], 4),
        ([(296, True, "a")], 5),
        ([(296, True, "a"), (297, True, "b")], 5),
        ([(296, True, "a"), (297, False, "b")], 4),
        ([(290, True, "a")], 4),
        ([(296, True, ME)], 4),
    ],
)
def test_an_outage_that_begins_on_a_quiet_topic(
    others: list[tuple[int, bool, str]], attempts: int
) -> None:
    """One more failure is needed if all of others failed since, too."""
    health, clock = health_after([*[(250, False, f"{n}") for n in range(40)], *others])
    given_up = next(n for n in range(1, 9) if health.gives_up(ME, n, clock.now - 7.0))
    assert given_up == attempts


@pytest.mark.parametrize(
    ("failing", "attempts"), [(0, 4), (50, 4), (100, 4), (200, 6), (500, 14), (900, 88)]
)
def test_the_table(failing: int, attempts: int) -> None:
    """Attempts at a record while so many of 1,000 first attempts of others fail."""
    history = [(290, number < failing, f"key-{number}") for number in range(1000)]
    health, clock = health_after(history)

    given_up = next(n for n in range(1, 1000) if health.gives_up(ME, n, clock.now))

    # The standard error of a thousand attempts is 1.6 % at most.
    assert attempts <= given_up <= attempts * 1.25


def test_a_wave_explains_what_was_sent_in_it() -> None:
    """A failure counts with the share of those sent at the same time, if that is larger."""
    health, clock = health_after([(295, False, f"key-{number}") for number in range(1000)])
    wave = clock.now - 20.0
    for number in range(20):
        key = f"late-{number}"
        if number < 18:
            health.failed(key, DOWN, NO_PROBE, first=True, sent_at=wave + number / 20)
        else:
            health.succeeded(key, first=True)
    before = wave - 10.0

    assert health.gives_up(ME, 4, clock.now, [before] * 4)
    assert health.gives_up(ME, 4, clock.now, [wave, before, before, before])
    assert not health.gives_up(ME, 4, clock.now, [wave] * 4)
    assert health.gives_up(ME, 8, clock.now, [wave, before] * 4)


def test_only_first_attempts_are_evidence() -> None:
    """Retries of hopeless records do not count against the target."""
    health, clock = health_after([(290, False, f"key-{number}") for number in range(10)])
    for _ in range(1000):
        health.failed("hopeless", DOWN, NO_PROBE, first=False)

    assert health.gives_up(ME, 4, clock.now)


def test_the_evidence_of_a_record_that_fails_for_long_is_as_old() -> None:
    """The target's failures since its first one count, up to ten minutes."""
    health, clock = health_after([(299, True, f"key-{number}") for number in range(10)])
    since = clock.now
    clock.now += 300.0

    assert not health.gives_up(ME, 20, since - 1.0)
    assert health.gives_up(ME, 20, clock.now), "of the last minute nothing is known"
    clock.now += MAX_EVIDENCE_SECONDS
    health.succeeded("other", first=True)
    assert health.gives_up(ME, 20, clock.now - MAX_EVIDENCE_SECONDS / 2)


def test_memory_is_bounded() -> None:
    """With any number of keys, over any time; the counts stay right."""
    first = FirstAttempts()
    for second in range(2 * MAX_EVIDENCE_SECONDS):
        for number in range(3 * KEYS_EACH_SECOND):
            first.add(f"{second}-{number}", failed=number % 3 == 0, now=float(second))

    now = 2 * MAX_EVIDENCE_SECONDS - 0.5
    assert first.count(60, now) == (61 * 3 * KEYS_EACH_SECOND, 61 * KEYS_EACH_SECOND)
    assert len(first._seconds) <= MAX_EVIDENCE_SECONDS + 1
    assert all(len(one.of_keys) <= KEYS_EACH_SECOND for one in first._seconds)
    assert len(first._failures_sent) <= MAX_EVIDENCE_SECONDS
    assert all(len(one) <= KEYS_EACH_SECOND + 1 for one in first._failures_sent.values())


def test_a_404_while_others_succeed() -> None:
    """Its own fault if another key succeeded in the last minute, and none got a 404 since."""
    health, clock = health_after([(290, False, "other")])
    gone = Answer(Verdict.GONE, 404)

    health.gone(ME, gone, first=True)
    assert health.works_for_other_keys(ME)
    assert not health.works_for_other_keys("other"), "its own success says nothing of it"
    clock.now += 1.0
    health.gone("third", gone, first=True)
    assert not health.works_for_other_keys(ME), "the address may be going away for all"
    clock.now += 1.0
    health.succeeded("other", first=True)
    assert health.works_for_other_keys(ME)
    clock.now += 61.0
    assert not health.works_for_other_keys(ME)


def test_a_404_while_many_fail() -> None:
    """Half of them do: a success proves little."""
    history = [(290 + n // 10, n % 2 == 0, f"key-{n}") for n in range(100)]
    health, _ = health_after(history)

    health.succeeded("other", first=True)

    assert not health.works_for_other_keys(ME)


@pytest.mark.parametrize(
    ("sent_at", "first", "alone"),
    [
        (300.1, True, False),
        (300.0, True, False),
        # It was under way before the address went away, or its attempts fail anyway.
        (299.9, True, True),
        (300.1, False, True),
    ],
)
@pytest.mark.parametrize("status", [404, 500])
def test_a_404_and_the_next_attempt(status: int, sent_at: float, first: bool, alone: bool) -> None:
    """It is not about the key alone if the next first attempt of another one fails, too."""
    health, clock = health_after([(290, False, "good")] * 20)
    clock.now = 300.0
    next_answer = answer(status)
    with health.doubt(ME, 300.0) as is_alone:
        clock.now = 300.5
        if status == 404:
            health.gone("other", next_answer, first=first, sent_at=sent_at)
        health.failed("other", next_answer, NO_PROBE, first=first, sent_at=sent_at)
        clock.now = 301.0
        for _ in range(20):
            health.succeeded("good", first=True, sent_at=300.2)
        assert is_alone() is alone


@pytest.mark.parametrize(("failures", "alone"), [(2, True), (3, False)])
def test_a_404_and_a_share_of_the_next_attempts(failures: int, alone: bool) -> None:
    """At most a fifth may fail, also before the last minute or ten seconds show it."""
    health, clock = health_after([(290, False, "good")] * 1000)
    clock.now = 300.0
    with health.doubt(ME, 300.0) as is_alone:
        for n in range(10):
            clock.now += 0.1
            worked = not 0 < n <= failures
            if worked:
                health.succeeded(f"{n}", first=True, sent_at=300.1)
            else:
                health.gone(f"{n}", answer(404), first=True, sent_at=300.1)
                health.failed(f"{n}", answer(404), NO_PROBE, first=True, sent_at=300.1)
        assert is_alone() is alone


def test_the_states_and_since_when() -> None:
    """Works, fails for some, is down, refuses us, throttles; and since when."""
    health, clock = health_after([], threshold=2)
    assert health.state(throttles=False) == (TargetState.WORKS, 300.0)
    health.failed("a", DOWN, NO_PROBE, first=True)
    assert health.state(throttles=False) == (TargetState.FAILS_FOR_SOME, 0.0)
    assert health.last_failure is not None
    assert (health.last_failure.status, health.last_failure.detail) == (500, "down")
    clock.now += 5.0
    health.failed("b", DOWN, NO_PROBE, first=True)
    assert health.state(throttles=False) == (TargetState.DOWN, 0.0)
    health.breaker.failed(NO_PROBE, first=True)
    clock.now += 7.0
    assert health.state(throttles=True) == (TargetState.DOWN, 7.0)
    ticket = health.breaker.begin_probe(never_sent=False)
    health.failed("a", answer(401), ticket, first=False)
    assert health.state(throttles=False)[0] is TargetState.REFUSES_US
    health.failed_locally(LACK, health.breaker.begin_probe(never_sent=False))
    assert health.state(throttles=False)[0] is TargetState.DOWN, "no longer for its refusal"
    health.throttled(answer(429), health.breaker.begin_probe(never_sent=False))
    assert health.breaker.closed, "it is there"
    assert health.state(throttles=True)[0] is TargetState.THROTTLES
    clock.now += 61.0
    assert health.state(throttles=False) == (TargetState.WORKS, 0.0)
    health.failed_locally(LACK, NO_PROBE)
    assert health.state(throttles=False) == (TargetState.DOWN, 0.0), "as far as we can tell"
    health.succeeded("a", first=True)
    assert health.state(throttles=False) == (TargetState.WORKS, 0.0)
    assert math.isclose(health.share_failed, 0.0)


@pytest.mark.parametrize(("rate", "text"), [(0.528, "0.528"), (51.6, "51.6"), (2345.6, "2,346")])
def test_a_rate_is_told_as_a_plain_number(rate: float, text: str) -> None:
    """Also a large one."""
    target = Target(TargetState.THROTTLES, 3.0, rate, 0.0, 256, None, "", None, None, "")
    assert str(target) == f"throttles for 3 s, takes {text} a second"
