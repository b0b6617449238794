"""The dead-letter topic, as deliveries write to it."""

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
    """Writes dead letters with acks=all. It is a ``DeadLetterSink``."""

    def __init__(self, producer: KafkaProducer, topic: str, group_id: str, consumer: str) -> None:
        """Write to ``topic`` for a consumer, whose group is ``group_id``."""
        self.topic = topic
        self._producer = producer
        self._group_id = group_id
        self._consumer = consumer
        self._partitions = 0
        self._refreshed_at = float("-inf")
        self._refresh: asyncio.Task[int] | None = None

    async def send(self, letter: DeadLetter) -> None:
        """See ``DeadLetterSink.send``."""
        headers = self.headers(letter)
        try:
            await self._send(letter, headers)
        except RecordTooLarge:
            # Without long texts it may fit.
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
                # The record's partition if it exists, so that letters of a key keep their order.
                partition=record.partition if record.partition < partitions else None,
            )
        except PublishRefused:
            self._refreshed_at = float("-inf")  # the topic may have changed
            raise

    async def _partition_count(self) -> int:
        now = time.monotonic()
        if now - self._refreshed_at > PARTITION_COUNT_TTL_SECONDS:
            # One request for all waiting letters: in an outage each occupies a thread for 5 s.
            if self._refresh is None or self._refresh.done():
                self._refresh = asyncio.create_task(self._producer.partition_count(self.topic))
            self._partitions = await asyncio.shield(self._refresh)
            self._refreshed_at = now
        if not self._partitions:
            self._refreshed_at = float("-inf")
            raise PublishRefused(self.topic, "the topic does not exist")
        return self._partitions
