"""Saving messages in batches: all that arrive during a commit share the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.store import NewMessage

MAX_BATCH = 200


class BatchInserter:
    """Inserts messages in shared transactions.

    In an outage of Kafka every event is saved here; one commit each would be limited by the disk.
    """

    def __init__(self, insert: Callable[[Sequence[NewMessage]], Awaitable[list[int]]]) -> None:
        """Use ``insert``, which inserts all or none in one transaction and returns the ids."""
        self._insert = insert
        self._waiting: deque[tuple[NewMessage, asyncio.Future[int]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def save(self, message: NewMessage) -> int:
        """Save a message; return its id once it is committed.

        Raises:
            DatabaseUnavailable: It was not saved.
        """
        saved: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, saved))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await saved

    async def _write(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            try:
                await self._insert_batch(batch)
            except BaseException as error:
                self._fail(batch, error)
                if not isinstance(error, Exception):
                    self._fail(list(self._waiting), error)
                    self._waiting.clear()
                    raise

    async def _insert_batch(self, batch: list[tuple[NewMessage, asyncio.Future[int]]]) -> None:
        try:
            ids = await self._insert([message for message, _ in batch])
        except DatabaseUnavailable as error:
            if len(batch) == 1 or not error.statement_refused:
                raise
            # The database refuses one of them: save the others without it.
            for one in batch:
                try:
                    await self._insert_batch([one])
                except DatabaseUnavailable as single_error:
                    self._fail([one], single_error)
            return
        for (_, saved), row_id in zip(batch, ids, strict=True):
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
