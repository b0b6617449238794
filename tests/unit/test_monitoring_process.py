"""What the worker measures of itself: its process, its event loop, its share of the group."""

import asyncio
import time

import pytest

from order_relay.errors import KafkaUnavailable
from order_relay.monitoring.measurements import (
    COUNT_INTERVAL_SECONDS,
    LOOP_INTERVAL_SECONDS,
    watch_event_loop,
    watch_partition_count,
)
from order_relay.monitoring.metrics import Metrics
from tests.support.virtual_time import virtual_time


def test_the_process_is_at_the_workers_own_registry() -> None:
    """CPU, memory, files, the garbage collector and Python's version are there to be scraped."""
    metrics = Metrics()
    metrics.add_process()
    value = metrics.registry.get_sample_value

    for name in (
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ):
        assert (value(name) or 0) > 0, name
    assert value("python_gc_collections_total", {"generation": "2"}) is not None


@virtual_time
async def test_an_idle_loop_is_not_late() -> None:
    """Each probe of a loop that nothing holds up tells 0, four times a second."""
    told: list[float] = []
    watch = asyncio.create_task(watch_event_loop(told.append))
    await asyncio.sleep(10 * LOOP_INTERVAL_SECONDS)
    watch.cancel()

    assert 9 <= len(told) <= 10
    assert max(told) == pytest.approx(0)


async def test_what_blocks_the_loop_is_seen() -> None:
    """A call that blocks makes the probe that it falls on late by what is left of it."""
    told: asyncio.Queue[float] = asyncio.Queue()
    watch = asyncio.create_task(watch_event_loop(told.put_nowait))
    await asyncio.sleep(0)
    time.sleep(2 * LOOP_INTERVAL_SECONDS)  # noqa: ASYNC251 - this is what it is about
    late = await told.get()
    watch.cancel()

    assert late >= LOOP_INTERVAL_SECONDS * 0.9


@virtual_time
async def test_partitions_are_asked_for_again_and_again() -> None:
    """New partitions are seen; while Kafka does not answer, and whatever a client raises, none."""
    answers: list[int | Exception] = [3, KafkaUnavailable("a:1", "down"), ZeroDivisionError(), 6]
    told: list[int] = []

    async def ask() -> int:
        answer = answers.pop(0) if answers else 6
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = asyncio.create_task(watch_partition_count(ask, told.append))
    await asyncio.sleep(COUNT_INTERVAL_SECONDS / 2)
    assert told == [3]
    await asyncio.sleep(2 * COUNT_INTERVAL_SECONDS)
    assert told == [3]
    await asyncio.sleep(COUNT_INTERVAL_SECONDS)
    assert told == [3, 6]
    assert not watch.done()
    watch.cancel()
