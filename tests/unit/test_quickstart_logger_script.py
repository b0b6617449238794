"""The sample logger's script: repeatable, and with every mishap in it."""

from __future__ import annotations

from collections import Counter

import pytest

from demo.logger_script import FAILURES, Answer, Kind, LoggerScript, Outages

NEVER = Outages(first_after=10**9)
IDS = [f"event-{number}" for number in range(3000)]


def test_the_same_seed_gives_the_same_answers_in_any_order() -> None:
    """What happens to an order depends on the seed and its id, not on who came before."""
    one, other = LoggerScript(7, NEVER), LoggerScript(7, NEVER)
    forward = {event_id: one.answer(event_id, 0.0) for event_id in IDS}
    backward = {event_id: other.answer(event_id, 0.0) for event_id in reversed(IDS)}
    assert forward == backward


def test_another_seed_gives_other_answers() -> None:
    """The seed matters."""
    one, other = LoggerScript(1, NEVER), LoggerScript(2, NEVER)
    assert [one.answer(event_id, 0.0) for event_id in IDS] != [
        other.answer(event_id, 0.0) for event_id in IDS
    ]


def until_final(script: LoggerScript, event_id: str) -> list[Answer]:
    """Try as a worker does: the first attempt and three retries."""
    answers: list[Answer] = []
    while len(answers) < 4:
        answers.append(script.answer(event_id, 0.0))
        script.conclude(event_id, answers[-1], 0.0)
        if answers[-1].kind in {Kind.ACCEPTED, Kind.REFUSED}:
            break
    return answers


def test_every_kind_of_mishap_happens_and_most_orders_are_fine() -> None:
    """All kinds occur; over nine tenths are accepted at once, some only slowly."""
    script = LoggerScript(1, NEVER)
    stories = [until_final(script, event_id) for event_id in IDS]
    kinds = Counter(answer.kind for story in stories for answer in story)
    assert set(kinds) == set(Kind)
    assert sum(story[0].kind is Kind.ACCEPTED for story in stories) > 0.88 * len(IDS)
    ends = Counter(story[-1].kind for story in stories)
    # Some are refused for good, a few fail on all four attempts; the rest gets through.
    assert 0 < ends[Kind.UNAVAILABLE] < ends[Kind.REFUSED] < 0.03 * len(IDS)
    assert not any(ends[kind] for kind in FAILURES if kind is not Kind.UNAVAILABLE)
    assert any(answer.slow for story in stories for answer in story)


def test_refused_orders_are_refused_for_ever() -> None:
    """A refusal is about the order: it comes again on every attempt."""
    script = LoggerScript(1, NEVER)
    refused = [event_id for event_id in IDS if script.answer(event_id, 0.0).kind is Kind.REFUSED]
    assert refused
    assert {script.answer(event_id, 0.0).kind for event_id in refused} == {Kind.REFUSED}


def test_an_outage_begins_by_count_and_ends_by_time() -> None:
    """After so many orders nobody gets through for some seconds; repeats do not count."""
    script = LoggerScript(1, Outages(first_after=10, every=20))
    for event_id in [*IDS[:10], *IDS[:10]]:
        script.answer(event_id, 0.0)
    assert script.outages_begun == 0
    down = {script.answer(event_id, 100.0).kind for event_id in IDS[10:29]}
    assert down == {Kind.UNAVAILABLE, Kind.RESET}
    assert script.outages_begun == 1
    assert script.is_down(102.9)
    assert not script.is_down(108.1)
    assert Kind.ACCEPTED in {script.answer(event_id, 200.0).kind for event_id in IDS[29:30]}
    script.answer(IDS[30], 200.0)
    assert script.outages_begun == 2


def test_an_outage_takes_requests_that_were_under_way() -> None:
    """Who would have been accepted slowly is not, when an outage has begun meanwhile."""
    script = LoggerScript(1, Outages(first_after=1))
    fine = [
        event_id
        for event_id in IDS
        if LoggerScript(1, NEVER).answer(event_id, 0.0).kind is Kind.ACCEPTED
    ]
    under_way = script.answer(fine[0], 0.0)
    script.answer(fine[1], 0.0)
    assert script.conclude(fine[0], under_way, 1.0) is Kind.UNAVAILABLE
    assert script.conclude(fine[0], script.answer(fine[0], 60.0), 60.0) is Kind.ACCEPTED


def test_attempts_in_an_outage_count_as_the_orders_own() -> None:
    """After two failures in an outage an order fails no more, unless it always would."""
    script = LoggerScript(1, Outages(first_after=0))
    after = set()
    for event_id in IDS[:1000]:
        script.answer(event_id, 0.0)
        script.answer(event_id, 0.0)
        after.add(script.answer(event_id, 60.0).kind)
    assert after == {Kind.ACCEPTED, Kind.REFUSED, Kind.UNAVAILABLE}
    assert script.outages_begun == 1


@pytest.mark.parametrize(("orders", "first_after"), [(None, 150), (500, 150), (60, 20), (1, 0)])
def test_short_runs_meet_an_outage_too(orders: int | None, first_after: int) -> None:
    """The first outage comes after a third of the orders at the latest."""
    assert Outages.for_orders(orders).first_after == first_after
