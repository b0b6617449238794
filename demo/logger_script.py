"""What the sample logger does to each request: mostly fine, sometimes slow, refusing or down.

Everything is drawn from the seed and the event's id, so a run with the same orders meets the same
mishaps, in whatever order its requests arrive.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a request ends."""

    ACCEPTED = "accepted"
    REFUSED = "422 refused"
    UNAVAILABLE = "503"
    BUSY = "429"
    RESET = "connection reset"
    HANGING = "no answer"


FAILURES = (Kind.UNAVAILABLE, Kind.BUSY, Kind.RESET, Kind.HANGING)
RETRY_AFTER_SECONDS = 2
# A refused order is refused for ever; a hopeless one fails on every attempt.
REFUSED_SHARE = 0.015
HOPELESS_SHARE = 0.005
FLAKY_SHARE = 0.07
SLOW_SHARE = 0.04


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do with one request.

    Attributes:
        kind: How it ends.
        delay_seconds: How long to wait before.
        slow: The delay is one of the long ones.
    """

    kind: Kind
    delay_seconds: float
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Outages:
    """When the logger is down altogether.

    Attributes:
        first_after: Orders seen before the first one.
        every: Orders seen between one and the next.
        shortest_seconds: Shortest length.
        longest_seconds: Longest length.
    """

    first_after: int = 150
    every: int = 1200
    shortest_seconds: float = 3.0
    longest_seconds: float = 8.0

    @classmethod
    def for_orders(cls, orders: int | None) -> Outages:
        """Return a plan in which even a short run meets an outage."""
        return cls() if orders is None else cls(first_after=min(cls().first_after, orders // 3))


class LoggerScript:
    """Decides each answer. Knows time only from what it is told."""

    def __init__(self, seed: int, outages: Outages) -> None:
        self._seed = seed
        self._plan = outages
        self._lengths = random.Random(f"{seed}:outages")  # noqa: S311 - a script, not a secret
        self._attempts: dict[str, int] = {}
        self._orders_seen = 0
        self._next_outage = outages.first_after
        self._down_until = float("-inf")
        self.outages_begun = 0

    def is_down(self, now: float) -> bool:
        """Whether a full outage is on."""
        return now < self._down_until

    def answer(self, event_id: str, now: float) -> Answer:
        """Decide one request; ``conclude`` has the last word.

        Args:
            event_id: The event's idempotency key.
            now: Seconds on any clock that only goes forward.
        """
        if event_id not in self._attempts:
            self._attempts[event_id] = 0
            self._orders_seen += 1
            if self._orders_seen > self._next_outage:
                self._begin_outage(now)
        # Attempts during an outage count: an order that has failed in one rarely fails again for
        # reasons of its own. Otherwise the breaker's probes would often hit such orders.
        self._attempts[event_id] += 1
        if self.is_down(now):
            draw = self._draw(event_id, "outage")
            kind = Kind.RESET if draw.random() < 0.3 else Kind.UNAVAILABLE
            return Answer(kind, 0.005)
        return self._answer_of_order(event_id, self._attempts[event_id])

    def conclude(self, event_id: str, answer: Answer, now: float) -> Kind:
        """Say how a request really ends, its delay being over: an outage may have begun."""
        if answer.kind is not Kind.ACCEPTED:
            return answer.kind
        if self.is_down(now):
            return Kind.UNAVAILABLE
        # Should it come again, it is a duplicate, and a new story.
        self._attempts.pop(event_id, None)
        return Kind.ACCEPTED

    def _begin_outage(self, now: float) -> None:
        length = self._lengths.uniform(self._plan.shortest_seconds, self._plan.longest_seconds)
        self._down_until = now + length
        self._next_outage += self._plan.every
        self.outages_begun += 1

    def _answer_of_order(self, event_id: str, attempt: int) -> Answer:
        order = self._draw(event_id, "order")
        fate = order.random()
        delay = self._draw(event_id, f"delay {attempt}").uniform(0.01, 0.06)
        if fate < REFUSED_SHARE:
            return Answer(Kind.REFUSED, delay)
        fate -= REFUSED_SHARE
        if fate < HOPELESS_SHARE:
            return Answer(Kind.UNAVAILABLE, delay)
        fate -= HOPELESS_SHARE
        if fate < FLAKY_SHARE:
            failing_attempts = order.choice((1, 1, 2))
            failure = order.choices(FAILURES, weights=(4, 2, 3, 1))[0]
            if attempt <= failing_attempts:
                return Answer(failure, delay)
            return Answer(Kind.ACCEPTED, delay)
        fate -= FLAKY_SHARE
        if fate < SLOW_SHARE and attempt == 1:
            return Answer(Kind.ACCEPTED, order.uniform(0.8, 2.5), slow=True)
        return Answer(Kind.ACCEPTED, delay)

    def _draw(self, event_id: str, what: str) -> random.Random:
        return random.Random(f"{self._seed}:{event_id}:{what}")  # noqa: S311 - a script
