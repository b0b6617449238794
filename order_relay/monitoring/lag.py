"""Lag, what is not finished, and whether Kafka answers: measured beside the deliveries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

from order_relay.errors import KafkaUnavailable
from order_relay.monitoring.health import Health
from order_relay.monitoring.metrics import ConsumerMetrics

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
# A request may take longer than a round; the next round then waits for it.
TIMEOUT_SECONDS = 5.0


class Partition(Protocol):
    """A partition of a topic, as a Kafka client names it."""

    @property
    def topic(self) -> str:
        """The topic's name."""

    @property
    def partition(self) -> int:
        """The partition's number."""


P = TypeVar("P", bound=Partition)


class Offsets(Protocol[P]):
    """What the consumer knows of its partitions. The calls that ask Kafka may hang or raise."""

    async def check_group(self) -> None:
        """Let the group's coordination go on after an error."""

    async def kafka_answers(self) -> bool:
        """Whether a broker answers the consumer's own client."""

    def standstill(self) -> str | None:
        """Return what of the intake has not moved since the last call, or ``None``."""

    def committed_offsets(self) -> dict[P, int | None]:
        """Return the committed offset of every assigned partition; ``None`` without one."""

    def finished_to(self) -> dict[P, int | None]:
        """Return the offset of each before which all is finished; ``None`` before the first."""

    async def highwaters(self, *partitions: P) -> Mapping[P, int]:
        """Ask Kafka how far these partitions can be read: up to the first open transaction."""

    async def log_ends(self, *partitions: P) -> Mapping[P, int]:
        """Ask Kafka for the end of these partitions, open transactions or not."""

    async def earliest_offsets(self, *partitions: P) -> Mapping[P, int]:
        """Ask Kafka for the beginning of these partitions."""


class Reachable(Protocol):
    """Asks Kafka something small."""

    async def ping(self) -> None:
        """Return when a broker answered.

        Raises:
            KafkaUnavailable: None did.
        """


async def watch_lag(
    offsets: Offsets[P],
    kafka: Reachable,
    metrics: ConsumerMetrics,
    health: Health,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Keep the lag metrics and what health knows of Kafka true, until cancelled.

    Args:
        offsets: The consumer.
        kafka: Says whether Kafka is there.
        metrics: Where the lag is shown.
        health: What is to know it.
        clock: Monotonic seconds, the same as that of ``health``.
    """
    seen: dict[P, Seen] = {}
    while True:
        try:
            fault, consumer_answered = await _look_at_intake(offsets)
            await _ping(kafka, health, clock)
            health.note_intake(fault, consumer_answered=consumer_answered)
            seen = await _measure(offsets, metrics, health, seen, clock)
        except (KafkaUnavailable, TimeoutError) as error:
            health.unfinished = 0
            logger.debug("Lag not measured: %s", error)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the next round asks anew
            health.unfinished = 0
            logger.info("Lag not measured: %r", error)
        await asyncio.sleep(INTERVAL_SECONDS)


async def _ping(kafka: Reachable, health: Health, clock: Callable[[], float]) -> None:
    try:
        await kafka.ping()
    except BaseException:
        health.note_intake(None)  # without Kafka it has nothing to do
        raise
    health.kafka_seen_at = clock()


async def _look_at_intake(offsets: Offsets[P]) -> tuple[str | None, bool]:
    """Return what of the intake stands still, and whether Kafka answers the consumer's client."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await offsets.check_group()
    except TimeoutError:
        return "the thread of Kafka's client does not answer", False
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            answered = await offsets.kafka_answers()
    except Exception as error:  # noqa: BLE001 - whatever it raises, it has no answer
        logger.debug("No answer to the consumer's client: %r", error)
        answered = False
    # Asked in any case: each answer is about the time since the last one.
    fault = offsets.standstill()
    return (fault, True) if answered else ("no broker answers the consumer's client", False)


class Seen(NamedTuple):
    """How far a partition could be read.

    Attributes:
        readable_to: Its end, or the first offset of an open transaction.
        since: When it was last the end, or first this offset; monotonic seconds.
    """

    readable_to: int
    since: float


async def _measure(
    offsets: Offsets[P],
    metrics: ConsumerMetrics,
    health: Health,
    seen: dict[P, Seen],
    clock: Callable[[], float],
) -> dict[P, Seen]:
    committed = offsets.committed_offsets()
    finished_to = offsets.finished_to()
    ends: Mapping[P, int] = {}
    readable: Mapping[P, int] = {}
    starts: Mapping[P, int] = {}
    async with asyncio.timeout(TIMEOUT_SECONDS):
        if committed:
            # In this order: what comes in between is not taken for an open transaction.
            ends = await offsets.log_ends(*committed)
            readable = await offsets.highwaters(*committed)
        if uncommitted := [p for p, offset in committed.items() if offset is None]:
            starts = await offsets.earliest_offsets(*uncommitted)
    for gone in seen.keys() - committed.keys():
        metrics.lag.remove(gone.topic, str(gone.partition))
        metrics.transaction_open.remove(gone.topic, str(gone.partition))
    now = clock()
    unfinished = 0
    found = {}
    for partition, offset in committed.items():
        start = starts.get(partition, 0) if offset is None else offset
        to = readable.get(partition, start)
        end = max(ends.get(partition, to), to)
        # What cannot be read yet is no work for this worker: a restart would not help.
        finished = finished_to.get(partition)
        unfinished += max(to - (start if finished is None else finished), 0)
        before = seen.get(partition)
        stands = before is not None and before.readable_to == to < end
        found[partition] = before if before is not None and stands else Seen(to, now)
        labels = partition.topic, str(partition.partition)
        metrics.lag.labels(*labels).set(max(end - start, 0))
        metrics.transaction_open.labels(*labels).set(now - found[partition].since)
    health.unfinished = unfinished
    return found
