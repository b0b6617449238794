"""An asyncio interface to librdkafka's idempotent producer.

librdkafka has all the settings that publishing promises, and idempotence across broker failovers.
Faust's own producer is idempotent only inside transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, ThrottleEvent

from order_relay.errors import (
    AccessTokenUnavailable,
    KafkaUnavailable,
    PublishRefused,
    RecordTooLarge,
)
from order_relay.kafka.client_config import client_config, require_access_token
from order_relay.model.headers import Headers, name_problem
from order_relay.settings import Settings

logger = logging.getLogger(__name__)

# Above brokers' usual limits, so that the broker and the topic decide what is too large.
MAX_MESSAGE_BYTES = 100_000_000
MAX_PARTITION = 2**31 - 1
# Refusals of a batch that may be the fault of another record in it, or of the batch's size.
BATCH_REFUSALS = {"MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "INVALID_MSG", "INVALID_TIMESTAMP"}
# A broker that answers so much later than asked hangs: its connection is closed.
HANGING_MS = 5_000
# The longest that librdkafka allows.
MAX_SOCKET_TIMEOUT_MS = 300_000
# The longest poll, and so the longest wait for the polling thread in stop().
POLL_SECONDS = 0.5
# Questions to Kafka under way; each takes as long as its time-out while no broker answers.
QUESTIONS_AT_ONCE = 4
# Answers may be this much later than a broker says.
THROTTLED_LATE_SECONDS = 5.0
# Throttling that begins again within this time is not logged again.
THROTTLING_LOG_SECONDS = 60.0
# Between attempts to make a client.
RESTART_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record is in Kafka: written by all in-sync replicas.

    Its offset is ``None`` if an earlier attempt, whose response was lost, had written it. Kafka
    then tells only that it has the record (DUPLICATE_SEQUENCE_NUMBER).
    """

    topic: str
    partition: int
    offset: int | None


Refusal = RecordTooLarge | PublishRefused
KeyAndValue = tuple[bytes | None, bytes | None]
OnSettled = Callable[[int | None, Refusal | None], None]


def producer_config(settings: Settings) -> dict[str, Any]:
    """Return librdkafka's producer settings: acks=all, idempotence, retries and time-outs."""
    return client_config(settings) | {
        "acks": "all",
        "enable.idempotence": True,
        "retries": settings.producer_retries,
        "retry.backoff.ms": settings.producer_retry_backoff_ms,
        "retry.backoff.max.ms": max(1000, settings.producer_retry_backoff_ms),
        # A broker answers within it. librdkafka's own limit for a broker that hangs is 60 s.
        "request.timeout.ms": settings.producer_request_timeout_ms,
        "socket.timeout.ms": min(
            settings.producer_request_timeout_ms + HANGING_MS, MAX_SOCKET_TIMEOUT_MS
        ),
        "delivery.timeout.ms": settings.producer_delivery_timeout_ms,
        "max.in.flight.requests.per.connection": settings.producer_max_in_flight,
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "linger.ms": 5,
        # Warnings and above. Below, librdkafka logs each connection that a broker closes.
        "log_level": 5,
        # The Java clients' hash, so that a key has the same partition as with a Java client.
        "partitioner": "murmur2_random",
    }


