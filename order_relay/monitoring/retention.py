"""Unfinished records that Kafka deletes soon: told before they are lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from order_relay.errors import RetryableError
from order_relay.logs.log_line import LogLine
from order_relay.monitoring.lag import TIMEOUT_SECONDS, Partition
from order_relay.monitoring.metrics import ConsumerMetrics

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0
# A record of this part of the topic's retention is near its deletion.
NEAR = 0.75

P = TypeVar("P", bound=Partition)


class Ages(Protocol[P]):
    """What the consumer knows of its partitions. The call that asks Kafka may hang or raise."""

    def finished_to(self) -> dict[P, int | None]:
        """Return the offset of each before which all is finished; ``None`` before the first."""

    async def offsets_at(self, moment: float, *partitions: P) -> Mapping[P, int]:
        """Ask Kafka for the first record of each that was made at this time or later."""

    async def log_ends(self, *partitions: P) -> Mapping[P, int]:
        """Ask Kafka for the end of these partitions."""


async def watch_retention(
    offsets: Ages[P],
    retention_seconds: Callable[[], Awaitable[float | None]],
    metrics: ConsumerMetrics,
    clock: Callable[[], float] = time.time,
) -> None:
    """Count every ten seconds the unfinished records that are near their deletion.

    Args:
        offsets: The consumer.
        retention_seconds: Asks how long Kafka keeps records; ``None``: for ever.
        metrics: Where they are shown.
        clock: Seconds since the epoch.
    """
    shown: set[P] = set()
    said = ""
    while True:
        try:
            retention = await retention_seconds()
            shown = await _measure(offsets, retention, metrics, shown, clock)
            said = ""
        except (RetryableError, TimeoutError) as error:
            logger.debug("Retention not measured: %s", error)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the next round asks anew
            problem = f"{type(error).__name__}: {error}"
            if problem != said:
                logger.warning(
                    LogLine(
                        "Retention not measured, so nothing warns before it ends", detail=problem
                    )
                )
            said = problem
        await asyncio.sleep(INTERVAL_SECONDS)


async def _measure(
    offsets: Ages[P],
    retention: float | None,
    metrics: ConsumerMetrics,
    shown: set[P],
    clock: Callable[[], float],
) -> set[P]:
    finished_to = {p: offset for p, offset in offsets.finished_to().items() if offset is not None}
    old_to: dict[P, int] = {}
    if finished_to and retention is not None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            ends = await offsets.log_ends(*finished_to)
            young = await offsets.offsets_at(clock() - NEAR * retention, *finished_to)
        old_to = {**ends, **young}
    for gone in shown - finished_to.keys():
        metrics.near_deletion.remove(gone.topic, str(gone.partition))
    for partition, finished in finished_to.items():
        near = max(old_to.get(partition, finished) - finished, 0)
        metrics.near_deletion.labels(partition.topic, str(partition.partition)).set(near)
    return set(finished_to)
