"""Decides which record is sent next, and when, while the target cannot take everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

from order_relay.delivery.back_pressure import Pace
from order_relay.delivery.target_health import Breaker

NO_PROBE = 0
"""The ticket of an ordinary attempt: the breaker is closed."""


class _Waiter(NamedTuple):
    number: int
    entry: int  # unique, so that ``turn`` is never compared
    failures: int
    turn: asyncio.Future[int]


class Gate:
    """Holds the records that may not be sent yet.

    While the target throttles, they are sent in order of arrival, at its pace. While the breaker is
    not closed, they are probes. Records that were never sent come first, alternating between the
    newest and the oldest, since either end may be full of hopeless ones. Then comes the record with
    the fewest failures.
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
        self._waiters: list[_Waiter] = []
        self._entries = count()
        self._timer: asyncio.TimerHandle | None = None
        self._serving = False
        self._newest_next = True
        self.never_sent = 0
        """Waiting records without a failed attempt; cancelled ones may still be counted."""

    @property
    def is_open(self) -> bool:
        """Whether everything may be sent at once."""
        return self._breaker.closed and self._pace.free

    def join(self, number: int, failures: int) -> asyncio.Future[int]:
        """Add a record to those that wait.

        Args:
            number: Its number in order of arrival.
            failures: Its failed attempts.

        Returns:
            A future that is done when the record may be sent. Its result is the ticket of the
            probe, or NO_PROBE. Cancel it to leave.
        """
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        heappush(self._waiters, _Waiter(number, next(self._entries), failures, turn))
        self.never_sent += failures == 0
        self.serve()
        return turn

    def serve(self) -> None:
        """Release all records that may be sent, and set a timer for the next one."""
        if self._serving:  # called by the breaker, for the probe that is being released
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._serving = True
        waited = len(self._waiters)
        while self._waiters:
            if wait := self._serve_one():
                self._timer = asyncio.get_running_loop().call_later(wait, self.serve)
                break
        self._serving = False
        if len(self._waiters) < waited:
            self._on_room()

    def _serve_one(self) -> float:
        """Release one record; returns the seconds to wait first, 0 if it was released."""
        if self._breaker.closed:
            if self._waiters[0].turn.done():  # cancelled
                self._pop()
                return 0.0
            if wait := self._pace.wait_seconds():
                return wait
            turn = self._pop().turn
            self._pace.sent()
            turn.set_result(NO_PROBE)
            return 0.0
        self._drop_cancelled()
        if not self._waiters:
            return 0.0
        waiter = min(self._waiters, key=self._probe_order)
        never_sent = waiter.failures == 0
        wait = max(self._breaker.probe_wait(never_sent=never_sent), self._pace.wait_seconds())
        if not wait:
            self._waiters.remove(waiter)
            heapify(self._waiters)
            self.never_sent -= never_sent
            self._newest_next ^= never_sent
            self._pace.sent()
            waiter.turn.set_result(self._breaker.begin_probe(never_sent=never_sent))
        return wait

    def _pop(self) -> _Waiter:
        waiter = heappop(self._waiters)
        self.never_sent -= waiter.failures == 0
        return waiter

    def _drop_cancelled(self) -> None:
        if any(waiter.turn.done() for waiter in self._waiters):
            self._waiters = [waiter for waiter in self._waiters if not waiter.turn.done()]
            heapify(self._waiters)
            self.never_sent = sum(waiter.failures == 0 for waiter in self._waiters)

    def _probe_order(self, waiter: _Waiter) -> tuple[int, int]:
        last_first = self._newest_next and not waiter.failures
        return waiter.failures, -waiter.number if last_first else waiter.number
