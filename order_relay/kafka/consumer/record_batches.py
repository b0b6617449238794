"""Batches of records as Faust carries them: one message for what a fetch brought of a partition."""

from __future__ import annotations

from typing import Any, cast

import faust
from faust.types import TP, ConsumerMessage, Message

from order_relay.model.record import Record


class RecordBatches(faust.Schema[Any, list[Record]]):
    """Hands batches of records to the streams as they are: there is nothing to decode."""

    def loads_key(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return no key: a batch has none."""
        return None

    def loads_value(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return the batch, a list of ``Record``."""
        return message.value


def as_record(raw: Any, generation: int) -> Record:
    """Return a record as aiokafka gives it as the delivery code takes it."""
    timestamp_ms = raw.timestamp if raw.timestamp is not None else -1
    return Record(
        raw.topic,
        raw.partition,
        raw.offset,
        generation,
        raw.key,
        raw.value,
        tuple(raw.headers),
        timestamp_ms,
        raw.timestamp_type or 0,
    )


def as_message(tp: TP, batch: list[Record]) -> ConsumerMessage:
    """Return the one message that carries a batch, not empty, of a partition."""
    first = batch[0]
    return ConsumerMessage(
        tp.topic,
        tp.partition,
        first.offset,
        first.timestamp_ms / 1000,
        first.timestamp_type,
        None,
        None,
        cast(Any, batch),
        None,
        0,
        0,
        tp,
        generation_id=first.generation,
    )
