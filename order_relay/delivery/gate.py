"""Decides which record is sent next, and when, while the target cannot take everything."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import NamedTuple

from order_relay.delivery.back_pressure import Pace
from order_relay.delivery.breaker import Breaker

NO_PROBE = 0
"""The ticket of an ordinary attempt: the breaker is closed."""


class _Waiter(NamedTuple):
    number: int
    failures: int
    turn: asyncio.Future[int]


_number = itemgetter(0)
_failures_and_number = itemgetter(1, 0)


class Gate:
    """Holds the records that may not be sent yet.

    While the target throttles, they are sent in order of arrival, at its pace; one that was refused
    repeatedly arrives anew, since it may be refused again. The first after a refusal is one that
    was never sent, if there is one: the others may be refused for ever. While the breaker is not
    closed, they are probes. Records that were never sent come first, alternating between the newest
    and the oldest, since either end may be full of hopeless ones. Then, and now and then before
    them (see ``Breaker.retry_is_next``), comes the record with the fewest failures.
    """

    def __init__(
        self, breaker: Breaker, pace: Pace, on_room: Callable[[], None] = lambda: None
    ) -> None:
        """Create an empty gate; call ``serve`` after each change of ``breaker`` or ``pace``.

        Args:
            breaker: Decides whether anything but probes may be sent.
            pace: Decides how fast.
            on_room: Called when fewer records wait than before.
        """
        self._breaker = breaker
        self._pace = pace
        self._on_room = on_room
        # Both in order of arrival.
        self._never_sent: list[_Waiter] = []
        self._failed: list[_Waiter] = []
        self._timer: asyncio.TimerHandle | None = None
        self._serving = False
        self._newest_next = True
        self.paused = False
        """A person has paused the consumer: nothing is sent, probes neither."""

    @property
    def is_open(self) -> bool:
        """Whether everything may be sent at once."""
        return self._breaker.closed and self._pace.free and not self.paused

    @property
    def never_sent(self) -> int:
        """Waiting records without an attempt."""
        return len(self._never_sent)

    def join(self, number: int, failures: int) -> asyncio.Future[int]:
        """Add a record to those that wait.

        Args:
            number: Its number in order of arrival.
            failures: Its attempts so far that failed or were refused.

        Returns:
            A future that is done when the record may be sent. Its result is the ticket of the
            probe, or NO_PROBE.
        """
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiters = self._failed if failures else self._never_sent
        insort(waiters, _Waiter(number, failures, turn), key=_number)
        # With thousands that have failed, choosing among them each time would block the event loop.
        # A probe that has its time is not sent sooner because of one more of them.
        if self._timer is None or self._breaker.closed or not (failures or self._retry_is_next):
            self.serve()
        return turn

    def leave(self, number: int, turn: asyncio.Future[int]) -> None:
        """Remove a record whose delivery was cancelled before it was sent."""
        if turn.done() and not turn.cancelled():
            self._breaker.withdrawn(turn.result())
        else:
            turn.cancel()
            self._remove(number)

    def serve(self) -> None:
        """Release all records that may be sent, and set a timer for the next one."""
        if (
            self.paused or self._serving
        ):  # called by the breaker, for the probe that is being released
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._serving = True
        waited = self._count
        while (waiter := self._next()) is not None:
            never_sent = waiter.failures == 0
            wait = max(self._breaker.probe_wait(never_sent=never_sent), self._pace.wait_seconds())
            if wait:
                self._timer = asyncio.get_running_loop().call_later(wait, self.serve)
                break
            self._remove(waiter.number)
            self._pace.sent()
            ticket = NO_PROBE
            if not self._breaker.closed:
                self._newest_next ^= never_sent
                ticket = self._breaker.begin_probe(never_sent=never_sent)
            waiter.turn.set_result(ticket)
        self._serving = False
        if self._count < waited:
            self._on_room()

    @property
    def _count(self) -> int:
        return len(self._never_sent) + len(self._failed)

    @property
    def _retry_is_next(self) -> bool:
        return bool(self._failed) and self._breaker.retry_is_next

    def _next(self) -> _Waiter | None:
        """Return the record that is sent next."""
        new = _first(self._never_sent)
        if self._breaker.closed:
            old = _first(self._failed)
            if new is None or old is None:
                return new or old
            return new if self._pace.probing else min(new, old, key=_number)
        if new is not None and not self._retry_is_next:
            return _first(reversed(self._never_sent)) if self._newest_next else new
        failed = (waiter for waiter in self._failed if not waiter.turn.done())
        return min(failed, key=_failures_and_number, default=new)

    def _remove(self, number: int) -> None:
        for waiters in (self._never_sent, self._failed):
            place = bisect_left(waiters, number, key=_number)
            if waiters[place : place + 1] and waiters[place].number == number:
                del waiters[place]


def _first(waiters: Iterable[_Waiter]) -> _Waiter | None:
    """Return the first one that still waits: its delivery may have been cancelled."""
    return next((waiter for waiter in waiters if not waiter.turn.done()), None)
