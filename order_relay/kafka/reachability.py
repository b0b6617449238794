"""Watches whether any broker answers while saved rows are published."""

from __future__ import annotations

import asyncio
from typing import Protocol

from order_relay.errors import KafkaUnavailable

PING_INTERVAL_SECONDS = 5.0
# Rows of one batch fail at the same moment. One ping is enough for all of them.
FRESH_SECONDS = 1.0


class Pingable(Protocol):
    """The part of ``KafkaProducer`` that this needs."""

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        """See ``KafkaProducer.ping``."""


class Reachability:
    """Pings the brokers, and stays ``lost`` once none has answered.

    Attributes:
        reason: Why no more rows may be sent; empty while brokers answer.
    """

    def __init__(self, producer: Pingable) -> None:
        self._producer = producer
        self.reason = ""
        self._answered_at = float("-inf")
        self._pinging = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether no broker answered a ping since the start."""
        return bool(self.reason)

    def give_up(self, reason: str) -> None:
        """Note a reason to send no more rows; the first reason stays."""
        self.reason = self.reason or reason

    async def watch(self) -> None:
        """Ping every 5 s, until cancelled or until no broker answers."""
        while not self.lost:
            await asyncio.sleep(PING_INTERVAL_SECONDS)
            await self._ping()

    async def was_lost(self) -> bool:
        """Return whether no broker answered at some time, or none answers now."""
        async with self._pinging:
            now = asyncio.get_running_loop().time()
            if not self.lost and now - self._answered_at > FRESH_SECONDS:
                await self._ping()
        return self.lost

    async def _ping(self) -> None:
        pinged_at = asyncio.get_running_loop().time()
        try:
            await self._producer.ping()
        except KafkaUnavailable as error:
            self.give_up(str(error))
        else:
            self._answered_at = pinged_at
