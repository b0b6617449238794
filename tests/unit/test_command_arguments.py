"""Arguments of commands: the consumer; and what check finds about a topic."""

from types import SimpleNamespace
from typing import cast

import click
import pytest

from order_relay.cli.check import Result, topic_finding
from order_relay.cli.command import Application, choose_consumer
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
