"""Ends a worker that stands still, so that whoever runs it starts another one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from order_relay.logs.log_line import LogLine
from order_relay.monitoring.health import Health

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0


class StandsStill(Exception):
    """The worker has work, and none of it moves."""


async def end_at_standstill(health: Health, end: Callable[[StandsStill], Awaitable[None]]) -> None:
    """Wait until health says that the worker is not alive, then end it.

    Args:
        health: What ``/health/live`` answers from.
        end: Ends the worker, with status 1.
    """
    while True:
        report = health.live()
        if not report.ok:
            line = LogLine("Worker stands still, it ends to be started again").with_fields(
                **report.reasons
            )
            logger.error(line)
            await end(StandsStill(str(line)))
            return
        await asyncio.sleep(INTERVAL_SECONDS)
