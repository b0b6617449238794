"""The sample logger's script: repeatable, with every kind of failure."""

from __future__ import annotations

from collections import Counter

import pytest

from demo.logger import FAILURES, SLOW_SECONDS, Kind, SampleLogger, first_outage_after
from tests.support.fakes import StandingClock

NEVER = 10**9
IDS = [f"event-{number}" for number in range(3000)]


def without_outages(seed: int) -> SampleLogger:
    """A script in which the logger is never down."""
    return SampleLogger(seed, NEVER)


def test_the_seed_and_the_id_decide() -> None:
    """An order's answer does not depend on the orders before it."""
    one, same, other = without_outages(7), without_outages(7), without_outages(2)
    forward = {event_id: one.answer(event_id) for event_id in IDS}
    assert forward == {event_id: same.answer(event_id) for event_id in reversed(IDS)}
    assert forward != {event_id: other.answer(event_id) for event_id in IDS}


def until_final(script: SampleLogger, event_id: str) -> list[tuple[Kind, float]]:
    """Try as a worker does: the first attempt and three retries."""
    answers: list[tuple[Kind, float]] = []
    while len(answers) < 4:
        answers.append(script.answer(event_id))
        script.conclude(event_id, *answers[-1])
        if answers[-1][0] in {Kind.ACCEPTED, Kind.REFUSED}:
            break
    return answers


def test_every_kind_of_failure_happens_and_most_orders_are_fine() -> None:
    """All kinds occur; most are accepted at once, some only slowly."""
    script = without_outages(1)
    stories = [until_final(script, event_id) for event_id in IDS]
    kinds = Counter(kind for story in stories for kind, _ in story)
    assert set(kinds) == set(Kind)
    assert script.answers == kinds
    assert script.requests == kinds.total()
    assert sum(story[0][0] is Kind.ACCEPTED for story in stories) > 0.88 * len(IDS)
    ends = Counter(story[-1][0] for story in stories)
    # Some are refused, a few fail on all four attempts; the rest gets through.
    assert 0 < ends[Kind.UNAVAILABLE] < ends[Kind.REFUSED] < 0.03 * len(IDS)
    assert not any(ends[kind] for kind in FAILURES if kind is not Kind.UNAVAILABLE)
    slow = sum(seconds >= SLOW_SECONDS[0] for story in stories for _, seconds in story)
    assert script.slow == slow > 0
    # A refusal repeats on every attempt.
    refused = [one for one, story in zip(IDS, stories, strict=True) if story[-1][0] is Kind.REFUSED]
    assert {script.answer(event_id)[0] for event_id in refused} == {Kind.REFUSED}


def test_an_outage_begins_by_count_and_ends_by_time() -> None:
    """After so many orders every request fails for some seconds; repeats do not count."""
    clock = StandingClock(0.0)
    script = SampleLogger(1, 10, 20, clock)
    for event_id in [*IDS[:10], *IDS[:10]]:
        script.answer(event_id)
    assert script.outages == 0
    clock.now = 100.0
    down = {script.answer(event_id)[0] for event_id in IDS[10:29]}
    assert down == {Kind.UNAVAILABLE, Kind.RESET}
    assert script.outages == 1
    down_at = []
    for clock.now in (102.9, 108.1):
        down_at.append(script.is_down)
    assert down_at == [True, False]
    clock.now = 200.0
    assert Kind.ACCEPTED in {script.answer(event_id)[0] for event_id in IDS[29:30]}
    script.answer(IDS[30])
    assert script.outages == 2


def test_an_outage_takes_requests_that_were_under_way() -> None:
    """A request that would be accepted fails if an outage has begun meanwhile."""
    clock = StandingClock(0.0)
    script = SampleLogger(1, 1, clock=clock)
    fine = [event_id for event_id in IDS if without_outages(1).answer(event_id)[0] is Kind.ACCEPTED]
    under_way = script.answer(fine[0])
    script.answer(fine[1])
    clock.now = 1.0
    assert script.conclude(fine[0], *under_way) is Kind.UNAVAILABLE
    clock.now = 60.0
    assert script.conclude(fine[0], *script.answer(fine[0])) is Kind.ACCEPTED


def test_attempts_in_an_outage_count_as_the_orders_own() -> None:
    """After two failures in an outage an order succeeds, unless it always fails."""
    clock = StandingClock(0.0)
    script = SampleLogger(1, 0, clock=clock)
    after = set()
    for event_id in IDS[:1000]:
        clock.now = 0.0
        script.answer(event_id)
        script.answer(event_id)
        clock.now = 60.0
        after.add(script.answer(event_id)[0])
    assert after == {Kind.ACCEPTED, Kind.REFUSED, Kind.UNAVAILABLE}
    assert script.outages == 1


@pytest.mark.parametrize(("orders", "first_after"), [(None, 150), (500, 150), (60, 20), (1, 0)])
def test_short_runs_meet_an_outage_too(orders: int | None, first_after: int) -> None:
    """The first outage comes after a third of the orders at the latest."""
    assert first_outage_after(orders) == first_after
