"""Kafka refuses a batch: which of its records are at fault is seen only when each is sent alone."""

import asyncio

import pytest

from order_relay.errors import RelayError
from order_relay.kafka.producer import Acknowledged
from tests.support.kafka.cluster import RealKafka
from tests.support.producing import producing
from tests.support.stage import Stage

QUIET = {"producer_request_timeout_ms": 30_000, "producer_delivery_timeout_ms": 60_000}


async def refused(stage: Stage, records: list[tuple[bytes | None, bytes]]) -> list[int]:
    """Send all records at once to one partition; return the numbers of the refused ones."""
    async with producing(stage, **QUIET) as producer:
        results = await asyncio.gather(
            *(producer.send(stage.topic, key=k, value=v, partition=0) for k, v in records),
            return_exceptions=True,
        )
    assert all(isinstance(one, Acknowledged | RelayError) for one in results)
    found = {row.value for row in await stage.records()}
    numbers = [n for n, one in enumerate(results) if isinstance(one, RelayError)]
    assert found == {value for n, (_, value) in enumerate(records) if n not in numbers}
    return numbers


@pytest.mark.parametrize(
    ("config", "guilty"),
    [
        ({"max.message.bytes": "20000"}, (b"k", b"x" * 30_000)),
        ({"cleanup.policy": "compact"}, (None, b"without a key")),
    ],
    ids=["too large", "compacted"],
)
async def test_only_the_record_at_fault_is_refused(
    kafka: RealKafka,
    stage: Stage,
    config: dict[str, str],
    guilty: tuple[bytes | None, bytes],
) -> None:
    """The batch is over the topic's limit, or one record has no key in a compacted topic."""
    await asyncio.to_thread(kafka.create_topic, stage.topic, 3, configs=config)
    records: list[tuple[bytes | None, bytes]] = [(b"k", b"%03d" % n * 300) for n in range(400)]
    records[150] = guilty
    assert await refused(stage, records) == [150]
