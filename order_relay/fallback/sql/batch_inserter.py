"""Saving many messages at once: those that come while a commit is under way share the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.store import NewMessage

MAX_TOGETHER = 200


class BatchInserter:
    """Collects messages into transactions.

    In an outage every publish ends here; a commit for each would wait for the disk each time.
    """

    def __init__(self, insert: Callable[[Sequence[NewMessage]], Awaitable[list[int]]]) -> None:
        """Write with ``insert``: all or none of them, in one transaction; it returns their ids."""
        self._insert = insert
        self._waiting: deque[tuple[NewMessage, asyncio.Future[int]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def save(self, message: NewMessage) -> int:
        """Return a message's id once it is committed.

        Raises:
            DatabaseUnavailable: It is not.
        """
        saved: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, saved))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await saved

    async def _write(self) -> None:
        while self._waiting:
            together = [
                self._waiting.popleft() for _ in range(min(MAX_TOGETHER, len(self._waiting)))
            ]
            try:
                await self._write_together(together)
            except BaseException as error:
                self._fail(together, error)
                if not isinstance(error, Exception):
                    self._fail(list(self._waiting), error)
                    self._waiting.clear()
                    raise

    async def _write_together(self, together: list[tuple[NewMessage, asyncio.Future[int]]]) -> None:
        try:
            ids = await self._insert([message for message, _ in together])
        except DatabaseUnavailable as error:
            if len(together) == 1 or not error.statement_refused:
                raise
            # One of them is at fault; the others shall not pay for it.
            for one in together:
                try:
                    await self._write_together([one])
                except DatabaseUnavailable as its_error:
                    self._fail([one], its_error)
            return
        for (_, saved), row_id in zip(together, ids, strict=True):
            if not saved.done():
                saved.set_result(row_id)

    @staticmethod
    def _fail(messages: list[tuple[NewMessage, asyncio.Future[int]]], error: BaseException) -> None:
        for _, saved in messages:
            if saved.done():
                continue
            if isinstance(error, Exception):
                saved.set_exception(error)
            else:
                saved.cancel()
