"""``order-relay order`` where no worker answers, and time is over before it knows."""

import pytest

from order_relay.cli import order
from order_relay.kafka import topic_reader
from tests.support.embedded import EmbeddedKafka
from tests.support.stage import Stage


async def told(stage: Stage) -> str:
    """What it says of an order that it does not find."""
    found = await order.read_changelog(stage.settings(), lambda key, partitions: 0, "1")
    assert list(found) == ["error"]
    return str(found["error"])


async def test_an_order_is_not_told_by_half_of_the_changelog(
    embedded: EmbeddedKafka, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka answered all along: what helps is a worker, which has read it."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    monkeypatch.setattr(order, "READ_SECONDS", 0.0)
    error = await told(stage)
    assert error.startswith("the changelog could not be read to its end in 0 s: start a worker")


async def test_silence_is_told(fragile: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker answered: what helps is to look at Kafka, or at the address."""
    monkeypatch.setattr(topic_reader, "ASK_SECONDS", 0.2)
    stage = fragile.stage()
    fragile.down()
    error = await told(stage)
    assert error.startswith("the changelog cannot be read: Kafka cannot be reached at ")
    assert stage.bootstrap_servers in error
