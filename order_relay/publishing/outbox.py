"""The outbox: the event's row is written in the order's own transaction.

Both are committed or neither is. Replay publishes the row: right after the commit if it runs in
this process, else within a minute. A crash in between loses nothing; at worst the event is
published twice, with the same event id.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import orm

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.replay import Replay
from order_relay.fallback.sql.schema import fallback_message, insert_values
from order_relay.fallback.sweep import cancel_tasks
from order_relay.model.headers import Header
from order_relay.publishing.commit_hook import AnySession, sync_session, when_committed
from order_relay.publishing.message import order_event

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

logger = logging.getLogger(__name__)


@orm.registry().mapped
class OutboxRow:
    """A row of ``kafka_fallback_message`` as a session writes it."""

    __table__ = fallback_message
    # Defaults that the database fills in are not fetched: nothing here reads them.
    __mapper_args__: ClassVar = {"eager_defaults": False}


class Outbox:
    """Writes events into the order service's own database, in the order's transaction.

    With a ``replay``, create it in that replay's loop. ``add`` may be called from any thread.
    """

    def __init__(
        self,
        topic: str,
        *,
        replay: Replay | None = None,
        max_retry: int = 3,
        tracing: Tracing | None = None,
    ) -> None:
        """Write rows for ``topic``.

        Args:
            topic: The topic of the events.
            replay: Sweeps right after a commit; it must read the database that the sessions write
                to. None: a replay elsewhere publishes the rows.
            max_retry: Refusals by Kafka after which a row is FAILED.
            tracing: Continues the caller's current trace; None: only that of ``headers``.
        """
        self._topic = topic
        self._replay = replay
        self._max_retry = max_retry
        self._tracing = tracing
        self._loop = asyncio.get_running_loop() if replay is not None else None
        self._process = os.getpid()
        self._committed_since = False  # since the last sweep began
        self._sweeping: asyncio.Task[None] | None = None
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

        The session is a ``Session`` or ``AsyncSession`` on the database with the table. For the
        other arguments see ``Publisher.publish``; later changes to the event have no effect.

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
            when_committed(session, committed=self._committed)
        sync_session(session).add(row)
        return checked.event_id

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Publish the rows committed so far, for ``grace_seconds`` at most, and no more after that.

        Rows that are left stay PENDING, for a replay.
        """
        await asyncio.sleep(0)  # lets callbacks of commits in other threads run
        self._closed = True
        if self._sweeping is not None:
            await asyncio.wait([self._sweeping], timeout=grace_seconds)
            await cancel_tasks(self._sweeping)

    def _committed(self) -> None:
        assert self._loop is not None  # noqa: S101 - called only with a replay
        if os.getpid() != self._process:
            return  # a fork has no loop: the rows wait for the next replay
        try:
            self._loop.call_soon_threadsafe(self._sweep_soon)
        except RuntimeError:
            logger.warning("The event loop has ended: outbox rows wait for replay")

    def _sweep_soon(self) -> None:
        self._committed_since = not self._closed
        if not self._closed and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Sweep until nothing was committed during the last sweep."""
        assert self._replay is not None  # noqa: S101 - called only with a replay
        while self._committed_since:
            self._committed_since = False
            try:
                await self._replay.run_once()
            except DatabaseUnavailable as error:
                logger.warning("Outbox rows wait for replay: %s", error)
            except Exception:
                logger.exception("Outbox failed with an unexpected error, its rows wait for replay")
