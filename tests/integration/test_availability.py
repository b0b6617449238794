"""Whether Kafka works for a consumer, on the embedded cluster."""

from functools import partial

import pytest

from order_relay.errors import KafkaUnavailable
from order_relay.kafka import availability
from order_relay.kafka.availability import check_availability
from order_relay.kafka.topics import Topics
from tests.support.embedded import EmbeddedKafka
from tests.support.stage import Stage
from tests.support.waiting import eventually

GROUP_AUTHORIZATION_FAILED = 30
OFFSET_FETCH = 9


@pytest.fixture(autouse=True)
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a silent broker sooner than in production."""
    monkeypatch.setattr(availability, "CHECK_SECONDS", 2.0)
    monkeypatch.setattr(availability, "REPLICA_SECONDS", 1.0)


async def answers(stage: Stage, *partitions: int) -> bool:
    """Whether all that a worker with these partitions needs answers."""
    try:
        await check_availability(stage.settings(), stage.group_id, stage.topic, partitions)
    except KafkaUnavailable:
        return False
    return True


async def test_a_lone_broker_that_answers_is_not_all_of_kafka(fragile: EmbeddedKafka) -> None:
    """It tells the partitions as they were, also those of which it is the leader."""
    stage = fragile.stage()
    cluster = await Topics(stage.settings()).cluster()
    leader = cluster.topics[stage.topic].partitions[0].leader
    others = cluster.brokers.keys() - {leader}
    assert await answers(stage)
    fragile.down(*others)
    assert await Topics(stage.settings()).partition_counts()
    assert not await answers(stage)
    assert not await answers(stage, 0)
    fragile.up(*others)
    await eventually(partial(answers, stage))


async def test_no_broker_and_a_frozen_one(fragile: EmbeddedKafka) -> None:
    """A check ends in time."""
    stage = fragile.stage()
    fragile.freeze()
    assert not await answers(stage)
    fragile.thaw()
    fragile.down()
    assert not await answers(stage)


async def test_a_refusal_is_an_answer(fragile: EmbeddedKafka) -> None:
    """Without the right to read the group, Kafka answers nevertheless."""
    stage = fragile.stage()
    fragile.refuse(GROUP_AUTHORIZATION_FAILED, 1, OFFSET_FETCH)
    assert await answers(stage)
