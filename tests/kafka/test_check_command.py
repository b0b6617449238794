"""``order-relay check`` on real Kafka: topics, their replication, and our rights."""

from collections.abc import Callable
from pathlib import Path

from tests.support.dead_letter_commands import relay_on
from tests.support.kafka_cluster import RealKafka
from tests.support.publish_command import Commands
from tests.support.stage import Stage


async def findings(commands: Commands) -> dict[str, tuple[str, str]]:
    """Each part with its result and text."""
    told = (await commands("check", "--json", statuses=(0, 1))).objects
    return {one["part"]: (one["result"], one["text"]) for one in told}


async def test_topics_and_rights(
    kafka: RealKafka, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """Kafka tells the rights; a topic that is missing is only told, and not made."""
    topic = unique("order-paid")
    stage = Stage(kafka.bootstrap_servers, topic, f"{topic}.DLQ", unique("group"), True)
    kafka.create_topic(topic, 3)
    commands = relay_on(stage, tmp_path)
    for _ in range(2):
        found = await findings(commands)
        assert found["kafka"][0] == "ok"
        assert found["kafka"][1].startswith("3 brokers at ")
        assert found[f"topic {topic}"] == ("ok", "3 partitions, replication 3")
        for missing in (stage.dlq_topic, f"{stage.group_id}-deliveries-changelog"):
            assert found[f"topic {missing}"] == ("warn", "it does not exist yet, a worker makes it")
