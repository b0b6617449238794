"""Dead in-sync replicas show that a broker without a quorum tells outdated metadata."""

from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from order_relay.errors import KafkaUnavailable
from order_relay.kafka import availability
from order_relay.settings import load_settings
from tests.support.runtimes import runtime

TOPIC = "order-paid-events"


@pytest.mark.parametrize(
    ("in_sync", "dead", "answers"),
    [
        ([1, 2, 3], set(), True),
        ([1, 2, 3], {1}, True),
        ([1, 2, 3], {1, 3}, False),
        ([1, 2], {1}, False),  # the second broker died while the first was down
        ([2], {1, 3}, True),  # with a quorum the last replica goes on alone
        ([1, 2, 4], {1}, False),  # metadata does not name broker 4
    ],
)
async def test_half_of_the_replicas_are_dead(
    in_sync: list[int], dead: set[int], answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a quorum, they would not be in sync any more; one may have died a moment ago."""

    async def answer(settings: object, host: str, port: int, timeout: float) -> bool:
        return port not in dead

    monkeypatch.setattr(availability, "broker_answers", answer)
    brokers = [SimpleNamespace(nodeId=one, host="b", port=one) for one in (1, 2, 3)]
    partition = SimpleNamespace(topic=TOPIC, partition=0, isr=in_sync)
    check = availability._check_replicas(
        load_settings(), SimpleNamespace(brokers=lambda: brokers), [partition]
    )
    if answers:
        await check
    else:
        with pytest.raises(KafkaUnavailable, match=f"of {TOPIC}-0, these in-sync replicas"):
            await check


async def test_a_worker_asks_for_its_own_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other partitions without a leader concern other workers."""
    asked: list[Any] = []

    async def check(settings: object, *args: object) -> None:
        asked.append(args)

    monkeypatch.setattr("order_relay.worker.consumer_runtime.check_availability", check)
    with runtime(load_settings()) as made:
        monkeypatch.setattr(made._reader, "committed_offsets", lambda: {TP(TOPIC, 2): None})
        await made.check_brokers()
    assert asked == [("logging-consumer-group", TOPIC, {2})]
