"""Joining the redrive group at slow brokers."""

import pytest

from order_relay.dead_letters import redrive_group
from order_relay.dead_letters.redrive_group import RedriveGroup
from order_relay.errors import KafkaUnavailable
from order_relay.settings import Settings
from tests.support.embedded import PARTITIONS, EmbeddedKafka


async def test_joining_may_take_longer_than_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers delay the first member of a group: that is not an outage."""
    monkeypatch.setattr(redrive_group, "ASK_SECONDS", 1.0)
    with EmbeddedKafka() as kafka:
        kafka.first_join_delay(2_000)
        async with group(kafka).membership(set(range(PARTITIONS))) as membership:
            assert membership.partitions == set(range(PARTITIONS))


async def test_joining_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that hangs is an outage, not another redrive."""
    monkeypatch.setattr(redrive_group, "JOIN_SECONDS", 0.5)
    with EmbeddedKafka() as kafka:
        kafka.first_join_delay(10_000)
        with pytest.raises(KafkaUnavailable):
            async with group(kafka).membership(set(range(PARTITIONS))):
                pass


def group(kafka: EmbeddedKafka) -> RedriveGroup:
    """Return the group of a new stage."""
    stage = kafka.stage()
    return RedriveGroup(
        Settings(
            kafka_bootstrap_servers=stage.bootstrap_servers,
            consumer_group_id=stage.group_id,
            dlq_topic=stage.dlq_topic,
        )
    )
