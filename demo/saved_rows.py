"""Keeps the ledger's figure of events that wait in the shop's database true."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

from demo.ledger import Ledger
from demo.shop_database import Waiting
from order_relay.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

EVERY_SECONDS = 0.5
# Every event is a row for a moment; one is saved when publishing it at once has failed.
SAVED_AFTER_SECONDS = 1.0


class Table(Protocol):
    """The part of ``ShopDatabase`` that this needs."""

    async def waiting(self, *, for_seconds: float = 0.0) -> Waiting:
        """See ``ShopDatabase.waiting``."""

    async def orders(self) -> list[str]:
        """See ``ShopDatabase.orders``."""


class SavedRows:
    """Reads the table itself, as an async context manager; the ledger need not believe the worker.

    Attributes:
        pending: Saved rows that replay will take up by itself; those that failed wait for a person.
    """

    def __init__(self, table: Table, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self.pending = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def finish(self) -> None:
        """Take every order and every waiting row into the ledger, and look no more."""
        await self._end()
        try:
            for event_id in await self._table.orders():
                self._ledger.paid(event_id)
        except DatabaseUnavailable:
            # The ledger will not close, or has heard of all of them already.
            logger.exception("The orders in the shop's database were not counted")
        await self._look(0.0)

    async def _look_on(self) -> None:
        while not self._closing.is_set():
            await self._look(SAVED_AFTER_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), EVERY_SECONDS)

    async def _look(self, for_seconds: float) -> None:
        try:
            waiting = await self._table.waiting(for_seconds=for_seconds)
        except DatabaseUnavailable as error:
            logger.warning("The waiting rows in the shop's database were not counted: %s", error)
            return
        self.pending = waiting.pending
        self._ledger.saved_for_replay(waiting.event_ids)

    async def _end(self) -> None:
        # Not cancelled: a connection that is in use is better given back than thrown away.
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task])
