"""The outbox: the event's row is written in the order's own transaction.

Both are committed or neither is. Replay publishes the row: right after the commit if it runs in
this process, else within a minute. A crash in between loses nothing; at worst the event is
published twice, with the same event id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy import orm

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.sql.schema import fallback_message, insert_values
from order_relay.fallback.sweep import Sweep
from order_relay.model.headers import Header
from order_relay.publishing.commit_hook import AnySession, sync_session, when_committed
from order_relay.publishing.message import order_event

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

logger = logging.getLogger(__name__)

# Committed rows that wait to be published at once; the next sweep publishes the others.
MAX_WAITING = 10_000


class OutboxRow:
    """A row of ``kafka_fallback_message`` as a session writes it."""

    id: int

    def __init__(self, **columns: Any) -> None:
        """Set columns by name."""
        for name, value in columns.items():
            setattr(self, name, value)


# Defaults that the database fills in are not fetched: nothing here reads them.
orm.registry().map_imperatively(OutboxRow, fallback_message, eager_defaults=False)


class RowPublisher(Protocol):
    """The part of ``Replay`` that the outbox needs."""

    async def publish_rows(self, ids: Collection[int]) -> Sweep:
        """See ``Replay.publish_rows``."""


class Outbox:
    """Writes events into the order service's own database, in the order's transaction.

    With a ``replay``, create it in that replay's loop. ``add`` may be called from any thread.
    """

    def __init__(
        self,
        topic: str,
        *,
        replay: RowPublisher | None = None,
        max_retry: int = 3,
        tracing: Tracing | None = None,
    ) -> None:
        """Write rows for ``topic``.

        Args:
            topic: The topic of the events.
            replay: Publishes rows right after their commit; it must read the database that the
                sessions write to. None: a replay elsewhere publishes them.
            max_retry: Refusals by Kafka after which a row is FAILED.
            tracing: Continues the caller's current trace; None: only that of ``headers``.
        """
        self._topic = topic
        self._replay = replay
        self._max_retry = max_retry
        self._tracing = tracing
        self._loop = asyncio.get_running_loop() if replay is not None else None
        self._waiting: list[int] = []
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    def add(
        self,
        session: AnySession,
        event: Mapping[str, Any] | bytes,
        *,
        event_id: str | None = None,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> str:
        """Add the event's row to the session; its flush or commit writes it.

        Args:
            session: A ``Session`` or ``AsyncSession`` on the database with the table.
            event: See ``Publisher.publish``; later changes to it have no effect.
            event_id: See ``Publisher.publish``.
            key: See ``Publisher.publish``.
            headers: See ``Publisher.publish``.

        Returns:
            The event's id.

        Raises:
            InvalidEvent: It is not an ORDER_PAID event; nothing was added.
        """
        if self._tracing is not None:
            headers = self._tracing.with_caller_context(headers)
        checked = order_event(event, event_id=event_id, key=key, headers=headers)
        row = OutboxRow(**insert_values(checked.row(self._topic, self._max_retry)))
        if self._replay is not None:
            when_committed(session, committed=lambda: self._committed(row))
        sync_session(session).add(row)
        return checked.event_id

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Publish the rows committed so far, for ``grace_seconds`` at most, and no more after that.

        Rows that are left stay PENDING, for a replay.
        """
        await asyncio.sleep(0)  # lets callbacks of commits in other threads run
        self._closed = True
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=grace_seconds)
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    def _committed(self, row: OutboxRow) -> None:
        # Not row.id: after a commit that would query the database again.
        identity = sa.inspect(row, raiseerr=True).identity
        if identity is None or self._loop is None:  # the row was removed from the session
            return
        try:
            self._loop.call_soon_threadsafe(self._ready, identity[0])
        except RuntimeError:
            logger.warning("The event loop has ended: outbox rows wait for replay")

    def _ready(self, row_id: int) -> None:
        if self._closed or len(self._waiting) >= MAX_WAITING:
            return
        self._waiting.append(row_id)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        """Publish committed rows; those that arrive meanwhile share the next call."""
        assert self._replay is not None  # noqa: S101 - _ready is called only with a replay
        while self._waiting:
            ids, self._waiting = self._waiting, []
            try:
                await self._replay.publish_rows(ids)
            except DatabaseUnavailable as error:
                logger.warning("Outbox rows wait for replay count=%d: %s", len(ids), error)
            except Exception:
                logger.exception("Outbox failed with an unexpected error, its rows wait for replay")