class KafkaProducer:
    """Publishes records and waits for Kafka's acknowledgement.

    ``start`` and ``stop`` may each be called once. ``send`` may be called from many tasks of the
    loop that called ``start``.
    """

    def __init__(self, settings: Settings, *, in_batches: bool = True) -> None:
        """Prepare; nothing is connected yet. Without ``in_batches`` each record is sent alone."""
        self._settings = settings
        self._in_batches = in_batches
        self._alone: KafkaProducer | None = None
        self._starting_alone = asyncio.Lock()
        self._producer: Producer | None = None
        self._poller: threading.Thread | None = None
        self._stopping = threading.Event()
        self._not_running = "the producer is not running"
        self._loop: asyncio.AbstractEventLoop | None = None
        # The loop's own executor may be busy with work of others, while Kafka has to be watched.
        self._executor = ThreadPoolExecutor(QUESTIONS_AT_ONCE, "kafka-producer-question")
        # The brokers that Kafka named last.
        self._brokers: tuple[str, ...] = ()
        # Until then the brokers answer late, since a quota is exceeded; monotonic seconds.
        self._throttled_until = float("-inf")
        self._settled: deque[Callable[[], None]] = deque()
        self._settling = False

    async def start(self) -> None:
        """Start the client, which connects in the background and retries for ever.

        If Kafka requires an access token, it is fetched in the background, too. Until then sends
        fail as if no broker answered.
        """
        if self._stopping.is_set():  # stopped while the worker was starting: sends are refused
            return
        self._loop = asyncio.get_running_loop()
        start_threads(self._executor, QUESTIONS_AT_ONCE)
        if self._settings.uses_access_tokens:
            await self._loop.run_in_executor(self._executor, self._try_to_make_client)
            if self._producer is None:
                logger.warning("No record is published yet: %s; retrying", self._not_running)
        else:
            self._make_client()
        self._poller = threading.Thread(target=self._poll, name="kafka-producer", daemon=True)
        self._poller.start()

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        """Give records in flight ``timeout_seconds`` to be acknowledged, then close the client."""
        loop = asyncio.get_running_loop()
        if (producer := self._producer) is not None:
            with contextlib.suppress(KafkaException):  # a fatal error: the poller settles the rest
                left = await loop.run_in_executor(self._executor, producer.flush, timeout_seconds)
                if left:
                    # The send() of each remaining record raises PublishRefused.
                    producer.purge(in_queue=True, in_flight=True, blocking=False)
                    await loop.run_in_executor(self._executor, producer.flush, 1.0)
        self._stopping.set()
        if self._poller is not None:
            await loop.run_in_executor(self._executor, self._poller.join, 2.0)
        self._producer = None
        self._executor.shutdown(wait=False)
        if self._alone is not None:
            await self._alone.stop(timeout_seconds)

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Acknowledged:
        """Publish one record, and wait until all in-sync replicas have it.

        Cancelling the wait does not withdraw the record: it may still reach Kafka.

        Raises:
            RecordTooLarge: The record is over the limit of the broker or the topic.
            PublishRefused: Kafka did not acknowledge the record within the delivery time-out, or
                it is not a valid record (``_INVALID_ARG``).
        """
        producer = self._running(topic)
        _check_arguments(topic, headers, partition)
        acknowledged: asyncio.Future[Acknowledged] = asyncio.get_running_loop().create_future()

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            def settle() -> None:
                if acknowledged.done():  # the wait was cancelled
                    return
                if error is not None:
                    acknowledged.set_exception(_refusal(topic, key, value, error))
                    return
                position = message.partition() or 0, message.offset()
                acknowledged.set_result(Acknowledged(topic, *position))

            self._settle_in_loop(settle)

        options: dict[str, Any] = {"headers": list(headers), "on_delivery": on_delivery}
        if partition is not None:
            options["partition"] = partition
        try:
            producer.produce(topic, value=value, key=key, **options)
        except _PRODUCE_ERRORS as error:
            raise _produce_refusal(topic, key, value, error) from error
        try:
            return await acknowledged
        except (RecordTooLarge, PublishRefused) as error:
            # Kafka refuses a whole batch for one record, or for the size of all together.
            code = error.code if isinstance(error, PublishRefused) else "MSG_SIZE_TOO_LARGE"
            if code not in BATCH_REFUSALS or not self._in_batches or self._stopping.is_set():
                raise
        alone = await self._start_alone()
        return await alone.send(topic, key=key, value=value, headers=headers, partition=partition)

    async def _start_alone(self) -> KafkaProducer:
        async with self._starting_alone:
            if self._alone is None:
                alone = KafkaProducer(self._settings, in_batches=False)
                await alone.start()
                self._alone = alone
        return self._alone

    def enqueue(
        self, topic: str, partition: int, records: Sequence[KeyAndValue], on_settled: OnSettled
    ) -> None:
        """Publish at least one record to a partition, in their order. Returns at once.

        ``on_settled`` is called once in the loop of ``start``, when Kafka has answered: with the
        offset of the first record if all are in Kafka, one after another, and ``None`` if that is
        not certain; and with the error of the first refusal, if one is known. It must not raise.

        Raises:
            PublishRefused: The client is not running; ``on_settled`` is not called.
        """
        producer = self._running(topic)
        total = len(records)
        # Only the first record and the last one have a callback: one for each record costs more
        # than sending it. Kafka answers in their order, and the offsets tell of those in between.
        ends = {0, total - 1}
        offsets: list[int | None] = []
        refusals: list[Refusal] = []
        pending = [on_settled]

        def settle() -> None:
            # Two threads may both see the last answer, and then this is called twice.
            if pending:
                known = [offset for offset in offsets if offset is not None]
                proven = not refusals and len(known) == len(ends)
                proven = proven and max(known) - min(known) == total - 1
                pending.pop()(min(known) if proven else None, refusals[0] if refusals else None)

        def answered(offset: int | None) -> None:
            offsets.append(offset)
            if len(offsets) == len(ends):
                self._settle_in_loop(settle)

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                refusals.append(_refusal(topic, message.key(), message.value(), error))
            answered(message.offset() if error is None else None)

        for number, (key, value) in enumerate(records):
            is_end = number in ends
            try:
                producer.produce(topic, value, key, partition, on_delivery if is_end else None)
            except _PRODUCE_ERRORS as error:
                refusals.append(_produce_refusal(topic, key, value, error))
                if is_end:
                    answered(None)

    def _running(self, topic: str) -> Producer:
        producer = self._producer  # the polling thread may replace it at any moment
        if producer is None:
            raise PublishRefused(topic, self._not_running)
        return producer

    def _settle_in_loop(self, settle: Callable[[], None]) -> None:
        # Called in the polling thread. One wake-up of the loop serves all until it runs.
        self._settled.append(settle)
        if not self._settling and self._loop is not None:
            self._settling = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._settling = False  # first, so that what is appended from now on wakes the loop again
        while self._settled:
            self._settled.popleft()()

    async def partition_count(self, topic: str, timeout_seconds: float = 5.0) -> int:
        """Ask Kafka how many partitions ``topic`` has; 0 if it does not exist.

        Raises:
            KafkaUnavailable: No broker answered in time.
        """
        metadata = await self._metadata(topic, timeout_seconds)
        found = metadata.topics.get(topic)
        return 0 if found is None or found.error is not None else len(found.partitions)

    async def ping(self, timeout_seconds: float = 5.0) -> None:
        """Wait until a broker answers.

        A broker that lets this client wait, since it is over a quota, has answered.

        Raises:
            KafkaUnavailable: No broker answered in time.
        """
        try:
            # The metadata of one topic, since that of a large cluster is large.
            await self._metadata(self._settings.order_paid_topic, timeout_seconds)
        except KafkaUnavailable:
            if time.monotonic() > self._throttled_until:
                raise

    async def _metadata(self, topic: str, timeout_seconds: float) -> Any:
        producer = self._producer
        if producer is None:
            raise KafkaUnavailable(self._settings.kafka_bootstrap_servers, self._not_running)
        metadata = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._ask_brokers, producer, topic, timeout_seconds
        )
        self._brokers = tuple(
            f"[{one.host}]:{one.port}" if ":" in one.host else f"{one.host}:{one.port}"
            for one in metadata.brokers.values()
        )
        return metadata

    def _ask_brokers(self, producer: Producer, topic: str, timeout_seconds: float) -> Any:
        """Ask for metadata; the second half of the time is for the other brokers. Blocks.

        librdkafka asks the broker that it used last, also while that one hangs, until it closes the
        connection. A new client connects to one broker after another.
        """
        try:
            return producer.list_topics(topic, timeout_seconds / 2)
        except KafkaException as error:
            servers = self._settings.kafka_bootstrap_servers
            others = client_config(self._settings) | {
                "bootstrap.servers": ",".join((servers, *self._brokers)),
                "log_level": 0,
            }
            try:
                return Producer(others, logger=logger).list_topics(topic, timeout_seconds / 2)
            except KafkaException:
                raise KafkaUnavailable(servers, error.args[0].str()) from error

    def _make_client(self) -> None:
        config = producer_config(self._settings) | {"throttle_cb": self._on_throttled}
        if not self._in_batches:
            config["batch.num.messages"] = 1
        self._producer = Producer(config, logger=logger)

    def _try_to_make_client(self) -> None:
        """Make the client if there is an access token."""
        try:
            require_access_token(self._settings)
            self._make_client()
        except (AccessTokenUnavailable, KafkaException) as error:
            self._not_running = str(error)

    def _poll(self) -> None:
        while not self._stopping.is_set():
            producer = self._producer
            if producer is None:
                if not self._stopping.wait(RESTART_SECONDS):
                    self._try_to_make_client()
                continue
            try:
                producer.poll(POLL_SECONDS)  # returns as soon as there is something to report
            except KafkaException as error:
                self._discard(producer, error.args[0])

    def _on_throttled(self, event: ThrottleEvent) -> None:
        """Called in the polling thread."""
        now = time.monotonic()
        if now > self._throttled_until + THROTTLING_LOG_SECONDS:
            logger.warning(
                "Kafka throttles this client: it is over its quota; its answers take %.1f s longer",
                event.throttle_time,
            )
        until = now + event.throttle_time + THROTTLED_LATE_SECONDS
        self._throttled_until = max(self._throttled_until, until)

    def _discard(self, producer: Producer, error: KafkaError) -> None:
        """Discard a client after a fatal error; ``_poll`` makes another one.

        librdkafka raises a fatal error when it can no longer guarantee that records are neither
        lost nor duplicated. Records in flight are refused.
        """
        self._not_running = f"Kafka's client had a fatal error: {error.str()}"
        self._producer = None  # until there is another, sends fail as if no broker answered
        logger.error("Kafka producer failed permanently, starting another: %s", error.str())
        with contextlib.suppress(KafkaException):  # the same fatal error again
            producer.purge(in_queue=True, in_flight=True, blocking=False)
            producer.flush(1.0)


