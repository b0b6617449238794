"""Pyrallel Consumer: its asyncio engine, order by key, a POST by aiohttp on uvloop.

``peer.py SERVERS TOPIC GROUP URL IN_FLIGHT``
"""

from __future__ import annotations

import logging
import sys

import aiohttp
import uvloop
from pyrallel_consumer import PyrallelConsumer
from pyrallel_consumer.config import KafkaConfig
from pyrallel_consumer.dto import ExecutionMode, OrderingMode, WorkItem


async def run(servers: str, topic: str, group: str, url: str, in_flight: int) -> None:
    config = KafkaConfig(BOOTSTRAP_SERVERS=servers, CONSUMER_GROUP=group, dlq_enabled=False)
    # It pauses its consumer when more than max_in_flight are polled, and at each pause librdkafka
    # drops the fetched records: the default of 1,000 a poll is half as fast.
    config.parallel_consumer.poll_batch_size = 10_000
    config.parallel_consumer.ordering_mode = OrderingMode.KEY_HASH
    config.parallel_consumer.execution.mode = ExecutionMode.ASYNC
    config.parallel_consumer.execution.max_in_flight = in_flight
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight),
        timeout=aiohttp.ClientTimeout(total=10, sock_connect=5),
        headers={"Content-Type": "application/json"},
    )

    async def deliver(item: WorkItem) -> None:
        async with session.post(url, data=item.payload) as response:
            await response.read()
            response.raise_for_status()

    async with session:
        consumer = PyrallelConsumer(config, deliver, topic)
        await consumer.start()
        await consumer.wait_closed()


def main() -> None:
    servers, topic, group, url, in_flight = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    uvloop.run(run(servers, topic, group, url, int(in_flight)))


if __name__ == "__main__":
    main()
