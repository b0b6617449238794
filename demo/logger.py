"""The sample external logger: mostly fine, sometimes slow, refusing or down.

``POST /logs`` takes an event, ``GET /`` says what it did. ``python -m demo.logger`` runs it by
itself, until SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from enum import StrEnum

import click
from aiohttp import web

from demo.command_line import (
    HOST,
    LISTEN_ON,
    LOGGER_PORT,
    Options,
    listening,
    run_command,
    run_until_stopped,
)

RETRY_AFTER_SECONDS = 2
# A refused order is refused on every attempt. A hopeless one fails more often than the relay tries
# it while others succeed. In the end it is refused, too: otherwise the last orders of a run would
# look like an outage, and wait for ever.
HOPELESS_ATTEMPTS = 8
SHARES = {"refused": 0.015, "hopeless": 0.005, "flaky": 0.07, "slow": 0.04, "fine": 0.87}
SLOW_SECONDS = (0.8, 2.5)
# Orders seen before the first outage, and between one and the next.
FIRST_OUTAGE_AFTER = 150
OUTAGE_EVERY = 1200
OUTAGE_SECONDS = (3.0, 8.0)
# Longer than any client's patience.
_HANG_SECONDS = 600.0


class Kind(StrEnum):
    """How a request ends."""

    ACCEPTED = "accepted"
    REFUSED = "422 refused"
    UNAVAILABLE = "503"
    BUSY = "429"
    RESET = "connection reset"
    HANGING = "no answer"


FAILURES = (Kind.UNAVAILABLE, Kind.BUSY, Kind.RESET, Kind.HANGING)


def first_outage_after(orders: int | None) -> int:
    """Return after how many orders the first outage begins; even a short run meets one."""
    return FIRST_OUTAGE_AFTER if orders is None else min(FIRST_OUTAGE_AFTER, orders // 3)


class SampleLogger:
    """An HTTP server that decides each answer, and counts them.

    Everything is drawn from the seed and the event's id: a run with the same orders meets the same
    failures, in whatever order its requests arrive.
    """

    def __init__(
        self,
        seed: int,
        first_outage: int = FIRST_OUTAGE_AFTER,
        outage_every: int = OUTAGE_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; ``on_accepted`` will get the key of each request that is answered 2xx."""
        self.on_accepted: Callable[[str], object] = lambda _: None
        self._seed = seed
        self._attempts: dict[str, int] = {}
        self._orders_seen = 0
        self._next_outage = first_outage
        self._outage_every = outage_every
        self._down_until = float("-inf")
        self._clock = clock
        self.requests = 0
        self.answers: Counter[Kind] = Counter()  # how they ended
        self.slow = 0
        self.outages = 0  # full ones so far

    @property
    def is_down(self) -> bool:
        """Whether a full outage is on."""
        return self._clock() < self._down_until

    @property
    def failures(self) -> dict[str, int]:
        """Failures by kind, in outages or outside."""
        return {str(kind): self.answers[kind] for kind in FAILURES}

    def answer(self, event_id: str) -> tuple[Kind, float]:
        """Decide one request by its idempotency key: how it ends, and after how many seconds."""
        self.requests += 1
        if event_id not in self._attempts:
            self._attempts[event_id] = 0
            self._orders_seen += 1
            if self._orders_seen > self._next_outage:
                length = self._draw("all", f"outage {self.outages}").uniform(*OUTAGE_SECONDS)
                self._down_until = self._clock() + length
                self._next_outage += self._outage_every
                self.outages += 1
        # Attempts during an outage count: an order that has failed in one rarely fails again for
        # reasons of its own. Otherwise the breaker's probes would often hit such orders.
        self._attempts[event_id] += 1
        if self.is_down:
            reset = self._draw(event_id, "outage").random() < 0.3
            return (Kind.RESET if reset else Kind.UNAVAILABLE), 0.005
        return self._answer_of_order(event_id, self._attempts[event_id])

    def conclude(self, event_id: str, kind: Kind, seconds: float) -> Kind:
        """Say how a request really ends after its delay: an outage may have begun."""
        if kind is Kind.ACCEPTED and self.is_down:
            kind = Kind.UNAVAILABLE
        if kind is Kind.ACCEPTED:
            # If it comes again, it is a duplicate, and its attempts start anew.
            self._attempts.pop(event_id, None)
        self.slow += seconds >= SLOW_SECONDS[0]
        self.answers[kind] += 1
        return kind

    def _answer_of_order(self, event_id: str, attempt: int) -> tuple[Kind, float]:
        order = self._draw(event_id, "order")
        fate = order.choices([*SHARES], [*SHARES.values()])[0]
        delay = self._draw(event_id, f"delay {attempt}").uniform(0.01, 0.06)
        match fate:
            case "refused":
                return Kind.REFUSED, delay
            case "hopeless":
                return (Kind.UNAVAILABLE if attempt <= HOPELESS_ATTEMPTS else Kind.REFUSED), delay
            case "flaky":
                failing_attempts = order.choice((1, 1, 2))
                failure = order.choices(FAILURES, weights=(4, 2, 3, 1))[0]
                return (failure if attempt <= failing_attempts else Kind.ACCEPTED), delay
            case "slow" if attempt == 1:
                return Kind.ACCEPTED, order.uniform(*SLOW_SECONDS)
        return Kind.ACCEPTED, delay

    def _draw(self, event_id: str, what: str) -> random.Random:
        return random.Random(f"{self._seed}:{event_id}:{what}")  # noqa: S311 - a script

    def listening(self, port: int, host: str = HOST) -> AbstractAsyncContextManager[int]:
        """Serve, on loopback unless told otherwise; gives the port, a free one for 0.

        Raises:
            CannotRun: The port is in use or not allowed.
        """
        routes = [web.post("/logs", self._take), web.get("/", self._show)]
        return listening(routes, host, port, "the sample logger", "LOGGER_PORT")

    async def _take(self, request: web.Request) -> web.StreamResponse:
        event_id = request.headers.get("Idempotency-Key", "")
        await request.read()
        kind, seconds = self.answer(event_id)
        await asyncio.sleep(seconds)
        kind = self.conclude(event_id, kind, seconds)
        match kind:
            case Kind.ACCEPTED:
                self.on_accepted(event_id)
                return web.json_response({"status": "logged"}, status=201)
            case Kind.REFUSED:
                return web.json_response({"error": "this order cannot be logged"}, status=422)
            case Kind.BUSY:
                after = {"Retry-After": str(RETRY_AFTER_SECONDS)}
                return web.json_response({"error": "too busy"}, status=429, headers=after)
            case Kind.RESET if request.transport is not None:
                request.transport.abort()
            case Kind.HANGING:
                await asyncio.sleep(_HANG_SECONDS)
        return web.json_response({"error": "not available"}, status=503)

    async def _show(self, request: web.Request) -> web.Response:
        answers = {str(kind): self.answers[kind] for kind in Kind}
        return web.json_response(
            {"requests": self.requests, "answers": answers, "is_down": self.is_down}
        )


@click.command()
@LISTEN_ON
@LOGGER_PORT
def main(host: str, logger_port: int) -> None:
    """Run a sample external logger until SIGTERM or Ctrl-C.

    POST /logs is mostly fine, sometimes slow, refusing or down; GET / says what it did so far.
    """

    async def log() -> None:
        async with SampleLogger(Options.seed).listening(logger_port, host):
            await asyncio.Event().wait()

    run_until_stopped(log())


if __name__ == "__main__":
    run_command(main)
