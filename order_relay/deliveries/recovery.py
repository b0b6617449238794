"""Reading the table's changelog: the entries that the last owner of a partition wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from order_relay.deliveries.entries import decode_entry
from order_relay.deliveries.store import OneKeyStore, PartitionStore

BATCH = 1000
POLL_SECONDS = 0.5
ASK_SECONDS = 5.0
# After this time without progress, though Kafka answers, the partition starts without entries.
GIVE_UP_SECONDS = 60.0
# How long a topic may be unknown: one that was just made is not known to every broker.
UNKNOWN_SECONDS = 3.0
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
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "allow.auto.create.topics": make_topic,
            "log_level": 0,  # the group's consumer logs the same about the same brokers
            "fetch.wait.max.ms": 50,
        }

    def read(
        self,
        stores: Mapping[int, PartitionStore],
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
            partitions = self._partition_count(consumer, self._topic, stop)
            if partitions:
                by_changelog: dict[int, dict[int, PartitionStore]] = {}
                for partition, store in stores.items():
                    by_changelog.setdefault(partition % partitions, {})[partition] = store
                _Reading(consumer, self._topic, by_changelog, stop).run(after_batch)
            return partitions

    def read_order(
        self,
        key: bytes,
        source_topic: str,
        stop: threading.Event,
        partition_of: Callable[[bytes, int], int],
    ) -> bytes | None:
        """Return an order's entry; ``None`` without one.

        Args:
            key: The key of the entry.
            source_topic: The topic of the order's records.
            stop: Set it to end early. An entry read by then is not returned, since it may be an
                old one.
            partition_of: Returns the partition that Kafka's clients choose for a key, given the
                number of partitions. It is read first, and the others only if it has no entry.

        Raises:
            ChangelogUnreadable: The changelog does not exist or cannot be read, or ``stop`` was set
                before its end though Kafka answered.
        """
        with self._consumer(stop) as consumer:
            partitions = self._partition_count(consumer, source_topic, stop)
        if not partitions:
            if stop.is_set():
                return None
            raise ChangelogUnreadable(f"there is no topic {source_topic}")
        likely = partition_of(key, partitions)
        for chosen in ([likely], [one for one in range(partitions) if one != likely]):
            wanted = OneKeyStore(key)
            if not self.read(dict.fromkeys(chosen, wanted), stop) and not stop.is_set():
                raise ChangelogUnreadable(f"there is no topic {self._topic}")
            if stop.is_set():
                raise ChangelogUnreadable("its end was not reached in time")
            if (found := wanted.get(key)) is not None:
                return found
        return None

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

    def _partition_count(self, consumer: Consumer, topic: str, stop: threading.Event) -> int:
        """Ask until Kafka answers, ``UNKNOWN_SECONDS`` longer for a topic that is being made."""
        answered_at: float | None = None
        while True:
            try:
                found = consumer.list_topics(topic, ASK_SECONDS).topics[topic]
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


class _Reading:
    """One pass over the partitions of the changelog."""

    def __init__(
        self,
        consumer: Consumer,
        topic: str,
        stores: Mapping[int, Mapping[int, PartitionStore]],
        stop: threading.Event,
    ) -> None:
        """Fill ``stores``: by partition of the changelog, then by partition of the source topic."""
        self._consumer = consumer
        self._topic = topic
        self._stores = stores
        self._stop = stop
        self._unfinished: set[int] = set()
        self._moved_at = time.monotonic()
        self._problem = "no answer"

    def run(self, after_batch: Callable[[], None]) -> None:
        """Read to the end."""
        starts = [
            TopicPartition(self._topic, partition, start)
            for partition, stores in self._stores.items()
            if (start := self._start(partition, stores)) is not None
        ]
        if not starts:
            return
        self._unfinished = {start.partition for start in starts}
        self._moved_at = time.monotonic()
        self._consumer.assign(starts)
        while self._unfinished and not self._stop.is_set():
            for message in self._consumer.consume(BATCH, POLL_SECONDS):
                self._take(message)
            after_batch()
            if time.monotonic() - self._moved_at > GIVE_UP_SECONDS:
                self._give_up_unless_away()

    def _start(self, partition: int, stores: Mapping[int, PartitionStore]) -> int | None:
        """Return the offset to begin at; ``None`` if there is nothing to read."""
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(self._topic, partition), ASK_SECONDS
                )
                break
            except KafkaException as error:
                self._problem = error.args[0].str()
                if time.monotonic() - self._moved_at > GIVE_UP_SECONDS:
                    self._give_up_unless_away()
                if self._stop.wait(1.0):
                    return None
        offsets = []
        for store in stores.values():
            offset = store.next_offset
            if offset is not None and offset > high:
                store.clear()  # the topic was made anew
                offset = None
            offsets.append(low if offset is None else max(offset, low))
        start = min(offsets)
        if start < high:
            return start
        for store in stores.values():
            store.read_up_to(high)
        return None

    def _take(self, message: Message) -> None:
        partition = message.partition()
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and partition is not None:
                self._moved_at = time.monotonic()
                self._unfinished.discard(partition)
                for store in self._stores[partition].values():
                    store.read_up_to(message.offset() or 0)
            else:
                self._problem = error.str()
            return
        key, value = message.key(), message.value()
        if partition is None or not isinstance(key, bytes):
            return
        self._moved_at = time.monotonic()
        stores = self._stores[partition]
        if value is None:
            for store in stores.values():
                store.remove(key)
            return
        entry = decode_entry(bytes(value))
        if entry is not None and entry.partition in stores:
            stores[entry.partition].put(key, entry.finished_ms, bytes(value))

    def _give_up_unless_away(self) -> None:
        try:
            self._consumer.list_topics(self._topic, ASK_SECONDS)
        except KafkaException:
            self._moved_at = (
                time.monotonic()
            )  # no broker answers: an outage, not a fault of the changelog
            return
        raise ChangelogUnreadable(self._problem)
