"""Writing the table's changelog: one record a change, of which the newest of a key counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from order_relay.errors import RelayError
from order_relay.kafka.producer import KafkaProducer, KeyAndValue
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

# How long changes are collected before they go to Kafka. A request costs far more than one more
# record in it, and offsets are committed only once a second.
GATHER_SECONDS = 0.05
# While more changes are unacknowledged, a record is finished without waiting for its own.
MAX_UNACKNOWLEDGED = 10_000
# Changes that Kafka refused are written again after this time, as many as may be unacknowledged.
RETRY_SECONDS = 5.0


class Changelog:
    """Writes entries and tombstones, and calls back when Kafka has answered.

    Changes of one partition are sent together, and are done together once Kafka has answered for
    all of them. The table never delays deliveries: a change that Kafka refuses is done, too, and
    after an answer with a refusal changes are done at once until Kafka accepts some again. Changes
    that may not be in Kafka are written again later, unless a newer one of their key was written or
    ``release_waiters`` was called: another worker may own their partition then.

    Attributes:
        topic: The changelog topic.
        next_offsets: By partition, the first offset that the stores of this worker may lack. The
            table sets it after reading the changelog. It moves on with each change written here,
            until another worker has written in between.
    """

    def __init__(self, producer: KafkaProducer, topic: str) -> None:
        """Write to ``topic``; the caller starts and stops the producer."""
        self.topic = topic
        self.next_offsets: dict[int, int] = {}
        self._producer = producer
        self._unacknowledged = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._refused = False
        self._gathered: dict[int, _Batch] = {}  # by partition, to be sent next
        self._unanswered: set[_Batch] = set()  # these, and all that were sent
        self._refused_changes: dict[tuple[int, bytes], bytes | None] = {}
        self._retry: asyncio.TimerHandle | None = None

    def write(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        """Write a change, without waiting.

        Args:
            partition: Partition of the changelog.
            key: The entry's key.
            value: The entry; ``None`` for a tombstone.
            on_done: Called exactly once, when nothing needs to wait for the change any more;
                perhaps before this returns. Must not raise.
        """
        batch = self._gathered.get(partition)
        if batch is None or batch.next_offsets is not self.next_offsets:
            batch = self._begin(partition)
        batch.changes.append((key, value))
        if self._refused_changes:
            self._refused_changes.pop((partition, key), None)
        self._unacknowledged += 1
        if on_done is None:
            return
        if self._refused or self._unacknowledged > MAX_UNACKNOWLEDGED:
            on_done()
        else:
            batch.waiting.append(on_done)

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until Kafka has answered for every change, ``timeout_seconds`` at most."""
        self._send()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._drained.wait()
        except TimeoutError:
            logger.warning(
                LogLine("Table deliveries: changes late", unacknowledged=self._unacknowledged)
            )

    def release_waiters(self) -> None:
        """Call back for all changes; writes in flight continue, and are not written again."""
        self.next_offsets = dict(self.next_offsets)
        self._refused_changes = {}
        for batch in list(self._unanswered):
            batch.release()

    def _begin(self, partition: int) -> _Batch:
        if partition in self._gathered:  # it belongs to the ``next_offsets`` of an earlier reading
            self._send()
        if not self._gathered:
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self._send)
        self._drained.clear()
        batch = self._gathered[partition] = _Batch(partition, self.next_offsets)
        self._unanswered.add(batch)
        return batch

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for batch in gathered.values():
            try:
                self._producer.enqueue(
                    self.topic, batch.partition, batch.changes, partial(self._settle, batch)
                )
            except RelayError as error:
                self._settle(batch, None, error)

    def _settle(self, batch: _Batch, first_offset: int | None, refusal: RelayError | None) -> None:
        self._unacknowledged -= len(batch.changes)
        self._unanswered.remove(batch)
        if not self._unanswered:
            self._drained.set()
        if first_offset is not None and first_offset == batch.next_offsets.get(batch.partition):
            # No other worker has written before the changes.
            batch.next_offsets[batch.partition] = first_offset + len(batch.changes)
        if refusal is not None and not self._refused:
            logger.error(
                LogLine(
                    "Table deliveries: Kafka refuses its changelog; deliveries go on, orders "
                    "finished meanwhile may be missing from the table later",
                    topic=self.topic,
                    detail=str(refusal),
                )
            )
        elif self._refused and refusal is None:
            logger.warning(
                LogLine("Table deliveries: Kafka takes its changelog again", topic=self.topic)
            )
        self._refused = refusal is not None
        if first_offset is None and batch.next_offsets is self.next_offsets:
            self._keep(batch)
        batch.release()

    def _keep(self, batch: _Batch) -> None:
        """Keep the changes of a batch to write them again; Kafka may have accepted some of them."""
        newer = {
            (one.partition, key)
            for one in self._unanswered
            if one.partition == batch.partition
            for key, _ in one.changes
        }
        for key, value in batch.changes:
            if len(self._refused_changes) >= MAX_UNACKNOWLEDGED:
                break
            if key is not None and (batch.partition, key) not in newer:
                self._refused_changes[batch.partition, key] = value
        if self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_SECONDS, self._write_again)

    def _write_again(self) -> None:
        self._retry = None
        changes, self._refused_changes = self._refused_changes, {}
        for (partition, key), value in changes.items():
            self.write(partition, key, value)


@dataclass(eq=False)
class _Batch:
    """Changes of one partition, which are sent and answered together.

    Attributes:
        partition: Partition of the changelog.
        next_offsets: ``Changelog.next_offsets`` when the changes were written. A later reading, or
            another owner of the partition, has its own; then the changes must neither move its
            offsets nor be written again.
        changes: Keys and values.
        waiting: The callbacks that are due when nothing needs to wait any more.
    """

    partition: int
    next_offsets: dict[int, int]
    changes: list[KeyAndValue] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def release(self) -> None:
        """Call back, once."""
        waiting, self.waiting = self.waiting, []
        for on_done in waiting:
            on_done()
