"""Arguments of commands: the consumer; and what check finds about a topic."""

from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from order_relay.cli import check
from order_relay.cli.check import Result, topic_finding
from order_relay.cli.command import Application, choose_consumer
from order_relay.dead_letters.redrive_group import RedriveGroup
from order_relay.delivery.progress import Commit
from order_relay.errors import KafkaUnavailable
from order_relay.settings import Settings
from order_relay.settings.consumers import ConfiguredConsumer

BOTH = {"READ", "WRITE"}
RIGHTS = {"READ": Result.WARN, "WRITE": Result.FAIL}


def topic(
    partitions: int = 3, replicas: int = 3, leader: int = 1, in_sync: int | None = None
) -> SimpleNamespace:
    """The metadata of a topic."""
    isrs = list(range(replicas if in_sync is None else in_sync))
    one = SimpleNamespace(replicas=list(range(replicas)), isrs=isrs, leader=leader)
    return SimpleNamespace(error=None, partitions=dict.fromkeys(range(partitions), one))


@pytest.mark.parametrize(
    ("given", "allowed", "result", "text"),
    [
        (topic(), BOTH, Result.OK, "3 partitions, replication 3"),
        (topic(), None, Result.OK, "; Kafka does not tell our rights"),
        (topic(), {"READ"}, Result.FAIL, "; no right to WRITE"),
        (topic(), {"WRITE"}, Result.WARN, "; no right to READ"),
        (None, set(), Result.FAIL, "no right to DESCRIBE"),
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
        (
            topic(in_sync=2),
            BOTH,
            Result.WARN,
            "; replicas are not in sync, Kafka may refuse writes",
        ),
        (None, None, Result.WARN, "it does not exist, a worker makes it when it starts"),
    ],
)
def test_a_topic(
    given: SimpleNamespace | None, allowed: set[str] | None, result: Result, text: str
) -> None:
    """A missing right fails or warns; a topic smaller than the settings say is a warning."""
    found = topic_finding(
        "orders", RIGHTS, given, allowed, Settings(topic_replication_factor=3), width=3
    )
    assert (found.result, found.part) == (result, "topic orders")
    assert found.text.endswith(text)


def test_a_topic_that_nothing_makes() -> None:
    """Without KAFKA_DECLARE_TOPICS a person must make it."""
    settings = Settings(kafka_declare_topics=False)
    found = topic_finding("orders", RIGHTS, None, None, settings, width=3)
    assert found.result is Result.FAIL
    assert "KAFKA_DECLARE_TOPICS=false" in found.text


@pytest.mark.parametrize(
    ("commits", "result", "text"),
    [
        ({0: Commit(3, "")}, Result.FAIL, "it was deleted: letters of it were redriven before"),
        ({}, Result.WARN, "it does not exist, a worker makes it"),
        (KafkaUnavailable("broker:9092", "no answer"), Result.WARN, "it does not exist"),
    ],
    ids=str,
)
async def test_a_dead_letter_topic_that_was_deleted(
    commits: dict[int, Commit] | KafkaUnavailable,
    result: Result,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is missing, and the redriving group knows it: a worker must not silently make it anew."""
    settings = Settings()

    class Cluster:
        """All topics but the dead letters', and no rights are told."""

        def __init__(self, _: Settings) -> None:
            self.brokers = [1]
            self.topics: dict[str, Any] = {}

        async def cluster(self) -> Any:
            return self

        async def allowed(self, topics: object, groups: object) -> dict[str, set[str]]:
            return {}

    async def committed(group: RedriveGroup, partitions: object) -> dict[int, Commit]:
        if isinstance(commits, KafkaUnavailable):
            raise commits
        return commits

    monkeypatch.setattr(check, "Topics", Cluster)
    monkeypatch.setattr(RedriveGroup, "commits", committed)
    consumer = cast(ConfiguredConsumer, SimpleNamespace(name="one", settings=settings))
    found = {one.part: one async for one in check._kafka(settings, [consumer])}
    finding = found[f"topic {settings.dlq_topic}"]
    assert (finding.result, finding.text.startswith(text)) == (result, True)


def chosen(given: str | None, runs: str, declared: str) -> ConfiguredConsumer:
    """The consumer of a command: with this option, where CONSUMERS names some of all."""
    made = {name: SimpleNamespace(name=name, settings=f"of {name}") for name in declared.split()}
    app = SimpleNamespace(
        consumers=[made[name] for name in runs.split()], declared=list(made.values())
    )
    return choose_consumer(cast(Application, app), given)


@pytest.mark.parametrize(
    ("given", "runs", "declared", "expected"),
    [
        (None, "order_logging", "order_logging", "order_logging"),
        (None, "coupons", "order_logging coupons", "coupons"),
        ("coupons", "order_logging coupons", "order_logging coupons", "coupons"),
        # This worker does not run it.
        ("order_logging", "coupons", "order_logging coupons", "order_logging"),
    ],
)
def test_the_consumer_of_a_command(
    given: str | None, runs: str, declared: str, expected: str
) -> None:
    """The one that is named, or the only one that runs."""
    assert chosen(given, runs, declared).name == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "--consumer must name one of: order_logging, coupons"),
        ("coupon", "--consumer 'coupon' must name one of: order_logging, coupons"),
    ],
)
def test_one_must_be_named_where_there_are_several(given: str | None, said: str) -> None:
    """One line that names them, and the exit status of a wrong argument."""
    both = "order_logging coupons"
    with pytest.raises(click.ClickException, match=said) as raised:
        chosen(given, both, both)
    assert raised.value.exit_code == 2
