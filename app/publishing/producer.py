"""An asyncio face for librdkafka's idempotent producer.

librdkafka has every producer setting of the design by name, and idempotence that survives
broker failovers; Faust's own producer has it only inside transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from app.access_tokens import access_tokens
from app.errors import AccessTokenUnavailable, KafkaUnavailable, PublishRefused, RecordTooLarge
from app.publishing.client_config import client_config
from app.settings import Settings

logger = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes | None]]

# Above any broker's usual limit, so that the broker and its topics decide what is too large.
MAX_MESSAGE_BYTES = 100_000_000
# How long stop() may have to wait for the thread that reports what became of records.
POLL_SECONDS = 0.5
# Between two tries to make a client.
BEGIN_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record is in Kafka: written by all in-sync replicas.

    Attributes:
        topic: Its topic.
        partition: Its partition.
        offset: Its offset; None where an earlier attempt, whose answer was lost, had written it:
            then Kafka only says that it is there (DUPLICATE_SEQUENCE_NUMBER).
    """

    topic: str
    partition: int
    offset: int | None


Outcome = Acknowledged | RecordTooLarge | PublishRefused


def producer_config(settings: Settings) -> dict[str, Any]:
    """Return the producer's settings: acks=all, idempotence, and the bounds of the design."""
    return client_config(settings) | {
        "acks": "all",
        "enable.idempotence": True,
        "retries": settings.producer_retries,
        "retry.backoff.ms": settings.producer_retry_backoff_ms,
        "retry.backoff.max.ms": max(1000, settings.producer_retry_backoff_ms),
        "request.timeout.ms": settings.producer_request_timeout_ms,
        "delivery.timeout.ms": settings.producer_delivery_timeout_ms,
        "max.in.flight.requests.per.connection": settings.producer_max_in_flight,
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "linger.ms": 5,
        # Warnings and up: connections that end are no news, and they end in rows while a broker
        # refuses us.
        "log_level": 5,
        # The same hash as the Java clients, so that a key lands where Java would put it.
        "partitioner": "murmur2_random",
    }


