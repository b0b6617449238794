"""``order-relay order`` where no worker answers, and time is over before it knows."""

import threading
from collections.abc import Callable

import pytest

from order_relay.cli.order import read_changelog
from order_relay.deliveries import recovery
from tests.support.embedded import EmbeddedKafka
from tests.support.stage import Stage


class NoTime(threading.Thread):
    """A timer whose time is over at once."""

    def __init__(self, seconds: float, over: Callable[[], None]) -> None:
        super().__init__()
        over()

    def cancel(self) -> None:
        """Nothing is left to cancel."""


async def told_in_no_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> str:
    """What it says of an order when its minute is over at once."""
    monkeypatch.setattr(threading, "Timer", NoTime)
    found = await read_changelog(stage.settings(), lambda key, partitions: 0, "1")
    assert list(found) == ["error"]
    return str(found["error"])


async def test_a_changelog_that_is_too_long_is_not_taken_for_silence(
    embedded: EmbeddedKafka, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka answered all along: what helps is a worker, which has read it."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    told = await told_in_no_time(stage, monkeypatch)
    assert told.startswith("the changelog could not be read to its end in 60 s: start a worker")


async def test_silence_is_told(fragile: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker answered: what helps is to look at Kafka, or at the address."""
    monkeypatch.setattr(recovery, "ASK_SECONDS", 0.2)
    stage = fragile.stage()
    fragile.down()
    told = await told_in_no_time(stage, monkeypatch)
    assert told == f"Kafka did not answer in 60 s at {stage.bootstrap_servers}"
