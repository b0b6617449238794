"""Sending dead letters to Kafka, or into the fallback table while Kafka refuses them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial

from order_relay.delivery.dead_letters import (
    DeadLetter,
    Headers,
    dead_letter_headers,
    drop_long_headers,
)
from order_relay.errors import KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.store import NewMessage
from order_relay.fallback.sweep import send_to_partition
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from order_relay.logs.log_line import LogLine
from order_relay.model.record import Record
from order_relay.model.trace_context import trace_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """A ``DeadLetterSink`` that tries the dead-letter topic first and then the fallback table.

    Replay publishes a saved letter later, with the same bytes and headers.

    Attributes:
        max_retry: Refusals by Kafka after which a saved row is FAILED.
        outage: Returns why Kafka is known to be away, else an empty text. While there is a reason,
            letters are saved without a wait for Kafka.
        on_saved: Called for each letter that is saved.
    """

    producer: KafkaProducer
    store: FallbackTable
    topic: str
    _: KW_ONLY
    group_id: str
    consumer: str
    max_retry: int = 3
    outage: Callable[[], str] = lambda: ""
    on_saved: Callable[[], None] = lambda: None

    async def send(self, letter: DeadLetter) -> None:
        """See ``DeadLetterSink.send``.

        Raises:
            DatabaseUnavailable: Kafka and the database both refused; the record is not finished.
        """
        headers = dead_letter_headers(letter, self.group_id, self.consumer)
        try:
            try:
                await self._publish(letter.record, headers)
            except RecordTooLarge:
                # Without long texts it may fit.
                await self._publish(letter.record, drop_long_headers(headers))
        except (PublishRefused, KafkaUnavailable, RecordTooLarge) as error:
            await self._save(letter.record, headers, str(error))

    async def _publish(self, record: Record, headers: Headers) -> None:
        if reason := self.outage():
            raise PublishRefused(self.topic, reason)
        send = self.producer.send
        letter = partial(send, self.topic, key=record.key, value=record.value, headers=headers)
        await send_to_partition(letter, record.partition)

    async def _save(self, record: Record, headers: Headers, reason: str) -> None:
        row_id = await self.store.save(
            NewMessage(
                self.topic,
                record.key,
                record.value,
                tuple(headers),
                # The same partition, if the topic has it, so that a key's letters keep their order.
                partition=record.partition,
                error_message=reason,
                max_retry=self.max_retry,
            )
        )
        self.on_saved()
        logger.warning(
            LogLine(
                "Saved fallback message",
                id=row_id,
                topic=self.topic,
                record=str(record),
                reason=reason,
                trace_id=trace_id(record.headers),
            )
        )
