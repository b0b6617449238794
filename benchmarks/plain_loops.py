"""What the relay is compared with: aiokafka and aiohttp, put together in an afternoon.

``python -m benchmarks.plain_loops {one-at-a-time,unordered} BROKERS TOPIC GROUP URL IN_FLIGHT``

Both use uvloop, one session, time-outs and a commit every second. Neither retries, keeps a key's
order under failure, dead-letters, or counts. ``unordered`` also commits records that are still on
their way: killed, it loses them. That is the price of its simplicity, and what the relay's extra
work is for.
"""

from __future__ import annotations

import argparse
import asyncio
import logging

import aiohttp
import uvloop
from aiokafka import AIOKafkaConsumer

logger = logging.getLogger(__name__)


async def post(session: aiohttp.ClientSession, url: str, value: bytes) -> None:
    """Deliver one record; a failure is only logged."""
    try:
        async with session.post(url, data=value) as response:
            await response.read()
            response.raise_for_status()
    except (aiohttp.ClientError, TimeoutError) as error:
        logger.warning("Not delivered: %r", error)


async def one_at_a_time(
    consumer: AIOKafkaConsumer, session: aiohttp.ClientSession, url: str
) -> None:
    """Deliver record by record."""
    async for message in consumer:
        await post(session, url, message.value)


async def unordered(
    consumer: AIOKafkaConsumer, session: aiohttp.ClientSession, url: str, in_flight: int
) -> None:
    """Deliver side by side, in whatever order the answers come."""
    places = asyncio.Semaphore(in_flight)
    tasks: set[asyncio.Task[None]] = set()

    async def deliver(value: bytes) -> None:
        try:
            await post(session, url, value)
        finally:
            places.release()

    async for message in consumer:
        await places.acquire()
        task = asyncio.create_task(deliver(message.value))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def run(options: argparse.Namespace) -> None:
    consumer = AIOKafkaConsumer(
        options.topic,
        bootstrap_servers=options.brokers,
        group_id=options.group,
        auto_offset_reset="earliest",
        enable_auto_commit=True,
        auto_commit_interval_ms=1000,
    )
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=options.in_flight),
        timeout=aiohttp.ClientTimeout(total=10, sock_connect=5),
        headers={"Content-Type": "application/json"},
    )
    async with consumer, session:
        if options.loop == "unordered":
            await unordered(consumer, session, options.url, options.in_flight)
        else:
            await one_at_a_time(consumer, session, options.url)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_loops")
    parser.add_argument("loop", choices=("one-at-a-time", "unordered"))
    for name in ("brokers", "topic", "group", "url"):
        parser.add_argument(name)
    parser.add_argument("in_flight", type=int)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
