"""Whether any broker answers, watched while rows are on their way."""

from __future__ import annotations

import asyncio
from typing import Protocol

from order_relay.errors import KafkaUnavailable

PING_INTERVAL_SECONDS = 5.0
# Rows of one batch fail in the same moment; one question answers for all of them.
FRESH_SECONDS = 1.0


class Pingable(Protocol):
    """The part of ``KafkaProducer`` that this needs."""

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        """See ``KafkaProducer.ping``."""


class Reachability:
    """Asks the brokers, and remembers that they once did not answer.

    Attributes:
        reason: Why no more rows may be sent; empty while brokers answer.
    """

    def __init__(self, producer: Pingable) -> None:
        self._producer = producer
        self.reason = ""
        self._answered_at = float("-inf")
        self._asking = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether no broker answered at some time since the start; it stays so."""
        return bool(self.reason)

    def give_up(self, reason: str) -> None:
        """Send no more rows, for another reason than the brokers."""
        self.reason = self.reason or reason

    async def watch(self) -> None:
        """Ask every few seconds until cancelled, or until no broker answers."""
        while not self.lost:
            await asyncio.sleep(PING_INTERVAL_SECONDS)
            await self._ask()

    async def was_lost(self) -> bool:
        """Whether brokers did not answer at some time, or do not now."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if not self.lost and now - self._answered_at > FRESH_SECONDS:
                await self._ask()
        return self.lost

    async def _ask(self) -> None:
        asked_at = asyncio.get_running_loop().time()
        try:
            await self._producer.ping()
        except KafkaUnavailable as error:
            self.give_up(str(error))
        else:
            self._answered_at = asked_at
