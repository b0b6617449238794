"""Publishing an event: in Kafka, or in the fallback table, or an error; never nowhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from order_relay.errors import (
    InvalidEvent,
    PublishFailed,
    PublishRefused,
    RecordTooLarge,
)
from order_relay.fallback.observer import PublishObserver, Unobserved
from order_relay.fallback.store import FallbackStore, NewMessage
from order_relay.kafka.producer import Acknowledged, RecordProducer
from order_relay.logs.log_line import LogLine
from order_relay.model.headers import Header
from order_relay.model.trace_context import trace_id
from order_relay.publishing.message import order_event

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """Kafka has the event: all in-sync replicas wrote it.

    ``offset`` is None where Kafka does not tell it; see ``Acknowledged``.
    """

    topic: str
    partition: int
    offset: int | None
    event_id: str


@dataclass(frozen=True, slots=True)
class Saved:
    """Kafka refused the event; it is committed to the fallback table.

    Attributes:
        row_id: Its row.
        event_id: The id it has there, and will have in Kafka.
        reason: Why Kafka refused.
    """

    row_id: int
    event_id: str
    reason: str


PublishResult: TypeAlias = Published | Saved


class Publisher:
    """Publishes ORDER_PAID events. Safe to use from many tasks of one loop.

    The producer and the store are the caller's: started before, stopped after ``close``.
    """

    def __init__(
        self,
        producer: RecordProducer,
        store: FallbackStore,
        topic: str,
        *,
        max_retry: int = 3,
        observer: PublishObserver | None = None,
        outage: Callable[[], str] = lambda: "",
    ) -> None:
        """Publish to ``topic``; saved rows get ``max_retry`` attempts.

        While ``outage`` gives a reason why Kafka is known to be away, events are saved at once
        instead of waiting for the producer's delivery time-out.
        """
        self._producer = producer
        self._store = store
        self._topic = topic
        self._max_retry = max_retry
        self._observer: PublishObserver = observer or Unobserved()
        self._running: set[asyncio.Task[PublishResult]] = set()
        # Those of them that wait for Kafka.
        self._sending: set[asyncio.Task[PublishResult]] = set()
        self._outage = outage
        self._closed = False

    @property
    def in_flight(self) -> int:
        """How many publishes have not ended."""
        return len(self._running)

    async def publish(
        self,
        event: Mapping[str, Any] | bytes,
        *,
        event_id: str | None = None,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
    ) -> PublishResult:
        """Publish one event, and wait until it is durable.

        A caller who is cancelled stops waiting; the event still ends in Kafka or in the table,
        or in an error in the log. ``close`` waits for such events.

        Args:
            event: The event, or its JSON as UTF-8, which is published byte for byte.
            event_id: Goes into the ``event-id`` header, so that repeats can be told; without it
                the one in ``headers``, or else a new one.
            key: The record's key; without it the order's id.
            headers: Further headers.

        Returns:
            ``Published`` or ``Saved``.

        Raises:
            InvalidEvent: It is no ORDER_PAID event; nothing was done.
            RecordTooLarge: It is over Kafka's limit; it is nowhere.
            PublishFailed: Kafka and the database both refused; it is nowhere.
        """
        try:
            checked = order_event(event, event_id=event_id, key=key, headers=headers)
        except InvalidEvent:
            self._observer.published("invalid")
            raise
        message = NewMessage(
            self._topic,
            checked.key,
            checked.payload,
            checked.headers,
            max_retry=self._max_retry,
        )
        task = asyncio.create_task(self._publish(message, checked.event_id))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # Nobody else will look at how it ends.
            task.add_done_callback(_log_unseen)
            raise

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Let publishes under way end; those that Kafka has not answered in time are saved.

        What comes after this is saved without asking Kafka.
        """
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        self._closed = True
        self.save_waiting()
        while self._running:
            await asyncio.wait(self._running)

    def save_waiting(self) -> None:
        """Save what waits for Kafka, without waiting longer.

        Only the wait ends: a record may still reach Kafka, and then is there twice, with one
        event id.
        """
        for task in self._sending:
            task.cancel()

    async def _publish(self, message: NewMessage, event_id: str) -> PublishResult:
        try:
            acknowledged = await self._send(message)
        except RecordTooLarge:
            self._observer.published("too_large")
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - saved, whatever it is
            # Cancelled by close, or because the loop itself is being taken down.
            return await self._save(message, event_id, error)
        self._observer.published("acknowledged")
        return Published(acknowledged.topic, acknowledged.partition, acknowledged.offset, event_id)

    async def _send(self, message: NewMessage) -> Acknowledged:
        if self._closed:
            raise PublishRefused(message.topic, "the publisher is closed")
        if reason := self._outage():
            raise PublishRefused(message.topic, reason)
        task = cast("asyncio.Task[PublishResult]", asyncio.current_task())
        self._sending.add(task)
        try:
            return await self._producer.send(
                message.topic, key=message.key, value=message.payload, headers=message.headers
            )
        finally:
            self._sending.discard(task)

    async def _save(self, message: NewMessage, event_id: str, kafka_error: BaseException) -> Saved:
        reason = self._outage() or _reason(kafka_error)
        kept = replace(message, error_message=reason)
        try:
            try:
                row_id = await self._store.save(kept)
            except asyncio.CancelledError:
                # The loop is being taken down. Rather saved twice than not at all.
                row_id = await self._store.save(kept)
        except Exception as error:  # noqa: BLE001 - and told to the caller
            self._observer.published("failed")
            raise PublishFailed(event_id, kafka_error, error) from kafka_error
        self._observer.published("saved")
        logger.warning(
            LogLine(
                "Saved fallback message",
                id=row_id,
                topic=message.topic,
                event_id=event_id,
                reason=reason,
                trace_id=trace_id(message.headers),
            )
        )
        return Saved(row_id, event_id, reason)


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "stopped before Kafka answered"
    return str(error)


def _log_unseen(task: asyncio.Task[PublishResult]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("An event whose sender had left was lost: %s", error)
