"""Writing the table's changelog: one record for every change, the newest of a key wins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from app.errors import RelayError
from app.log_line import LogLine
from app.publishing.producer import Acknowledged, KafkaProducer, Outcome

logger = logging.getLogger(__name__)

Settle = Callable[[Outcome | RelayError], None]

# Changes are gathered for so long: a request to Kafka costs far more than a record in it, and
# offsets are committed once a second.
GATHER_SECONDS = 0.05
# Once so many changes wait for Kafka, finishing a record does not wait for its own.
MAX_UNACKNOWLEDGED = 10_000


class ChangelogWriter(Protocol):
    """See ``Changelog``."""

    next_offsets: dict[int, int]

    def write(
        self, partition: int, key: bytes, value: bytes | None, on_done: Callable[[], None]
    ) -> None:
        """See ``Changelog.write``."""

    async def drain(self, timeout_seconds: float) -> None:
        """See ``Changelog.drain``."""

    def wait_no_longer(self) -> None:
        """See ``Changelog.wait_no_longer``."""


class Changelog:
    """Writes entries and tombstones, and tells when Kafka has them.

    The table never holds up deliveries: a change that Kafka refuses is done, too, and while
    Kafka's last answer was a refusal nobody waits for the next one.

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
        self._gathered: list[tuple[int, bytes, bytes | None, Settle]] = []
        self._waiting: set[Callable[[], None]] = set()

    def write(
        self, partition: int, key: bytes, value: bytes | None, on_done: Callable[[], None]
    ) -> None:
        """Write a change, without waiting.

        Args:
            partition: Partition of the changelog.
            key: Whose entry it is.
            value: The entry; ``None`` for a tombstone.
            on_done: Called exactly once, perhaps before this returns: nothing needs to wait for
                the change any more. Must not raise. Where nobody waits, ``nobody_waits``.
        """
        if self._refused or self._unacknowledged >= MAX_UNACKNOWLEDGED:
            on_done()
        else:
            self._waiting.add(on_done)
        self._unacknowledged += 1
        self._drained.clear()
        if not self._gathered:
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self._send)
        self._gathered.append(
            (partition, key, value, partial(self._settle, on_done, self.next_offsets))
        )

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

    def wait_no_longer(self) -> None:
        """Let nobody wait for the changes that are on their way; they stay on it."""
        waiting, self._waiting = self._waiting, set()
        for on_done in waiting:
            on_done()

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, []
        for partition, key, value, settle in gathered:
            try:
                self._producer.enqueue(
                    self.topic, settle, key=key, value=value, partition=partition
                )
            except RelayError as error:
                settle(error)

    def _settle(
        self,
        on_done: Callable[[], None],
        next_offsets: dict[int, int],
        outcome: Outcome | RelayError,
    ) -> None:
        self._unacknowledged -= 1
        if not self._unacknowledged:
            self._drained.set()
        # Of what was read before the change was written: a later reading may have missed it.
        if (
            isinstance(outcome, Acknowledged)
            and outcome.offset is not None
            and next_offsets.get(outcome.partition) == outcome.offset
        ):
            next_offsets[outcome.partition] = outcome.offset + 1
        self._note(outcome)
        if on_done in self._waiting:
            self._waiting.remove(on_done)
            on_done()

    def _note(self, outcome: Outcome | RelayError) -> None:
        if isinstance(outcome, Acknowledged):
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
                    detail=str(outcome),
                )
            )
        self._refused = True


def nobody_waits() -> None:
    """Do nothing when a change is done."""
