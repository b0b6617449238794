"""Metrics of the worker's process: CPU, memory, files, garbage collector, event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

PROBE_SECONDS = 0.25


def add_process_metrics(registry: CollectorRegistry) -> None:
    """Add ``process_…`` (on Linux), ``python_gc_…`` and ``python_info`` to this registry.

    prometheus-client has them in its global registry, which no worker serves.
    """
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    PlatformCollector(registry=registry)


async def watch_event_loop(lagged: Callable[[float], None]) -> None:
    """Measure four times a second how much later than asked the loop woke, until cancelled.

    All deliveries share the loop: code that blocks it delays each of them by that time.
    """
    loop = asyncio.get_running_loop()
    while True:
        asked = loop.time()
        await asyncio.sleep(PROBE_SECONDS)
        lagged(max(loop.time() - asked - PROBE_SECONDS, 0.0))
