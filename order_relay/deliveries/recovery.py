"""Reading the table's changelog: the entries that the last owner of a partition wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from order_relay.deliveries.entries import decode_entry
from order_relay.deliveries.stores import Store

BATCH = 1000
POLL_SECONDS = 0.5
ASK_SECONDS = 5.0
# After this time without progress, though Kafka answers, the partition starts without entries.
GIVE_UP_SECONDS = 60.0
# How long a topic may be unknown: one that was just made is not known to every broker.
UNKNOWN_SECONDS = 3.0
ENDED, OUT_OF_RANGE = KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET
REFUSALS = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION)


class ChangelogUnreadable(Exception):
    """Kafka answers, but the changelog cannot be read."""


class Recovery:
    """Brings stores up to date with the changelog. All calls block: run them in a thread.

    It reads with a consumer of its own instead of the group's: other partitions go on meanwhile,
    and an error of the changelog stays an error of the table.
    """

    def __init__(self, config: Mapping[str, Any], topic: str, *, make_topic: bool = False) -> None:
        """Prepare; nothing is connected yet.

        Args:
            config: The client's configuration, by librdkafka's names.
            topic: The changelog.
            make_topic: Let brokers create the topic on first use, if they do so.
        """
        self._topic = topic
        self._config = {
            **config,
            # The client demands one. Partitions are assigned by hand; nothing is committed.
            "group.id": f"{topic}-reader",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "allow.auto.create.topics": make_topic,
            "log_level": 0,  # the group's consumer logs the same about the same brokers
            "fetch.wait.max.ms": 50,
        }

    def read(
        self,
        stores: Mapping[int, Store],
        stop: threading.Event,
        after_batch: Callable[[], None] = lambda: None,
    ) -> int:
        """Bring the stores, by partition of the source topic, up to the changelog's end.

        Args:
            stores: The stores to fill; nothing else may write to them meanwhile.
            stop: Set it to end early.
            after_batch: Called after every batch, in this thread.

        Returns:
            How many partitions the changelog has; 0 when it does not exist yet.

        Raises:
            ChangelogUnreadable: There was no progress for ``GIVE_UP_SECONDS``, or Kafka refuses.
        """
        with self._consumer(stop) as consumer:
            count = self._partition_count(consumer, stop)
            if not count:
                return 0
            stores_of: dict[int, dict[int, Store]] = {}
            for partition, store in stores.items():
                stores_of.setdefault(partition % count, {})[partition] = store
            starts = {
                partition: min(store.next_offset or OFFSET_BEGINNING for store in of.values())
                for partition, of in stores_of.items()
            }
            for messages in self._read_to_end(consumer, starts, stop):
                for message in messages:
                    _apply(message, stores_of[message.partition() or 0])
                after_batch()
            return count

    @contextmanager
    def _consumer(self, stop: threading.Event) -> Iterator[Consumer]:
        while True:
            try:
                consumer = Consumer(self._config)
                break
            except KafkaException as error:
                # There is no access token yet.
                if stop.wait(1.0):
                    raise ChangelogUnreadable(error.args[0].str()) from error
        try:
            yield consumer
        finally:
            consumer.close()

    def _partition_count(self, consumer: Consumer, stop: threading.Event) -> int:
        """Ask until Kafka answers, ``UNKNOWN_SECONDS`` longer for a topic that is being made."""
        answered_at: float | None = None
        while True:
            try:
                found = consumer.list_topics(self._topic, ASK_SECONDS).topics[self._topic]
            except KafkaException:
                if stop.wait(1.0):
                    return 0
                continue
            if found.error is None:
                return len(found.partitions)
            now = time.monotonic()
            waited = now - (answered_at := answered_at or now)
            unknown = found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
            if unknown and waited > UNKNOWN_SECONDS:
                return 0
            if waited > GIVE_UP_SECONDS or found.error.code() in REFUSALS:
                raise ChangelogUnreadable(found.error.str())
            if stop.wait(0.2):
                return 0

    def _read_to_end(
        self, consumer: Consumer, starts: Mapping[int, int], stop: threading.Event
    ) -> Iterator[list[Message]]:
        """Read partitions from these offsets to their ends, or until ``stop``, in batches.

        A batch also has a message for each end, and for each partition that is read from its
        beginning, because it has not got the offset.
        """
        consumer.assign([TopicPartition(self._topic, *start) for start in starts.items()])
        unfinished = set(starts)
        moved_at, problem = time.monotonic(), "no answer"
        while unfinished and not stop.is_set():
            batch = []
            for message in consumer.consume(BATCH, POLL_SECONDS):
                error = message.error()
                if error is not None and error.code() not in (ENDED, OUT_OF_RANGE):
                    problem = error.str()
                    if error.code() in REFUSALS:
                        raise ChangelogUnreadable(problem)
                    continue
                partition = message.partition() or 0
                if error is not None and error.code() == ENDED:
                    unfinished.discard(partition)
                elif error is not None:
                    consumer.incremental_unassign([TopicPartition(self._topic, partition)])
                    consumer.incremental_assign(
                        [TopicPartition(self._topic, partition, OFFSET_BEGINNING)]
                    )
                batch.append(message)
                moved_at = time.monotonic()
            yield batch
            if time.monotonic() - moved_at > GIVE_UP_SECONDS:
                moved_at = time.monotonic()
                with suppress(KafkaException):  # an outage is not a fault of the changelog
                    consumer.list_topics(self._topic, ASK_SECONDS)
                    raise ChangelogUnreadable(problem)


def _apply(message: Message, stores: Mapping[int, Store]) -> None:
    """Bring a message into the stores of its partition, by partition of the source topic."""
    error, key, value = message.error(), message.key(), message.value()
    if error is None and value is not None:
        entry = decode_entry(bytes(value))
        if entry is not None and isinstance(key, bytes) and entry.partition in stores:
            stores[entry.partition].put(key, entry.finished_ms, bytes(value))
        return
    for store in stores.values():
        if error is None and isinstance(key, bytes):
            store.remove(key)
        elif error is not None and error.code() == ENDED:
            store.read_up_to(message.offset() or 0)
        elif error is not None:
            store.clear()  # the topic was made anew