class KafkaProducer:
    """Publishes records and waits for Kafka's acknowledgement.

    ``start`` and ``stop`` may each be called once. ``send`` may be called from many tasks of the
    loop that called ``start``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._poller: threading.Thread | None = None
        self._stopping = threading.Event()
        self._missing = "the producer is not running"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settled: deque[tuple[Callable[[Outcome], None], Outcome]] = deque()
        self._settling = False

    async def start(self) -> None:
        """Start the client. It needs no broker yet: it connects in the background, for ever.

        Nor does it need an access token yet, where Kafka wants one: it asks for one until it gets
        it, and until then is as if no broker answered.
        """
        self._loop = asyncio.get_running_loop()
        if self._settings.uses_access_tokens:
            await asyncio.to_thread(self._try_to_begin)
            if self._producer is None:
                logger.warning("No record is published yet: %s; trying on", self._missing)
        else:
            self._begin()
        self._poller = threading.Thread(target=self._poll, name="kafka-producer", daemon=True)
        self._poller.start()

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        """Give records on their way ``timeout_seconds`` to be acknowledged, then let go."""
        loop = asyncio.get_running_loop()
        producer = self._producer
        if producer is None:
            self._stopping.set()
            return
        with contextlib.suppress(KafkaException):  # failed for good: the poller settles the rest
            left = await loop.run_in_executor(None, producer.flush, timeout_seconds)
            if left:
                # Each of them still ends: its send() raises PublishRefused.
                producer.purge(in_queue=True, in_flight=True, blocking=False)
                await loop.run_in_executor(None, producer.flush, 1.0)
        self._stopping.set()
        if self._poller is not None:
            await loop.run_in_executor(None, self._poller.join, 2.0)
        self._producer = None

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> Acknowledged:
        """Publish one record and wait until all in-sync replicas have it.

        Cancelling the wait does not take the record back: it may still reach Kafka.

        Returns:
            Where the record is.

        Raises:
            RecordTooLarge: The broker or the topic does not take records of this size.
            PublishRefused: Kafka did not acknowledge the record within the delivery time-out.
        """
        acknowledged: asyncio.Future[Acknowledged] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome) -> None:
            if acknowledged.done():  # the caller no longer waits
                return
            if isinstance(outcome, Acknowledged):
                acknowledged.set_result(outcome)
            else:
                acknowledged.set_exception(outcome)

        self.enqueue(
            topic,
            settle,
            key=key,
            value=value,
            headers=headers,
            partition=partition,
            timestamp_ms=timestamp_ms,
        )
        return await acknowledged

    def enqueue(
        self,
        topic: str,
        on_settled: Callable[[Outcome], None],
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Publish one record without waiting; returns at once.

        Args:
            topic: Where to.
            on_settled: Called in the loop of ``start``, exactly once, with where the record is or
                with the error that ``send`` would raise. Must not raise.
            key: The record's key.
            value: The record's value.
            headers: The record's headers.
            partition: ``None``: by the key.
            timestamp_ms: ``None``: now.

        Raises:
            RecordTooLarge: The client itself does not take records of this size.
            PublishRefused: The client takes no records now; ``on_settled`` is not called.
        """
        producer = self._producer  # the poller's thread may replace it at any moment
        if producer is None:
            raise PublishRefused(topic, self._missing)

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            self._settle_in_loop(on_settled, _outcome(topic, key, value, error, message))

        options: dict[str, Any] = {"headers": list(headers), "on_delivery": on_delivery}
        if partition is not None:
            options["partition"] = partition
        if timestamp_ms is not None:
            options["timestamp"] = timestamp_ms
        try:
            producer.produce(topic, value=value, key=key, **options)
        except BufferError as error:
            raise PublishRefused(topic, "the producer's queue is full", "_QUEUE_FULL") from error
        except KafkaException as error:
            kafka_error = error.args[0]
            if kafka_error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise RecordTooLarge(topic, _size(key, value)) from error
            raise PublishRefused(topic, str(kafka_error), kafka_error.name()) from error

    def _settle_in_loop(self, on_settled: Callable[[Outcome], None], outcome: Outcome) -> None:
        # From the client's thread. One wake-up of the loop serves all that come before it.
        self._settled.append((on_settled, outcome))
        if not self._settling and self._loop is not None:
            self._settling = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._settling = False  # first: what is appended from now on wakes the loop again
        while self._settled:
            on_settled, outcome = self._settled.popleft()
            on_settled(outcome)

    async def partition_count(self, topic: str, timeout_seconds: float = 5.0) -> int:
        """Ask Kafka how many partitions ``topic`` has; 0 when it does not exist.

        Raises:
            KafkaUnavailable: No broker answered in time.
        """
        metadata = await self._metadata(topic, timeout_seconds)
        found = metadata.topics.get(topic)
        return 0 if found is None or found.error is not None else len(found.partitions)

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        """Return when a broker answered.

        Raises:
            KafkaUnavailable: None did in time.
        """
        # Of one topic: a large cluster's whole metadata is no small question.
        await self._metadata(self._settings.order_paid_topic, timeout_seconds)

    async def _metadata(self, topic: str, timeout_seconds: float) -> Any:
        producer = self._producer
        if producer is None:
            raise KafkaUnavailable(self._settings.kafka_bootstrap_servers, self._missing)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(None, producer.list_topics, topic, timeout_seconds)
        except KafkaException as error:
            raise KafkaUnavailable(
                self._settings.kafka_bootstrap_servers, error.args[0].str()
            ) from error

    def _begin(self) -> None:
        self._producer = Producer(producer_config(self._settings), logger=logger)

    def _try_to_begin(self) -> None:
        """Make the client if there is an access token: it would wait for one, and say nothing."""
        try:
            if self._settings.uses_access_tokens:
                access_tokens(self._settings).current()
            self._begin()
        except (AccessTokenUnavailable, KafkaException) as error:
            self._missing = str(error)

    def _poll(self) -> None:
        while not self._stopping.is_set():
            producer = self._producer
            if producer is None:
                if not self._stopping.wait(BEGIN_AGAIN_SECONDS):
                    self._try_to_begin()
                continue
            try:
                producer.poll(POLL_SECONDS)  # returns as soon as there is something to report
            except KafkaException as error:
                self._give_up(producer, error.args[0])

    def _give_up(self, producer: Producer, error: KafkaError) -> None:
        """Let go of a client that failed for good; another one is made soon.

        librdkafka ends an idempotent producer where it can promise no longer that nothing is lost
        or written twice. What it had not settled is settled as refused.
        """
        self._missing = f"Kafka's client failed for good: {error.str()}"
        self._producer = None  # until there is another, it is as if no broker answered
        logger.error("Kafka producer failed for good, starting another: %s", error.str())
        with contextlib.suppress(KafkaException):  # the same error, once more
            producer.purge(in_queue=True, in_flight=True, blocking=False)
            producer.flush(1.0)


def _outcome(
    topic: str,
    key: bytes | None,
    value: bytes | None,
    error: KafkaError | None,
    message: Message,
) -> Outcome:
    if error is None:
        return Acknowledged(topic, message.partition() or 0, message.offset())
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return RecordTooLarge(topic, _size(key, value))
    return PublishRefused(topic, error.str(), error.name())


def _size(key: bytes | None, value: bytes | None) -> int:
    return len(key or b"") + len(value or b"")
