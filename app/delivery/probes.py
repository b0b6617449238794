"""Who probes next while the breaker is not closed: records that wait, the least hopeless first."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count

from app.delivery.breaker import Breaker

NO_PROBE = 0
"""The ticket of an ordinary attempt: the breaker is closed."""


class ProbeQueue:
    """Records that may not be sent, in the order in which they probe.

    One that was never sent goes before all others, then the one that failed least often: records
    that the logger never takes cannot keep the breaker open.
    """

    def __init__(self, breaker: Breaker) -> None:
        """Queue for ``breaker``; call ``serve`` whenever it says that it changed."""
        self._breaker = breaker
        self._queue: list[tuple[int, int, asyncio.Future[int]]] = []
        self._number = count()
        self._timer: asyncio.TimerHandle | None = None
        self._serving = False

    def join(self, failures: int) -> asyncio.Future[int]:
        """Queue a record that failed so often.

        Returns:
            What is done when it may be sent: the ticket of its probe, or NO_PROBE once the breaker
            is closed. Cancel it to leave the queue.
        """
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        heappush(self._queue, (failures, next(self._number), turn))
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
        while self._queue:
            failures, _, turn = self._queue[0]
            never_sent = failures == 0
            if not turn.done():
                if wait := self._breaker.probe_wait(never_sent=never_sent):
                    self._timer = asyncio.get_running_loop().call_later(wait, self.serve)
                    break
                closed = self._breaker.closed
                turn.set_result(
                    NO_PROBE if closed else self._breaker.begin_probe(never_sent=never_sent)
                )
            heappop(self._queue)
        self._serving = False
