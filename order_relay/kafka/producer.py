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
from functools import partial
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from order_relay.errors import (
    AccessTokenUnavailable,
    KafkaUnavailable,
    PublishRefused,
    RecordTooLarge,
)
from order_relay.kafka.access_tokens import access_tokens
from order_relay.kafka.client_config import client_config
from order_relay.model.headers import Headers, name_problem
from order_relay.settings import Settings

logger = logging.getLogger(__name__)


# Above any broker's usual limit, so that the broker and its topics decide what is too large.
MAX_MESSAGE_BYTES = 100_000_000
MAX_PARTITION = 2**31 - 1
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


Refusal = RecordTooLarge | PublishRefused
SendResult = Acknowledged | Refusal
# Of a record: its key and its value.
KeyAndValue = tuple[bytes | None, bytes | None]
OnSettled = Callable[[list[int | None], list[Refusal]], None]


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


class RecordProducer(Protocol):
    """What publishing and replay need of ``KafkaProducer``."""

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
        """See ``KafkaProducer.send``."""


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
        self._settled: deque[Callable[[], None]] = deque()
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
            PublishRefused: Kafka did not acknowledge the record within the delivery time-out, or
                the record cannot be one (``_INVALID_ARG``).
        """
        producer = self._running(topic)
        _check_names(topic, headers)
        _check_partition(topic, partition)
        acknowledged: asyncio.Future[Acknowledged] = asyncio.get_running_loop().create_future()

        def settle(outcome: SendResult) -> None:
            if acknowledged.done():  # the caller no longer waits
                return
            if isinstance(outcome, Acknowledged):
                acknowledged.set_result(outcome)
            else:
                acknowledged.set_exception(outcome)

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            outcome = (
                Acknowledged(topic, message.partition() or 0, message.offset())
                if error is None
                else _refusal(topic, key, value, error)
            )
            self._settle_in_loop(partial(settle, outcome))

        options: dict[str, Any] = {"headers": list(headers), "on_delivery": on_delivery}
        if partition is not None:
            options["partition"] = partition
        if timestamp_ms is not None:
            options["timestamp"] = timestamp_ms
        try:
            producer.produce(topic, value=value, key=key, **options)
        except _NOT_TAKEN as error:
            raise _not_taken(topic, key, value, error) from error
        return await acknowledged

    def enqueue(
        self, topic: str, partition: int, records: Sequence[KeyAndValue], on_settled: OnSettled
    ) -> None:
        """Publish records to a partition, in their order and without waiting; returns at once.

        Args:
            topic: Where to.
            partition: Its partition.
            records: Keys and values; at least one.
            on_settled: Called in the loop of ``start``, exactly once, when all of them are
                acknowledged or refused: with the offsets of those that Kafka has (see
                ``Acknowledged``), and with the errors that ``send`` would raise for the others.
                Must not raise.

        Raises:
            PublishRefused: The client takes no records now; ``on_settled`` is not called.
        """
        producer = self._running(topic)
        batch = _Acknowledgements(topic, len(records), on_settled, self._settle_in_loop)
        on_delivery = batch.on_delivery
        for key, value in records:
            try:
                producer.produce(topic, value, key, partition, on_delivery)
            except _NOT_TAKEN as error:
                batch.refused(_not_taken(topic, key, value, error))

    def _running(self, topic: str) -> Producer:
        producer = self._producer  # the poller's thread may replace it at any moment
        if producer is None:
            raise PublishRefused(topic, self._missing)
        return producer

    def _settle_in_loop(self, settle: Callable[[], None]) -> None:
        # From the client's thread. One wake-up of the loop serves all that come before it.
        self._settled.append(settle)
        if not self._settling and self._loop is not None:
            self._settling = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._settling = False  # first: what is appended from now on wakes the loop again
        while self._settled:
            self._settled.popleft()()

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


class _Acknowledgements:
    """Records that are settled together: the loop hears of them once, not of each."""

    def __init__(
        self,
        topic: str,
        records: int,
        on_settled: OnSettled,
        settle_in_loop: Callable[[Callable[[], None]], None],
    ) -> None:
        self._topic = topic
        self._records = records
        self._on_settled: OnSettled | None = on_settled
        self._settle_in_loop = settle_in_loop
        self._offsets: list[int | None] = []
        self._refusals: list[Refusal] = []

    def on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Note what became of a record; in the client's thread."""
        if error is None:
            self._offsets.append(message.offset())
            self._settle_if_last()
        else:
            self.refused(_refusal(self._topic, message.key(), message.value(), error))

    def refused(self, refusal: Refusal) -> None:
        """Note a record that Kafka, or the client, does not take; in any thread."""
        self._refusals.append(refusal)
        self._settle_if_last()

    def _settle_if_last(self) -> None:
        # Two threads may both come last: ``_settle`` is called twice then.
        if len(self._offsets) + len(self._refusals) == self._records:
            self._settle_in_loop(self._settle)

    def _settle(self) -> None:
        on_settled, self._on_settled = self._on_settled, None
        if on_settled is not None:
            on_settled(self._offsets, self._refusals)


def _check_names(topic: str, headers: Headers) -> None:
    # confluent_kafka does not: it ends the process at a surrogate, and cuts off at a zero.
    for name, _ in headers:
        if problem := name_problem(name):
            raise PublishRefused(topic, problem, "_INVALID_ARG")


def _check_partition(topic: str, partition: int | None) -> None:
    # -1 would let the key decide; larger numbers than Kafka's are no argument of the client.
    if partition is not None and not 0 <= partition <= MAX_PARTITION:
        raise PublishRefused(topic, f"there is no partition {partition}", "_UNKNOWN_PARTITION")


# What the client raises at a record that it does not take; the last three at what is none.
_NOT_TAKEN = (BufferError, KafkaException, OverflowError, TypeError, ValueError)


def _not_taken(topic: str, key: bytes | None, value: bytes | None, error: Exception) -> Refusal:
    """Return the error of a record that the client does not take."""
    if isinstance(error, BufferError):
        return PublishRefused(topic, "the producer's queue is full", "_QUEUE_FULL")
    if not isinstance(error, KafkaException):
        return PublishRefused(topic, f"it cannot be a record: {error}", "_INVALID_ARG")
    return _refusal(topic, key, value, error.args[0], str(error.args[0]))


def _refusal(
    topic: str,
    key: bytes | None,
    value: bytes | None,
    error: KafkaError,
    reason: str | None = None,
) -> Refusal:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return RecordTooLarge(topic, len(key or b"") + len(value or b""))
    return PublishRefused(topic, reason or error.str(), error.name())
