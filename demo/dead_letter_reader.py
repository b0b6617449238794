"""Reads topics themselves, dead letters above all: the ledgers need not believe the worker."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from order_relay.kafka.client_config import client_config
from order_relay.settings import Settings

logger = logging.getLogger(__name__)

_LAST_LOOK_SECONDS = 10.0


class TopicReader:
    """Reads every record of a topic from the first one on, in a thread of its own.

    It belongs to no group and commits nothing: the worker does not notice it.
    """

    def __init__(
        self, settings: Settings, topic: str, on_record: Callable[[Message], None]
    ) -> None:
        """Prepare the reader.

        Args:
            settings: Where Kafka is.
            topic: The topic's name.
            on_record: Hears of each record, in the event loop.
        """
        self._topic = topic
        # A consumer must name a group even if it never joins it.
        self._config = client_config(settings) | {
            "group.id": f"quickstart-ledger-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "log_level": 0,
            # After an outage it is there again at once.
            "reconnect.backoff.max.ms": 500,
        }
        self._on_record = on_record
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read; must be called in the event loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._read, args=(loop,), name=f"reader-of-{self._topic}", daemon=True
        )
        self._thread.start()

    async def finish(self) -> None:
        """Read what is there up to now, then stop. May be called twice."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        consumer = Consumer(self._config)
        try:
            metadata = consumer.list_topics(self._topic, timeout=10)
            partitions = [
                TopicPartition(self._topic, number, OFFSET_BEGINNING)
                for number in metadata.topics[self._topic].partitions
            ]
            consumer.assign(partitions)
            while not self._stopping.is_set():
                self._take(consumer, loop)
            self._read_to_the_end(consumer, loop, partitions)
        except KafkaException as error:
            # The ledger will miss records and say so.
            logger.error("Reading %s failed: %s", self._topic, error.args[0].str())
        finally:
            consumer.close()

    def _read_to_the_end(
        self,
        consumer: Consumer,
        loop: asyncio.AbstractEventLoop,
        partitions: list[TopicPartition],
    ) -> None:
        ends = {
            partition.partition: consumer.get_watermark_offsets(partition, timeout=5)[1]
            for partition in partitions
        }
        deadline = time.monotonic() + _LAST_LOOK_SECONDS
        while time.monotonic() < deadline:
            # The position is negative before the first record of a partition.
            behind = [
                position
                for position in consumer.position(partitions)
                if max(position.offset, 0) < ends[position.partition]
            ]
            if not behind:
                return
            self._take(consumer, loop)
        logger.error("Reading the last records of %s took too long", self._topic)

    def _take(self, consumer: Consumer, loop: asyncio.AbstractEventLoop) -> None:
        for message in consumer.consume(num_messages=500, timeout=0.2):
            if message.error() is None:
                loop.call_soon_threadsafe(self._on_record, message)


class DeadLetterReader(TopicReader):
    """Reads order_logging's dead letters."""

    def __init__(self, settings: Settings, on_letter: Callable[[str, str], None]) -> None:
        """Prepare the reader; ``on_letter`` hears the event id and reason of each letter."""
        super().__init__(
            settings, settings.dlq_topic, lambda letter: on_letter(*_read_letter(letter))
        )


def _read_letter(message: Message) -> tuple[str, str]:
    headers = dict(message.headers() or [])
    event_id = headers.get("event-id")
    reason = headers.get("dlq-reason")
    return (
        _text(event_id) or f"dead letter {message.partition()}/{message.offset()} without event-id",
        _text(reason) or "no reason given",
    )


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
