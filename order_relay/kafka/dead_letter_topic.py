"""The dead-letter topic, as deliveries write to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from order_relay.delivery.dead_letters import (
    DeadLetter,
    Headers,
    dead_letter_headers,
    drop_long_headers,
)
from order_relay.errors import PublishRefused, RecordTooLarge
from order_relay.kafka.producer import KafkaProducer


class DeadLetterTopic:
    """Writes dead letters with acks=all. It is a ``DeadLetterSink``."""

    def __init__(
        self,
        producer: KafkaProducer,
        topic: str,
        group_id: str,
        consumer: str,
        *,
        outage: Callable[[], str] = lambda: "",
    ) -> None:
        """Write to ``topic`` for a consumer, whose group is ``group_id``.

        While ``outage`` returns a reason, letters are refused without a wait for Kafka.
        """
        self.topic = topic
        self._producer = producer
        self._group_id = group_id
        self._consumer = consumer
        self._outage = outage

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

    async def _send(self, letter: DeadLetter, headers: Headers) -> None:
        """Send to the record's partition, if it exists: a key's letters keep their order."""
        if reason := self._outage():
            raise PublishRefused(self.topic, reason)
        record = letter.record
        send = partial(
            self._producer.send, self.topic, key=record.key, value=record.value, headers=headers
        )
        try:
            await send(partition=record.partition)
        except PublishRefused as error:
            if error.code != "_UNKNOWN_PARTITION":
                raise
            await send()
