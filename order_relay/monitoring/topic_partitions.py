"""How many partitions the source topic has: what the workers of a group must own together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from order_relay.errors import KafkaUnavailable

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 30.0


async def watch_topic_partitions(
    ask: Callable[[], Awaitable[int]], counted: Callable[[int], None]
) -> None:
    """Tell every half minute what Kafka says, until cancelled.

    While no broker answers nothing is told: the partitions are still there.

    Args:
        ask: Asks Kafka; raises ``KafkaUnavailable`` when no broker answers.
        counted: Is given the number.
    """
    while True:
        try:
            counted(await ask())
        except KafkaUnavailable as error:
            logger.debug("Partitions not counted: %s", error)
        except Exception as error:  # noqa: BLE001 - whatever a client raises, the next round asks anew
            logger.info("Partitions not counted: %r", error)
        await asyncio.sleep(INTERVAL_SECONDS)
