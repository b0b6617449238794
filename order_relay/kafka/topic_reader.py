"""Reading partitions of a topic from one offset to another, without a consumer group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import NamedTuple, Self, TypeVar, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from order_relay.errors import KafkaUnavailable, TopicUnusable
from order_relay.kafka.client_config import UNREACHABLE, client_config, require_access_token
from order_relay.model.headers import Header
from order_relay.settings import Settings

BATCH = 500
POLL_SECONDS = 0.5
ASK_SECONDS = 10.0
# After this time without a record the partition has no leader, or its broker is away.
GIVE_UP_SECONDS = 15.0

T = TypeVar("T")


class Extent(NamedTuple):
    """The offsets that a partition holds: from ``low`` to before ``end``."""

    low: int
    end: int


class TopicReader:
    """Reads a topic without joining a group; it commits nothing.

    async with TopicReader(settings, topic) as reader:
        extents = await reader.extents()
        async for message in reader.messages(0, extents[0].low, extents[0].end): ...

    Every call may raise ``KafkaUnavailable`` or ``TopicUnusable``.
    """

    def __init__(self, settings: Settings, topic: str, *, make_topic: bool = False) -> None:
        """Read ``topic``, one partition at a time.

        ``make_topic`` lets brokers create it on first use, if they do so.
        """
        self.topic = topic
        self._settings = settings
        self._make_topic = make_topic
        # One thread of its own makes all calls: the client is not safe to use from several.
        self._thread = ThreadPoolExecutor(1, "topic-reader")
        self._consumer: Consumer  # once it is open

    async def __aenter__(self) -> Self:
        try:
            self._consumer = await self.run(self._connect)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.run(self._consumer.close)
        self._thread.shutdown()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the reader's thread; the reader closes only after it has returned."""

        def translating() -> T:
            try:
                return function()
            except KafkaException as error:
                raise self._translated(error.args[0]) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, translating)

    async def extents(self) -> dict[int, Extent]:
        """Return the offsets that each partition holds now, by its number."""
        consumer = self._consumer

        def ask() -> dict[int, Extent]:
            found = consumer.list_topics(self.topic, ASK_SECONDS).topics[self.topic]
            if found.error is not None:
                raise TopicUnusable(self.topic, found.error.str(), found.error.name())
            return {
                number: Extent(
                    *consumer.get_watermark_offsets(TopicPartition(self.topic, number), ASK_SECONDS)
                )
                for number in sorted(found.partitions)
            }

        return await self.run(ask)

    async def offset_at(self, partition: int, extent: Extent, moment_ms: float) -> int:
        """Return the offset of the first record of a time or later; the end without one."""
        position = TopicPartition(self.topic, partition, max(int(moment_ms), 0))
        consumer = self._consumer
        (found,) = await self.run(lambda: consumer.offsets_for_times([position], ASK_SECONDS))
        if found.error is not None:
            raise TopicUnusable(self.topic, found.error.str())
        return min(found.offset, extent.end) if found.offset >= 0 else extent.end

    async def messages(self, partition: int, start: int, end: int) -> AsyncIterator[Message]:
        """Read the messages of a partition from offset ``start`` to before ``end``."""
        async for batch in self.batches(partition, start, end):
            for message in batch:
                yield message

    async def batches(self, partition: int, start: int, end: int) -> AsyncIterator[list[Message]]:
        """Read messages as ``messages``, in batches."""
        if start >= end:
            return
        consumer = self._consumer
        position = TopicPartition(self.topic, partition, start)
        await self.run(lambda: consumer.assign([position]))
        moved_at = time.monotonic()
        problem = "no answer"
        ended = False
        while not ended:
            batch = []
            for message in await self.run(lambda: _next_messages(consumer)):
                error, offset = message.error(), message.offset() or 0
                if error is None and offset < end:
                    batch.append(message)
                elif error is not None and error.code() != KafkaError._PARTITION_EOF:
                    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                        raise self._translated(error)
                    problem = error.str()
                    continue
                if error is not None or offset >= end - 1:
                    ended = True
                    break
            if batch:
                yield batch
                moved_at = time.monotonic()
            elif not ended and time.monotonic() - moved_at > GIVE_UP_SECONDS:
                raise self._unavailable(f"{self.topic} partition {partition}: {problem}")

    async def delete_before(self, offsets: Mapping[int, int]) -> None:
        """Delete the records before an offset, by partition (Kafka's DeleteRecords)."""

        def delete() -> None:
            admin = AdminClient(client_config(self._settings) | {"log_level": 0})
            positions = [TopicPartition(self.topic, number, at) for number, at in offsets.items()]
            asked = admin.delete_records(
                positions, request_timeout=ASK_SECONDS, operation_timeout=ASK_SECONDS
            )
            try:
                for future in asked.values():
                    future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError._UNSUPPORTED_FEATURE:
                    raise
                text = "these brokers cannot delete records (the embedded cluster's cannot)"
                raise TopicUnusable(self.topic, text) from error

        await self.run(delete)

    def _connect(self) -> Consumer:
        require_access_token(self._settings)
        try:
            return Consumer(
                client_config(self._settings)
                | {
                    # The client demands one. Partitions are assigned by hand; nothing is committed.
                    "group.id": f"{self.topic}-reader",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "enable.partition.eof": True,
                    "allow.auto.create.topics": self._make_topic,
                    "fetch.wait.max.ms": 50,
                    "log_level": 0,
                }
            )
        except KafkaException as error:
            raise self._unavailable(error.args[0].str()) from error

    def _translated(self, error: KafkaError) -> KafkaUnavailable | TopicUnusable:
        if error.code() in UNREACHABLE:
            return self._unavailable(error.str())
        return TopicUnusable(self.topic, error.str(), error.name())

    def _unavailable(self, reason: str) -> KafkaUnavailable:
        return KafkaUnavailable(self._settings.kafka_bootstrap_servers, reason)


def _next_messages(consumer: Consumer) -> list[Message]:
    """Wait for a message, ``POLL_SECONDS`` at most; return it and all others that are there."""
    # One call for a whole batch would wait until the batch is full or the time is over.
    first = consumer.consume(1, POLL_SECONDS)
    return first + consumer.consume(BATCH - 1, 0) if first else []


# The client returns None and leaves the error behind. A call that CPython has specialised, after a
# few times, does not notice, and some later line raises it.
_headers = methodcaller("headers")


def headers_of(message: Message) -> tuple[Header, ...] | None:
    """Return the headers of a message; None: a name is not UTF-8, and none can be read."""
    try:
        headers = cast(list[tuple[str, object]], _headers(message) or [])
    except (SystemError, UnicodeDecodeError):  # the client raises these
        return None
    return tuple((name, bytes_of(value)) for name, value in headers)


def bytes_of(value: object) -> bytes | None:
    """Return a key or a value of a message as bytes."""
    return value if value is None or isinstance(value, bytes) else str(value).encode()
