"""A worker asks for its group's commits at a broker that is not the coordinator any more."""

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from order_relay.kafka.committed_offsets import fetch_commits
from tests.support.kafka.cluster import RealKafka
from tests.support.stage import Stage


async def test_the_group_has_moved_to_another_broker(kafka: RealKafka, stage: Stage) -> None:
    """Kafka's answer is an error without partitions, and does not mean "no commits"."""
    topic, group = stage.topic, stage.group_id
    kafka.create_topic(topic, partitions=2)
    committed, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap_servers, group_id=group, enable_auto_commit=False
    ) as consumer:
        await consumer.commit({committed: OffsetAndMetadata(7, "relay2:7:3:0")})
        coordinator = consumer._coordinator
        for broker_id in kafka.broker_ids:
            coordinator.coordinator_id = broker_id  # a former coordinator
            commits = await fetch_commits(coordinator, [committed, other])
            assert commits == {committed: OffsetAndMetadata(7, "relay2:7:3:0"), other: None}
