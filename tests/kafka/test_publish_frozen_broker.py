"""A producer does not take one frozen broker of three for an outage."""

import asyncio

import pytest

from order_relay.kafka.producer import KafkaProducer
from tests.support.kafka.cluster import RealKafka
from tests.support.producing import producing
from tests.support.stage import Stage, new_stage
from tests.support.waiting import eventually

pytestmark = pytest.mark.harms_brokers


async def test_a_ping_asks_another_broker(kafka: RealKafka, stage: Stage) -> None:
    """Whichever broker the producer is connected with is frozen, the others answer its ping."""
    await asyncio.to_thread(kafka.create_topic, stage.topic)
    for broker in kafka.broker_ids:
        async with producing(stage) as producer:
            await producer.ping(30)
            await asyncio.to_thread(kafka.freeze, broker)
            await producer.ping()

            async def is_known(producer: KafkaProducer = producer) -> bool:
                return await producer.partition_count(stage.topic) == 3

            await eventually(is_known, 30, "the broker that is asked to know the new topic")
            await asyncio.to_thread(kafka.revive, broker)


async def test_a_ping_asks_brokers_that_are_no_bootstrap_servers(kafka: RealKafka) -> None:
    """The only bootstrap server is frozen; the producer knows the others."""
    stage = new_stage(kafka.bootstrap_servers.split(",")[0], declare_topics=True)
    async with producing(stage) as producer:
        await producer.ping(30)
        await asyncio.to_thread(kafka.freeze, kafka.broker_ids[0])
        await producer.ping()
