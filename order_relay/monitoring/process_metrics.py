"""What the worker's process says of itself: CPU, memory, files, the collector, the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

PROBE_SECONDS = 0.25


def add_process_metrics(registry: CollectorRegistry) -> None:
    """Show ``process_…`` (on Linux), ``python_gc_…`` and ``python_info`` at this registry too.

    Prometheus' client keeps them at its global registry, which no worker serves.
    """
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    PlatformCollector(registry=registry)


async def watch_event_loop(lagged: Callable[[float], None]) -> None:
    """Tell four times a second how much later than asked the loop woke us, until cancelled.

    All deliveries share the loop: whatever blocks it holds up each of them by that time.
    """
    loop = asyncio.get_running_loop()
    while True:
        asked = loop.time()
        await asyncio.sleep(PROBE_SECONDS)
        lagged(max(loop.time() - asked - PROBE_SECONDS, 0.0))
