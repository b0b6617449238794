"""Publishing events when the order's transaction has committed, and never when it rolls back.

What Spring's ``@TransactionalEventListener`` does. A process that dies between the commit and the
publish loses the event: where that must not happen, use ``order_relay.publishing.outbox``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from order_relay.logs.log_line import LogLine
from order_relay.model.headers import Header
from order_relay.model.trace_context import trace_id
from order_relay.publishing.commit_hook import AnySession, when_committed
from order_relay.publishing.message import OrderEvent, order_event
from order_relay.publishing.publisher import Publisher, PublishResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NotCommitted:
    """The transaction was rolled back: there is no order, and so no event."""


AfterCommitResult: TypeAlias = PublishResult | NotCommitted


class PendingPublish:
    """An event that waits for its transaction. It need not be looked at.

    ``await`` it in the loop, or call ``result`` in another thread.

    Attributes:
        event_id: The event's id.
    """

    def __init__(self, event_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.event_id = event_id
        self._loop = loop
        self._future: concurrent.futures.Future[AfterCommitResult] = concurrent.futures.Future()

    def done(self) -> bool:
        """Whether it is known what became of the event."""
        return self._future.done()

    def result(self, timeout_seconds: float | None = None) -> AfterCommitResult:
        """Wait until it is known what became of the event, in a thread without the loop.

        Raises:
            TimeoutError: It is not known yet.
            RecordTooLarge: See ``Publisher.publish``.
            PublishFailed: See ``Publisher.publish``.
            RuntimeError: The loop has ended; or this is its thread, which must not wait.
        """
        if not self.done() and _running_loop() is self._loop:
            raise RuntimeError("in the event loop's thread, await it")
        return self._future.result(timeout_seconds)

    def __await__(self) -> Generator[Any, None, AfterCommitResult]:
        # Who stops waiting takes nothing back.
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()

    def settle(self, outcome: AfterCommitResult | Exception) -> None:
        """Say what became of the event; only the first word counts."""
        if self.done():
            return
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


class AfterCommit:
    """Publishes events of sessions after their commit.

    Made in the publisher's loop. ``publish`` may be called from any thread.
    """

    def __init__(self, publisher: Publisher) -> None:
        """Publish through ``publisher``, which is the caller's: close it after this."""
        self._publisher = publisher
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def publish(
        self,
        session: AnySession,
        event: Mapping[str, Any] | bytes,
        *,
        event_id: str | None = None,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> PendingPublish:
        """Publish an event when the session's current transaction has committed.

        The commit does not wait for Kafka. Events go to Kafka in the order in which they were
        given, transactions in the order of their commits. An event that can neither be published
        nor saved then is an error in the log.

        Args:
            session: A ``Session`` or ``AsyncSession``; a transaction is begun if none is.
            event: See ``Publisher.publish``; later changes to it do not count.
            event_id: See ``Publisher.publish``.
            key: See ``Publisher.publish``.
            headers: See ``Publisher.publish``.

        Returns:
            What becomes of it, to wait for after the commit.

        Raises:
            InvalidEvent: It is no ORDER_PAID event; now, while the order can be rolled back.
        """
        checked = order_event(event, event_id=event_id, key=key, headers=headers)
        pending = PendingPublish(checked.event_id, self._loop)
        when_committed(
            session,
            committed=lambda: self._committed(checked, pending),
            dropped=lambda: pending.settle(NotCommitted()),
        )
        return pending

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Let events of committed transactions end; what has not by then is the publisher's.

        Then close the publisher, which saves what Kafka has not acknowledged.
        """
        await asyncio.sleep(0)  # commits of other threads come in
        if self._tasks:
            # Each of them is with the publisher when this returns, however short the grace.
            await asyncio.wait(self._tasks, timeout=grace_seconds)

    def _committed(self, event: OrderEvent, pending: PendingPublish) -> None:
        if _running_loop() is self._loop:
            self._begin(event, pending)
            return
        try:
            self._loop.call_soon_threadsafe(self._begin, event, pending)
        except RuntimeError as error:
            self._lost(event, pending, error)

    def _begin(self, event: OrderEvent, pending: PendingPublish) -> None:
        task = self._loop.create_task(self._publish(event, pending))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, event: OrderEvent, pending: PendingPublish) -> None:
        try:
            outcome = await self._publisher.publish(
                event.payload, event_id=event.event_id, key=event.key, headers=event.headers
            )
        except asyncio.CancelledError:
            pending.settle(RuntimeError("the event loop has ended"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the event is lost
            self._lost(event, pending, error)
        else:
            pending.settle(outcome)

    @staticmethod
    def _lost(event: OrderEvent, pending: PendingPublish, error: Exception) -> None:
        logger.error(
            LogLine(
                "Event of a committed order was lost",
                event_id=event.event_id,
                key=event.key.decode("utf-8", "replace"),
                reason=str(error),
                trace_id=trace_id(event.headers),
            )
        )
        pending.settle(error)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
