"""Publishing events after the order's transaction has committed, and not if it rolls back.

Like Spring's ``@TransactionalEventListener``. A process that dies between the commit and the
publish loses the event. ``order_relay.publishing.outbox`` avoids that.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from order_relay.logs.log_line import LogLine
from order_relay.model.headers import Header
from order_relay.model.trace_context import trace_id
from order_relay.publishing.commit_hook import AnySession, when_committed
from order_relay.publishing.message import OrderEvent, order_event
from order_relay.publishing.publisher import Publisher, PublishResult

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NotCommitted:
    """The transaction was rolled back, so the event was not published."""


AfterCommitResult: TypeAlias = PublishResult | NotCommitted


class PendingPublish:
    """The future result of ``AfterCommit.publish``; the caller may ignore it.

    ``await`` it in the loop, or call ``result`` in another thread.

    Attributes:
        event_id: The event's id.
    """

    def __init__(self, event_id: str, loop_thread: int) -> None:
        self.event_id = event_id
        self._loop_thread = loop_thread
        self._future: concurrent.futures.Future[AfterCommitResult] = concurrent.futures.Future()

    def done(self) -> bool:
        """Whether there is a result."""
        return self._future.done()

    def result(self, timeout_seconds: float | None = None) -> AfterCommitResult:
        """Wait for the result, in another thread than the loop's.

        Args:
            timeout_seconds: How long to wait; None: no limit.

        Raises:
            TimeoutError: There is no result yet.
            RecordTooLarge: See ``Publisher.publish``.
            PublishFailed: See ``Publisher.publish``.
            RuntimeError: The loop has ended; or this is the loop's thread, which must not wait.
        """
        if not self.done() and threading.get_ident() == self._loop_thread:
            raise RuntimeError("in the event loop's thread, await it")
        return self._future.result(timeout_seconds)

    def __await__(self) -> Generator[Any, None, AfterCommitResult]:
        # Shielded: cancelling the wait must not cancel the publish.
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()

    def settle(self, outcome: AfterCommitResult | Exception) -> None:
        """Set the result, unless there is one."""
        if self.done():
            return
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


class AfterCommit:
    """Publishes events after the commit of their session.

    Create it in the publisher's loop. ``publish`` may be called from any thread of that process.
    """

    def __init__(self, publisher: Publisher, *, tracing: Tracing | None = None) -> None:
        """Publish through ``publisher``; the caller closes it after this.

        ``tracing`` continues the caller's current trace; without it only that of ``headers``.
        """
        self._publisher = publisher
        self._tracing = tracing
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = threading.Lock()
        self._ended = False

    def publish(
        self,
        session: AnySession,
        event: Mapping[str, Any] | bytes,
        *,
        event_id: str | None = None,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> PendingPublish:
        """Publish an event after the session's current transaction has committed.

        The commit does not wait for Kafka. Transactions go to Kafka in the order of their commits,
        and their events in the order of these calls. If an event can be neither published nor saved
        then, an error is logged.

        The session is a ``Session`` or ``AsyncSession``; a transaction is begun if there is none.
        For the other arguments see ``Publisher.publish``. Later changes to the event have no
        effect.

        Returns:
            The future result; wait for it only after the commit.

        Raises:
            InvalidEvent: It is not an ORDER_PAID event. The order can still be rolled back.
            RuntimeError: This process is a fork, which does not have the publisher's loop.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a fork cannot publish: open the order events after the fork")
        if self._tracing is not None:
            headers = self._tracing.with_caller_context(headers)
        checked = order_event(event, event_id=event_id, key=key, headers=headers)
        pending = PendingPublish(checked.event_id, self._thread)
        when_committed(
            session,
            committed=lambda: self._committed(checked, pending),
            dropped=lambda: pending.settle(NotCommitted()),
        )
        return pending

    async def close(self, grace_seconds: float | None = 5.0) -> None:
        """Wait for the events of committed transactions, ``grace_seconds`` at most; None: no limit.

        Then close the publisher, which saves the events that Kafka has not acknowledged.
        """
        await asyncio.sleep(0)  # lets callbacks of commits in other threads run
        if self._tasks:
            # This also starts each of them, so that the publisher has its event.
            await asyncio.wait(self._tasks, timeout=grace_seconds)

    async def end(self) -> None:
        """Wait for the events of all transactions that have committed.

        To be called before the loop ends. An event whose transaction commits later is lost, and
        logged.
        """
        with self._ending:
            self._ended = True
        await self.close(None)

    def _committed(self, event: OrderEvent, pending: PendingPublish) -> None:
        error = RuntimeError("the event loop has ended")
        with self._ending:
            if not self._ended:
                try:
                    self._loop.call_soon_threadsafe(self._begin, event, pending)
                    return
                except RuntimeError as closed:
                    error = closed
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
        except Exception as error:  # noqa: BLE001 - after any error the event is lost
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
