"""Now and then the embedded cluster is out of reach for a few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

_LOOK_SECONDS = 0.1


class Brokers(Protocol):
    """The part of ``EmbeddedCluster`` that this needs. Calls take milliseconds."""

    def down(self) -> None:
        """See ``EmbeddedCluster``."""

    def up(self) -> None:
        """See ``EmbeddedCluster``."""


@dataclass(frozen=True, slots=True)
class OutagePlan:
    """When Kafka is down.

    Attributes:
        first_after: Orders paid before the first outage.
        every: Orders paid between one and the next.
        seconds: How long each takes: long enough for publishes to be given up and saved.
    """

    first_after: int = 400
    every: int = 1600
    seconds: float = 5.0

    @classmethod
    def for_orders(cls, orders: int | None) -> OutagePlan:
        """Return a plan in which even a short run meets one outage, and a counted one no more.

        It begins with a third of the orders still to be paid, up to a number.
        """
        if orders is None:
            return cls()
        return cls(first_after=max(orders * 2 // 3, orders - 500), every=orders)


class KafkaOutages:
    """Takes the brokers down and up as planned, as an async context manager.

    Attributes:
        begun: Outages so far.
    """

    def __init__(self, brokers: Brokers, plan: OutagePlan, paid: Callable[[], int]) -> None:
        """Prepare; ``paid`` says how many orders are paid by now."""
        self._brokers = brokers
        self._plan = plan
        self._paid = paid
        self._task: asyncio.Task[None] | None = None
        self.begun = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._go_on())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.end()

    async def end(self) -> None:
        """No more outages; one that is on is over. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _go_on(self) -> None:
        due = self._plan.first_after
        while True:
            # The ledger counts; there is no event to await.
            while self._paid() <= due:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
            due += self._plan.every
            self.begun += 1
            self._brokers.down()
            try:
                await asyncio.sleep(self._plan.seconds)
            finally:
                self._brokers.up()
