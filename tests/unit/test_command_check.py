"""What ``order-relay check`` finds of a topic."""

from types import SimpleNamespace

import pytest

from order_relay.cli.check import Result, topic_finding
from order_relay.settings import Settings

BOTH = {"READ", "WRITE"}


def topic(partitions: int = 3, replicas: int = 3, leader: int = 1) -> SimpleNamespace:
    """The metadata of a topic."""
    one = SimpleNamespace(replicas=list(range(replicas)), leader=leader)
    return SimpleNamespace(error=None, partitions=dict.fromkeys(range(partitions), one))


@pytest.mark.parametrize(
    ("given", "allowed", "result", "text"),
    [
        (topic(), BOTH, Result.OK, "3 partitions, replication 3"),
        (topic(), None, Result.OK, "; Kafka does not tell our rights"),
        (topic(), {"READ"}, Result.FAIL, "; no right to WRITE"),
        (topic(leader=-1), BOTH, Result.FAIL, "; a partition has no leader"),
        (
            topic(partitions=1),
            BOTH,
            Result.WARN,
            "1 partition, replication 3; fewer than TOPIC_PARTITIONS=3",
        ),
        (
            topic(replicas=1),
            BOTH,
            Result.WARN,
            "replication 1; less than TOPIC_REPLICATION_FACTOR=3",
        ),
        (None, None, Result.WARN, "it does not exist yet, a worker makes it"),
    ],
)
def test_a_topic(
    given: SimpleNamespace | None, allowed: set[str] | None, result: Result, text: str
) -> None:
    """Rights that are missing fail; a topic that is smaller than the settings say is a warning."""
    found = topic_finding(
        "orders", BOTH, given, allowed, Settings(topic_partitions=3, topic_replication_factor=3)
    )
    assert (found.result, found.part) == (result, "topic orders")
    assert found.text.endswith(text)


def test_a_topic_that_nothing_makes() -> None:
    """Without KAFKA_DECLARE_TOPICS a person must make it."""
    found = topic_finding("orders", BOTH, None, None, Settings(kafka_declare_topics=False))
    assert found.result is Result.FAIL
    assert "KAFKA_DECLARE_TOPICS=false" in found.text
