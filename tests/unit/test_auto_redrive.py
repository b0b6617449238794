"""Auto-redrive: which letters are due, and when none is redriven."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from order_relay.dead_letters.auto_redrive import AutoRedrive
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redrive import LetterResult, Redrive, RedriveResult
from order_relay.delivery.gate import NO_PROBE
from order_relay.settings import load_settings
from tests.support.publish_fakes import FakeProducer
from tests.support.runtimes import runtime
from tests.unit.test_open_letters import MOMENT, Topic, indexed, letter

WAITS = (600.0, 3600.0)
NOW = MOMENT.timestamp()


def given_up(
    offset: int, *, minutes: float, redrives: int = 0, reason: str = "retries_exhausted"
) -> Letter:
    """A letter that was given up so many minutes ago."""
    made = letter(offset, reason=reason, failed_at=MOMENT - timedelta(minutes=minutes))
    return Letter(
        made.topic, 0, offset, made.key, made.value,
        (*made.headers, ("dlq-redrives", b"%d" % redrives)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "due"),
    [
        (given_up(0, minutes=9.9), False),
        (given_up(0, minutes=10), True),
        (given_up(0, minutes=59, redrives=1), False),
        (given_up(0, minutes=60, redrives=1), True),
        (given_up(0, minutes=100_000, redrives=2), False),
        (given_up(0, minutes=100_000, redrives=17), False),
        (given_up(0, minutes=100_000, reason="rejected"), False),
    ],
    ids=["early", "due", "second early", "second due", "had both", "by people", "not its reason"],
)
def test_a_letter_is_due_after_the_wait_of_its_redrive(one: Letter, due: bool) -> None:
    """The first wait before the first redrive, the second before the second, then no more."""
    assert indexed(one).due(WAITS, NOW, limit=10) == ([(0, 0)] if due else [])


def test_a_round_has_a_bound() -> None:
    """A round has no more letters than its limit; the rest is due later."""
    index = indexed(*(given_up(n, minutes=20) for n in range(9)))
    assert index.due(WAITS, NOW, limit=4) == [(0, n) for n in range(4)]


class OpenedTopic:
    """A dead-letter topic that records what was redriven."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.asked: list[int] = []
        self.rate: float | None = None
        self.stopped = ""

    @property
    def extents(self) -> Any:
        return {0: (self.topic.low, self.topic.end)}

    @property
    def redriven(self) -> Any:
        return {0: set()}

    async def letters(self, *, from_start: bool) -> AsyncIterator[tuple[Letter, bool]]:
        for one in self.topic.letters_there:
            yield one, False

    @asynccontextmanager
    async def redriving(self, selection: Any, redrive: Redrive) -> AsyncIterator[Any]:
        self.rate = redrive.rate

        async def results() -> AsyncIterator[LetterResult]:
            for offset in selection.chosen[0]:
                if redrive.remark:
                    self.stopped = redrive.remark
                    return
                self.asked.append(offset)
                yield LetterResult(0, offset, RedriveResult.REDRIVEN)

        yield results()


async def rounds(works: list[bool]) -> tuple[OpenedTopic, list[int]]:
    """A round over three due letters; ``works`` is the target's state before each."""
    topic = Topic(*(given_up(n, minutes=20) for n in range(3)), letter(3))
    letters = topic.watched()
    await letters.refresh(topic)
    opened = OpenedTopic(topic)
    counted: list[int] = []
    states = iter(works)

    @asynccontextmanager
    async def open_topic() -> AsyncIterator[Any]:
        yield opened

    redrive = AutoRedrive(
        letters,
        open_topic,
        lambda: Redrive(FakeProducer(), topic="orders", consumer="order_logging", rate=5.0),
        waits_seconds=WAITS,
        rate=5.0,
        target_works=lambda: next(states, True),
        on_redriven=counted.append,
        clock=lambda: NOW,
    )
    await redrive.redrive_due()
    return opened, counted


@pytest.mark.parametrize(
    ("works", "asked", "stopped"),
    [
        ([], [0, 1, 2], ""),
        ([False], [], ""),  # it would use up a letter's redrives
        ([True, True, False], [0, 1], "the target does not work"),
    ],
)
async def test_what_is_due_is_redriven_while_the_target_works(
    works: list[bool], asked: list[int], stopped: str
) -> None:
    """At the rate, and counted; a round ends after the letter in progress when it fails."""
    opened, counted = await rounds(works)
    assert (opened.asked, opened.stopped) == (asked, stopped)
    assert (opened.rate, counted) == ((5.0, [len(asked)]) if asked else (None, []))


async def test_a_worker_asks_whether_its_target_works() -> None:
    """It does not while the breaker is open, nor while a person has paused the consumer."""
    with runtime(load_settings(breaker_failure_threshold=1)) as made:
        works = made._auto_redrive(WAITS).target_works
        assert works()
        made.dispatcher.pause(True)
        assert not works()
        made.dispatcher.pause(False)
        assert works()
        made.dispatcher.breaker.failed(NO_PROBE, first=True)
        assert not works()
