"""Reading the table's changelog: the entries that the last owner of a partition wrote."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from confluent_kafka import Message

from order_relay.deliveries.entries import decode_entry
from order_relay.deliveries.stores import Store
from order_relay.errors import KafkaUnavailable, RetryableError, TopicUnusable
from order_relay.kafka.topic_reader import TopicReader
from order_relay.settings import Settings

RETRY_SECONDS = 0.5
# After this time without progress, though Kafka answers, the table starts without entries.
GIVE_UP_SECONDS = 60.0
# How long a topic may be unknown: one that was just made is not known to every broker.
UNKNOWN_SECONDS = 3.0
UNKNOWN = "UNKNOWN_TOPIC_OR_PART"
REFUSALS = ("TOPIC_AUTHORIZATION_FAILED", "TOPIC_EXCEPTION")


class Recovery:
    """Brings stores up to date with the changelog.

    It reads with a consumer of its own instead of the group's: other partitions go on meanwhile,
    and an error of the changelog stays an error of the table.
    """

    def __init__(self, settings: Settings, topic: str, ping: Callable[[], Awaitable[None]]) -> None:
        """Prepare; nothing is connected yet.

        Args:
            settings: How to connect to Kafka.
            topic: The changelog. Brokers that create topics on first use create it.
            ping: Returns when a broker has answered; raises ``KafkaUnavailable`` if none does.
        """
        self._settings = settings
        self._topic = topic
        self._ping = ping
        self._moved_at = 0.0

    async def read(
        self, stores: Mapping[int, Store], after_batch: Callable[[], None] = lambda: None
    ) -> int:
        """Bring the stores, by partition of the source topic, up to the changelog's end.

        Waits for Kafka for as long as it takes; cancel it to end early.

        Args:
            stores: The stores to fill, in a thread; nothing else may write to them meanwhile.
            after_batch: Called after every batch, in that thread.

        Returns:
            How many partitions the changelog has.

        Raises:
            RelayError: There was no progress for ``GIVE_UP_SECONDS``, or Kafka refuses.
        """
        self._moved_at = time.monotonic()
        while True:
            try:
                async with TopicReader(self._settings, self._topic, make_topic=True) as reader:
                    return await self._read_to_end(reader, stores, after_batch)
            except TopicUnusable as error:
                limit = UNKNOWN_SECONDS if error.code == UNKNOWN else GIVE_UP_SECONDS
                if error.code in REFUSALS or time.monotonic() - self._moved_at > limit:
                    raise
            except RetryableError:
                if time.monotonic() - self._moved_at > GIVE_UP_SECONDS and await self._answers():
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def _answers(self) -> bool:
        """Return whether Kafka answers: an outage is not a fault of the changelog."""
        try:
            await self._ping()
        except KafkaUnavailable:
            self._moved_at = time.monotonic()
            return False
        return True

    async def _read_to_end(
        self, reader: TopicReader, stores: Mapping[int, Store], after_batch: Callable[[], None]
    ) -> int:
        extents = await reader.extents()
        stores_of: dict[int, dict[int, Store]] = {}
        for partition, store in stores.items():
            stores_of.setdefault(partition % len(extents), {})[partition] = store
        for number, of in stores_of.items():
            low, end = extents[number]
            if any(not low <= (store.next_offset or low) <= end for store in of.values()):
                for store in of.values():
                    store.clear()  # the topic was made anew
            start = min(store.next_offset or low for store in of.values())
            async for batch in reader.batches(number, start, end):
                await reader.run(partial(_apply, batch, of, after_batch))
                self._moved_at = time.monotonic()
            _read_up_to(end, of)
        return len(extents)


def _apply(
    batch: Sequence[Message], stores: Mapping[int, Store], after_batch: Callable[[], None]
) -> None:
    """Bring messages into the stores of their partition, by partition of the source topic."""
    now_ms = int(time.time() * 1000)
    for message in batch:
        key, value = message.key(), message.value()
        if not isinstance(key, bytes):
            continue
        if value is None:
            for store in stores.values():
                store.remove(key)
        elif (entry := decode_entry(bytes(value))) is not None and entry.partition in stores:
            # In memory, an entry from a clock that is ahead would keep all behind it for longer.
            finished_ms = min(entry.finished_ms, now_ms)
            stores[entry.partition].put(key, finished_ms, bytes(value))
    after_batch()
    _read_up_to((batch[-1].offset() or 0) + 1, stores)


def _read_up_to(offset: int, stores: Mapping[int, Store]) -> None:
    for store in stores.values():
        if offset > (store.next_offset or 0) or not offset:
            store.read_up_to(offset)
