"""Sending dead letters to Kafka, or into the fallback table while Kafka refuses them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from order_relay.delivery.dead_letters import DeadLetter
from order_relay.errors import KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.store import FallbackStore, NewMessage
from order_relay.kafka.dead_letter_topic import DeadLetterTopic
from order_relay.logs.log_line import LogLine
from order_relay.model.trace_context import trace_id

logger = logging.getLogger(__name__)


class FallbackDeadLetters:
    """A ``DeadLetterSink`` that tries the dead-letter topic first and then the fallback table.

    Replay publishes a saved letter later, with the same bytes and headers.
    """

    def __init__(
        self,
        topic: DeadLetterTopic,
        store: FallbackStore,
        *,
        max_retry: int = 3,
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        """Send to ``topic``. Saved rows get ``max_retry`` attempts; each calls ``on_saved``."""
        self._topic = topic
        self._store = store
        self._max_retry = max_retry
        self._on_saved = on_saved

    async def send(self, letter: DeadLetter) -> None:
        """See ``DeadLetterSink.send``.

        Raises:
            DatabaseUnavailable: Kafka and the database both refused; the record is not finished.
        """
        try:
            await self._topic.send(letter)
        except (PublishRefused, KafkaUnavailable, RecordTooLarge) as error:
            await self._save(letter, error)

    async def _save(self, letter: DeadLetter, error: Exception) -> None:
        record = letter.record
        row_id = await self._store.save(
            NewMessage(
                self._topic.topic,
                record.key,
                record.value,
                tuple(self._topic.headers(letter)),
                # The same partition, if the topic has it, so that a key's letters keep their order.
                partition=record.partition,
                error_message=str(error),
                max_retry=self._max_retry,
            )
        )
        self._on_saved()
        logger.warning(
            LogLine(
                "Saved fallback message",
                id=row_id,
                topic=self._topic.topic,
                record=str(record),
                reason=str(error),
                trace_id=trace_id(record.headers),
            )
        )
