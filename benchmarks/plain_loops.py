"""Simple loops to compare the relay with: aiokafka and aiohttp, written in an afternoon.

``python -m benchmarks.plain_loops BROKERS TOPIC GROUP URL IN_FLIGHT``; 1 is one at a time.

It uses uvloop, one session and time-outs. Every second it commits up to the first record in flight:
after a kill it repeats records and loses none. A failed request is logged, and its record is lost:
there are no retries and no dead letters, and a key's order is not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import logging

import aiohttp
import uvloop
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

COMMIT_SECONDS = 1.0

logger = logging.getLogger(__name__)


async def post(session: aiohttp.ClientSession, url: str, value: bytes) -> None:
    """Deliver one record; a failure is only logged."""
    try:
        async with session.post(url, data=value) as response:
            await response.read()
            response.raise_for_status()
    except (aiohttp.ClientError, TimeoutError) as error:
        logger.warning("Not delivered: %r", error)


class Progress:
    """The offsets to commit: each partition up to the first record in flight."""

    def __init__(self) -> None:
        self._on_their_way: dict[TopicPartition, dict[int, None]] = {}
        self._next: dict[TopicPartition, int] = {}

    def start(self, message: ConsumerRecord) -> None:
        """Add a record, in the partition's order."""
        partition = TopicPartition(message.topic, message.partition)
        self._on_their_way.setdefault(partition, {})[message.offset] = None
        self._next[partition] = message.offset + 1

    def finish(self, message: ConsumerRecord) -> None:
        """Note an answer."""
        del self._on_their_way[TopicPartition(message.topic, message.partition)][message.offset]

    def offsets(self) -> dict[TopicPartition, int]:
        """The offsets to commit now."""
        return {
            partition: next(iter(self._on_their_way[partition]), after)
            for partition, after in self._next.items()
        }


async def commit(consumer: AIOKafkaConsumer, progress: Progress) -> None:
    """Commit every second; a refused commit is covered by the next one."""
    while True:
        await asyncio.sleep(COMMIT_SECONDS)
        try:
            if offsets := progress.offsets():
                await consumer.commit(offsets)
        except KafkaError as error:
            logger.warning("Not committed: %r", error)


async def deliver_all(
    consumer: AIOKafkaConsumer,
    session: aiohttp.ClientSession,
    url: str,
    progress: Progress,
    in_flight: int,
) -> None:
    """Deliver in parallel; answers may come in any order."""
    places = asyncio.Semaphore(in_flight)
    tasks: set[asyncio.Task[None]] = set()

    async def deliver(message: ConsumerRecord) -> None:
        try:
            await post(session, url, message.value)
            progress.finish(message)
        finally:
            places.release()

    async for message in consumer:
        await places.acquire()
        progress.start(message)
        task = asyncio.create_task(deliver(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def run(options: argparse.Namespace) -> None:
    consumer = AIOKafkaConsumer(
        options.topic,
        bootstrap_servers=options.brokers,
        group_id=options.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=options.in_flight),
        timeout=aiohttp.ClientTimeout(total=10, sock_connect=5),
        headers={"Content-Type": "application/json"},
    )
    progress = Progress()
    async with consumer, session, asyncio.TaskGroup() as tasks:
        tasks.create_task(commit(consumer, progress))
        await deliver_all(consumer, session, options.url, progress, options.in_flight)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_loops")
    for name in ("brokers", "topic", "group", "url"):
        parser.add_argument(name)
    parser.add_argument("in_flight", type=int)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
