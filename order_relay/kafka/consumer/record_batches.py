"""Batches of records in Faust: one message for the records of a partition in a fetch."""

from __future__ import annotations

from typing import Any, cast

import faust
from faust.types import TP, ConsumerMessage, Message

from order_relay.model.record import Record


class RecordBatches(faust.Schema[Any, list[Record]]):
    """Passes batches of records to the streams without decoding."""

    def loads_key(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return no key: a batch has none."""
        return None

    def loads_value(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return the batch, a list of ``Record``."""
        return message.value


def as_record(raw: Any, generation: int) -> Record:
    """Convert a record of aiokafka."""
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
    """Return the message for a non-empty batch of a partition."""
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
