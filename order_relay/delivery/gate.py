"""Who may send next, and when, while the target cannot take everything."""

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
    entry: int  # no two are the same: what comes after it is never compared
    failures: int
    turn: asyncio.Future[int]


class Gate:
    """Records that may not be sent yet.

    While the target throttles they go in the order in which they came, at its pace. While the
    breaker is not closed they probe: one that was never sent before all others, in turn the one
    that came last and the one that came first, since many beside them may be hopeless; else the
    one that failed least.
    """

    def __init__(
        self, breaker: Breaker, pace: Pace, on_room: Callable[[], None] = lambda: None
    ) -> None:
        """Make a gate; call ``serve`` whenever one of the two says something new.

        Args:
            breaker: Whether anything but probes may be sent.
            pace: How fast.
            on_room: Called when fewer records wait than before.
        """
        self._breaker = breaker
        self._pace = pace
        self._on_room = on_room
        self._waiters: list[_Waiter] = []
        self._entries = count()
        self._timer: asyncio.TimerHandle | None = None
        self._serving = False
        self._last_first = True
        self.never_sent = 0
        """Records that wait and never failed, at most."""

    @property
    def is_open(self) -> bool:
        """Whether everything may be sent at once."""
        return self._breaker.closed and self._pace.free

    def join(self, number: int, failures: int) -> asyncio.Future[int]:
        """Let a record wait.

        Args:
            number: It goes by: greater for one that came later.
            failures: Its attempts that failed.

        Returns:
            What is done when it may be sent: the ticket of its probe, or NO_PROBE. Cancel it to
            leave.
        """
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        heappush(self._waiters, _Waiter(number, next(self._entries), failures, turn))
        self.never_sent += failures == 0
        self.serve()
        return turn

    def serve(self) -> None:
        """Let those go whose turn it is, and look again when it is the next one's."""
        if self._serving:  # the breaker tells that the probe which was just let go is out
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
        """Let one go; returns how long to wait before, 0 if it went."""
        if self._breaker.closed:
            if self._waiters[0].turn.done():  # it has left
                self._pop()
                return 0.0
            if wait := self._pace.wait_seconds():
                return wait
            turn = self._pop().turn
            self._pace.sent()
            turn.set_result(NO_PROBE)
            return 0.0
        self._forget_those_who_left()
        if not self._waiters:
            return 0.0
        waiter = min(self._waiters, key=self._by_hope)
        never_sent = waiter.failures == 0
        wait = max(self._breaker.probe_wait(never_sent=never_sent), self._pace.wait_seconds())
        if not wait:
            self._waiters.remove(waiter)
            heapify(self._waiters)
            self.never_sent -= never_sent
            self._last_first ^= never_sent
            self._pace.sent()
            waiter.turn.set_result(self._breaker.begin_probe(never_sent=never_sent))
        return wait

    def _pop(self) -> _Waiter:
        waiter = heappop(self._waiters)
        self.never_sent -= waiter.failures == 0
        return waiter

    def _forget_those_who_left(self) -> None:
        if any(waiter.turn.done() for waiter in self._waiters):
            self._waiters = [waiter for waiter in self._waiters if not waiter.turn.done()]
            heapify(self._waiters)
            self.never_sent = sum(waiter.failures == 0 for waiter in self._waiters)

    def _by_hope(self, waiter: _Waiter) -> tuple[int, int]:
        last_first = self._last_first and not waiter.failures
        return waiter.failures, -waiter.number if last_first else waiter.number