def start_threads(executor: ThreadPoolExecutor, threads: int) -> None:
    """Start all threads of an executor: Python 3.12 starts none while the process ends."""
    started = threading.Barrier(threads)
    list(executor.map(lambda _: started.wait(), range(threads)))


def _check_arguments(topic: str, headers: Headers, partition: int | None) -> None:
    """Check what confluent_kafka does not.

    A surrogate in a header's name would end the process, a zero would cut the name off. A partition
    of -1 would be chosen by the key.
    """
    for name, _ in headers:
        if problem := name_problem(name):
            raise PublishRefused(topic, problem, "_INVALID_ARG")
    if partition is not None and not 0 <= partition <= MAX_PARTITION:
        raise PublishRefused(topic, f"there is no partition {partition}", "_UNKNOWN_PARTITION")


# What produce() raises: the first two if it refuses a record, the others for invalid arguments.
_PRODUCE_ERRORS = (BufferError, KafkaException, OverflowError, TypeError, ValueError)


def _produce_refusal(
    topic: str, key: bytes | None, value: bytes | None, error: Exception
) -> Refusal:
    """Return the refusal of a record for which produce() raised ``error``."""
    if isinstance(error, BufferError):
        return PublishRefused(topic, "the producer's queue is full", "_QUEUE_FULL")
    if not isinstance(error, KafkaException):
        return PublishRefused(topic, f"not a valid record: {error}", "_INVALID_ARG")
    return _refusal(topic, key, value, error.args[0])


def _refusal(topic: str, key: bytes | None, value: bytes | None, error: KafkaError) -> Refusal:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return RecordTooLarge(topic, len(key or b"") + len(value or b""))
    return PublishRefused(topic, error.str(), error.name())
