"""Publishing an event to Kafka, else into the fallback table, else with an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from order_relay.errors import (
    InvalidEvent,
    KafkaUnavailable,
    PublishFailed,
    PublishRefused,
    RecordTooLarge,
)
from order_relay.fallback.store import NewMessage
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import Acknowledged, KafkaProducer
from order_relay.logs.log_line import LogLine
from order_relay.model.headers import Header
from order_relay.model.trace_context import trace_id
from order_relay.publishing.message import order_event

if TYPE_CHECKING:
    from order_relay.tracing.spans import SentSpan, Tracing

logger = logging.getLogger(__name__)

PING_INTERVAL_SECONDS = 2.0
# A broker answers the requests of a connection one after another. A record whose replica has died
# waits until the controller removes the replica: 9 s, and longer if that was the controller itself.
# Two pings behind such a record must not turn one broker's failure into an outage.
PING_TIMEOUT_SECONDS = 6.0
# So many unanswered pings in a row make an outage.
PINGS_UNTIL_OUTAGE = 2
SENDER_LEFT = "An event whose sender had left was lost: %s"


@dataclass(frozen=True, slots=True)
class Published:
    """All in-sync replicas of Kafka have written the event.

    ``offset`` is None if Kafka does not report it; see ``Acknowledged``.
    """

    topic: str
    partition: int
    offset: int | None
    event_id: str


@dataclass(frozen=True, slots=True)
class Saved:
    """Kafka refused the event; it is committed to the fallback table.

    Attributes:
        row_id: The id of its row.
        event_id: The event's id, there and later in Kafka.
        reason: Why Kafka refused.
    """

    row_id: int
    event_id: str
    reason: str


PublishResult: TypeAlias = Published | Saved


class Publisher:
    """Publishes ORDER_PAID events. Safe to use from many tasks of one loop: that of the producer.

    The caller starts the producer and the store before, and stops them after ``close``. With
    ``watch`` running, events of an outage are saved at once instead of after the producer's
    delivery time-out.

    Attributes:
        outage: Why Kafka counts as unreachable; empty while it answers and before the first ping.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        store: FallbackTable,
        topic: str,
        *,
        max_retry: int = 3,
        on_result: Callable[[str], None] = lambda _: None,
        tracing: Tracing | None = None,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            producer: Sends to Kafka.
            store: Saves what Kafka refuses.
            topic: The topic to publish to.
            max_retry: Refusals by Kafka after which a saved row is FAILED.
            on_result: Called with each publish's result: ``acknowledged``, ``saved``, ``invalid``,
                ``too_large`` or ``failed``. Must neither block nor raise.
            tracing: Makes a span of each publish, which is the event's parent; ``None``: none.
        """
        self._producer = producer
        self._store = store
        self._topic = topic
        self._max_retry = max_retry
        self._on_result = on_result
        self._running: set[asyncio.Task[PublishResult]] = set()
        self._sending: set[asyncio.Task[PublishResult]] = set()  # those that wait for Kafka
        self._ping_now = asyncio.Event()
        self._tracing = tracing
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # made before its loop runs
            self._loop = asyncio.get_running_loop()
        self.outage = ""

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
        save_because: str | None = None,
    ) -> PublishResult:
        """Publish one event, and wait until it is durable.

        Cancelling the call ends only the wait: the event still reaches Kafka or the table, or an
        error is logged. ``close`` waits for such events.

        Args:
            event: The event, or its JSON as UTF-8, which is published byte for byte.
            event_id: The value of the ``event-id`` header, by which duplicates are recognized;
                by default the one in ``headers``, else a new one.
            key: The record's key; by default the order's id.
            headers: Further headers.
            save_because: Why the event is saved without asking Kafka; None: Kafka is asked.

        Returns:
            ``Published`` or ``Saved``.

        Raises:
            InvalidEvent: It is not an ORDER_PAID event; nothing was done.
            RecordTooLarge: It exceeds Kafka's limit and was not saved either.
            PublishFailed: Kafka and the database both refused, or did not answer. The event may
                arrive all the same: publish it again with the same ``event_id``.
            RuntimeError: This is not the loop that the publisher was made in.
        """
        if self._loop not in (None, asyncio.get_running_loop()):
            raise RuntimeError(
                "the publisher belongs to another event loop: elsewhere use after_commit or outbox"
            )
        try:
            checked = order_event(event, event_id=event_id, key=key, headers=headers)
        except InvalidEvent:
            self._on_result("invalid")
            raise
        row = checked.row(self._topic, self._max_retry)
        message = replace(row, error_message=save_because)
        task = asyncio.create_task(self._publish(message, checked.event_id))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_error)  # the caller does not see it any more
            raise

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Wait for publishes in flight; save those that Kafka has not answered in time.

        Events published after this are saved without asking Kafka, and not waited for.
        """
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        self._closed = True
        self.save_waiting()
        if self._running:
            await asyncio.wait(self._running)

    def save_waiting(self) -> None:
        """Save the events that wait for Kafka's answer now.

        Kafka may still write them, so that they are in the topic twice, with one event id.
        """
        for task in self._sending:
            task.cancel()

    async def check_kafka(self) -> None:
        """Ping once; if no broker answers, begin as in an outage."""
        try:
            await self._producer.ping()
        except KafkaUnavailable as error:
            self.outage = str(error)

    async def watch(self) -> None:
        """Ping the brokers until cancelled, and save what waits for Kafka when an outage begins."""
        unanswered = 0
        while True:
            self._ping_now.clear()
            try:
                await self._producer.ping(PING_TIMEOUT_SECONDS)
            except KafkaUnavailable as error:
                unanswered += 1
                if unanswered >= PINGS_UNTIL_OUTAGE:
                    begins, self.outage = not self.outage, str(error)
                    if begins:
                        self.save_waiting()
            except Exception:  # any other error says nothing about the brokers
                logger.exception("Kafka could not be asked")
            else:
                unanswered = 0
                self.outage = ""
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ping_now.wait(), PING_INTERVAL_SECONDS)

    def ping_now(self) -> None:
        """Let ``watch`` ping at once, as after the start of the producer."""
        self._ping_now.set()

    async def _publish(self, message: NewMessage, event_id: str) -> PublishResult:
        if self._tracing is None:
            return await self._send_or_save(message, event_id)
        with self._tracing.sending(
            "publish", message.topic, message.headers, by_caller=True
        ) as span:
            traced = replace(message, headers=span.headers)
            result = await self._send_or_save(traced, event_id, span)
            if isinstance(result, Saved):
                span.of_row(result.row_id)
            return result

    async def _send_or_save(
        self, message: NewMessage, event_id: str, span: SentSpan | None = None
    ) -> PublishResult:
        try:
            acknowledged = await self._send(message)
        except RecordTooLarge:
            self._on_result("too_large")
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - saved after any error
            # Cancelled by save_waiting, or because the loop ends.
            return await self._save(message, event_id, error)
        self._on_result("acknowledged")
        if span is not None:
            span.acknowledged(acknowledged)
        return Published(acknowledged.topic, acknowledged.partition, acknowledged.offset, event_id)

    async def _send(self, message: NewMessage) -> Acknowledged:
        if self._closed:
            raise PublishRefused(message.topic, "the publisher is closed")
        if reason := self.outage or message.error_message:
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
        stopped = isinstance(kafka_error, asyncio.CancelledError)
        reason = (
            self.outage
            or message.error_message
            or ("stopped before Kafka answered" if stopped else str(kafka_error))
        )
        saved = replace(message, error_message=reason)
        try:
            try:
                row_id = await self._store.save(saved)
            except asyncio.CancelledError:
                # The loop ends. Saved twice is better than not saved.
                row_id = await self._store.save(saved)
        except Exception as error:  # noqa: BLE001 - the caller gets it
            self._on_result("failed")
            # A cancellation has no text.
            refusal = PublishRefused(message.topic, reason) if stopped else kafka_error
            raise PublishFailed(event_id, refusal, error) from kafka_error
        self._on_result("saved")
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


def _log_error(task: asyncio.Task[PublishResult]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error(SENDER_LEFT, error)
