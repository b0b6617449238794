"""Where delivery's dead letters meet publishing's producer: the dead-letter topic."""

from __future__ import annotations

import asyncio
import time

from order_relay.delivery.dead_letters import (
    DeadLetter,
    Headers,
    dead_letter_headers,
    drop_long_headers,
)
from order_relay.errors import PublishRefused, RecordTooLarge
from order_relay.kafka.producer import KafkaProducer

PARTITION_COUNT_TTL_SECONDS = 60.0


class DeadLetterTopic:
    """Writes dead letters with acks=all; a ``DeadLetterSink``."""

    def __init__(self, producer: KafkaProducer, topic: str, group_id: str, consumer: str) -> None:
        """Write to ``topic`` for a consumer and its group ``group_id``."""
        self.topic = topic
        self._producer = producer
        self._group_id = group_id
        self._consumer = consumer
        self._partitions = 0
        self._asked_at = float("-inf")
        self._question: asyncio.Task[int] | None = None

    async def send(self, letter: DeadLetter) -> None:
        """See ``DeadLetterSink.send``."""
        headers = self.headers(letter)
        try:
            await self._send(letter, headers)
        except RecordTooLarge:
            # Rather a letter without its long texts than none.
            await self._send(letter, drop_long_headers(headers))

    def headers(self, letter: DeadLetter) -> Headers:
        """Return all headers of a dead letter."""
        return dead_letter_headers(letter, self._group_id, self._consumer)

    async def _send(self, letter: DeadLetter, headers: list[tuple[str, bytes | None]]) -> None:
        record = letter.record
        partitions = await self._partition_count()
        try:
            await self._producer.send(
                self.topic,
                key=record.key,
                value=record.value,
                headers=headers,
                # The same partition where it exists, so that a key's letters keep their order.
                partition=record.partition if record.partition < partitions else None,
            )
        except PublishRefused:
            self._asked_at = float("-inf")  # the topic may have changed
            raise

    async def _partition_count(self) -> int:
        now = time.monotonic()
        if now - self._asked_at > PARTITION_COUNT_TTL_SECONDS:
            self._partitions = await self._ask()
            self._asked_at = now
        if not self._partitions:
            self._asked_at = float("-inf")
            raise PublishRefused(self.topic, "the topic does not exist")
        return self._partitions

    async def _ask(self) -> int:
        """Ask once for all who wait: in an outage each question takes a thread for 5 s."""
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._producer.partition_count(self.topic))
        return await asyncio.shield(self._question)
