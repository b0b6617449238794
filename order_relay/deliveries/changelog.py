"""Writing the table's changelog: one record for every change, the newest of a key wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVarTuple, Unpack

from order_relay.errors import RelayError
from order_relay.kafka.producer import KafkaProducer, KeyAndValue
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")

# Changes are gathered for so long: a request to Kafka costs far more than a record in it, and
# offsets are committed once a second.
GATHER_SECONDS = 0.05
# Once so many changes wait for Kafka, finishing a record does not wait for its own.
MAX_UNACKNOWLEDGED = 10_000


class ChangelogWriter(Protocol):
    """See ``Changelog``."""

    next_offsets: dict[int, int]

    def write(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        on_done: Callable[[Unpack[Arguments]], None],
        *arguments: *Arguments,
    ) -> None:
        """See ``Changelog.write``."""

    async def drain(self, timeout_seconds: float) -> None:
        """See ``Changelog.drain``."""

    def release_waiters(self) -> None:
        """See ``Changelog.release_waiters``."""


class Changelog:
    """Writes entries and tombstones, and tells when Kafka has them.

    Changes of a partition go to Kafka together, and are done together once Kafka has answered for
    each of them. The table never holds up deliveries: a change that Kafka refuses is done, too,
    and while Kafka's last answer had a refusal in it nobody waits for the next one.

    Attributes:
        topic: The changelog topic.
        next_offsets: By partition, where the changes begin that the stores of this worker may lack.
            Set by who has read so far; moves on with each change that was written since, until
            somebody else has written between them.
    """

    def __init__(self, producer: KafkaProducer, topic: str) -> None:
        """Write to ``topic`` by a producer that is started and stopped elsewhere."""
        self.topic = topic
        self.next_offsets: dict[int, int] = {}
        self._producer = producer
        self._unacknowledged = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._refused = False
        # What goes to Kafka next, by partition; that, and all that is on its way.
        self._gathered: dict[int, _Batch] = {}
        self._unanswered: set[_Batch] = set()

    def write(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        on_done: Callable[[Unpack[Arguments]], None],
        *arguments: *Arguments,
    ) -> None:
        """Write a change, without waiting.

        Args:
            partition: Partition of the changelog.
            key: Whose entry it is.
            value: The entry; ``None`` for a tombstone.
            on_done: Called exactly once, perhaps before this returns: nothing needs to wait for
                the change any more. Must not raise. Where nobody waits, ``nobody_waits``.
            arguments: What ``on_done`` is called with.
        """
        batch = self._gathered.get(partition)
        if batch is None or batch.next_offsets is not self.next_offsets:
            batch = self._begin(partition)
        batch.changes.append((key, value))
        self._unacknowledged += 1
        if self._refused or self._unacknowledged > MAX_UNACKNOWLEDGED:
            on_done(*arguments)
        else:
            batch.waiting.append((on_done, arguments))

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until Kafka has answered for every change, or for so long."""
        self._send()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._drained.wait()
        except TimeoutError:
            logger.warning(
                LogLine("Table deliveries: changes late", unacknowledged=self._unacknowledged)
            )

    def release_waiters(self) -> None:
        """Let nobody wait for the changes that are on their way; they stay on it."""
        for batch in list(self._unanswered):
            batch.release()

    def _begin(self, partition: int) -> _Batch:
        if partition in self._gathered:  # of what was read before
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
                self._settle(batch, [], [error])

    def _settle(
        self, batch: _Batch, offsets: Sequence[int | None], refusals: Sequence[RelayError]
    ) -> None:
        self._unacknowledged -= len(batch.changes)
        if not self._unacknowledged:
            self._drained.set()
        batch.move_on(offsets)
        self._note(refusals)
        self._unanswered.remove(batch)
        batch.release()

    def _note(self, refusals: Sequence[RelayError]) -> None:
        if not refusals:
            if self._refused:
                logger.warning(
                    LogLine("Table deliveries: Kafka takes its changelog again", topic=self.topic)
                )
            self._refused = False
            return
        if not self._refused:
            logger.error(
                LogLine(
                    "Table deliveries: Kafka refuses its changelog; deliveries go on, orders "
                    "finished meanwhile may be missing from the table later",
                    topic=self.topic,
                    detail=str(refusals[0]),
                )
            )
        self._refused = True


class _Batch:
    """Changes of one partition that go to Kafka, and are answered, together.

    Attributes:
        partition: Partition of the changelog.
        next_offsets: Those of what was read before the changes were written: a later reading may
            have missed them.
        changes: Keys and values.
        waiting: Who is to be told that nothing needs to wait any more, and with which arguments.
    """

    __slots__ = ("changes", "next_offsets", "partition", "waiting")

    def __init__(self, partition: int, next_offsets: dict[int, int]) -> None:
        self.partition = partition
        self.next_offsets = next_offsets
        self.changes: list[KeyAndValue] = []
        self.waiting: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    def move_on(self, offsets: Sequence[int | None]) -> None:
        """Move ``next_offsets`` behind the changes, unless others have written before them."""
        known = [offset for offset in offsets if offset is not None]
        if not known or self.next_offsets.get(self.partition) != min(known):
            return
        if max(known) - min(known) + 1 == len(known):
            self.next_offsets[self.partition] = max(known) + 1

    def release(self) -> None:
        """Tell all that wait."""
        waiting, self.waiting = self.waiting, []
        for on_done, arguments in waiting:
            on_done(*arguments)


def nobody_waits() -> None:
    """Do nothing when a change is done."""
