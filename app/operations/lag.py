"""Lag, what is not finished, and whether Kafka answers: measured beside the deliveries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Protocol, TypeVar

from app.errors import KafkaUnavailable
from app.operations.health import Health
from app.operations.metrics import Metrics

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
        """Ask Kafka for the end of these partitions."""

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
    offsets: Offsets[P], kafka: Reachable, metrics: Metrics, health: Health
) -> None:
    """Keep the lag metrics and what health knows of Kafka true, until cancelled."""
    shown: set[P] = set()
    while True:
        try:
            fault, consumer_answered = await _look_at_intake(offsets)
            await _ping(kafka, health)
            health.note_intake(fault, consumer_answered=consumer_answered)
            shown = await _measure(offsets, metrics, health, shown)
        except (KafkaUnavailable, TimeoutError) as error:
            health.unfinished = 0
            logger.debug("Lag not measured: %s", error)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the next round asks anew
            health.unfinished = 0
            logger.info("Lag not measured: %r", error)
        await asyncio.sleep(INTERVAL_SECONDS)


async def _ping(kafka: Reachable, health: Health) -> None:
    try:
        await kafka.ping()
    except BaseException:
        health.note_intake(None)  # without Kafka it has nothing to do
        raise
    health.kafka_seen_at = time.monotonic()


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


async def _measure(offsets: Offsets[P], metrics: Metrics, health: Health, shown: set[P]) -> set[P]:
    committed = offsets.committed_offsets()
    finished_to = offsets.finished_to()
    ends: Mapping[P, int] = {}
    starts: Mapping[P, int] = {}
    if committed:
        ends = await asyncio.wait_for(offsets.highwaters(*committed), TIMEOUT_SECONDS)
    if uncommitted := [p for p, offset in committed.items() if offset is None]:
        starts = await asyncio.wait_for(offsets.earliest_offsets(*uncommitted), TIMEOUT_SECONDS)
    lags = {}
    unfinished = 0
    for partition, offset in committed.items():
        start = starts.get(partition, 0) if offset is None else offset
        end = ends.get(partition, start)
        lags[partition] = max(end - start, 0)
        finished = finished_to.get(partition)
        unfinished += max(end - (start if finished is None else finished), 0)
    for gone in shown - set(lags):
        metrics.lag.remove(gone.topic, str(gone.partition))
    for partition, lag in lags.items():
        metrics.lag.labels(partition.topic, str(partition.partition)).set(lag)
    health.unfinished = unfinished
    return set(lags)
