"""Unfinished records near their deletion: counted by their age, whatever Kafka's clients do."""

import asyncio
import logging
from collections.abc import Mapping
from typing import NamedTuple

import pytest

from order_relay.errors import KafkaUnavailable
from order_relay.monitoring.metrics import Metrics
from order_relay.monitoring.partitions import RETENTION_INTERVAL_SECONDS, watch_retention
from tests.support.virtual_time import virtual_time

DAY = 86_400.0


class Place(NamedTuple):
    topic: str
    partition: int


ONE, TWO = Place("orders", 0), Place("orders", 1)


class Topic:
    """A topic with one record a second since the epoch; all partitions are alike."""

    def __init__(self) -> None:
        self.now = 100 * DAY
        self.retention: float | None = 4 * DAY
        self.finished: dict[Place, int | None] = {}
        self.errors: list[Exception] = []
        self.metrics = Metrics().of("order_logging")
        self.task = asyncio.create_task(
            watch_retention(self, self.retention_seconds, self.metrics, lambda: self.now)
        )

    async def retention_seconds(self) -> float | None:
        if self.errors:
            raise self.errors.pop(0)
        return self.retention

    def finished_to(self) -> dict[Place, int | None]:
        return dict(self.finished)

    async def log_ends(self, *partitions: Place) -> Mapping[Place, int]:
        return dict.fromkeys(partitions, round(100 * DAY))

    async def offsets_at(self, moment: float, *partitions: Place) -> Mapping[Place, int]:
        return dict.fromkeys(partitions, round(moment)) if moment < 100 * DAY else {}

    async def near(self, place: Place) -> float | None:
        """The gauge after another round."""
        await asyncio.sleep(RETENTION_INTERVAL_SECONDS + 1.0)
        return self.metrics.registry.get_sample_value(
            "order_relay_near_deletion_records",
            {
                "consumer": "order_logging",
                "topic": place.topic,
                "partition": str(place.partition),
            },
        )


@virtual_time
async def test_old_records_that_are_not_finished_are_counted() -> None:
    """Those in the last quarter of their time, and neither finished, young nor kept for ever."""
    topic = Topic()
    topic.finished = {ONE: round(97 * DAY) - 7, TWO: round(97 * DAY)}
    assert await topic.near(ONE) == 7
    assert await topic.near(TWO) == 0
    topic.now = 110 * DAY
    assert await topic.near(TWO) == 3 * DAY  # all there is, also where nothing new came

    topic.retention = None
    assert await topic.near(TWO) == 0
    topic.finished = {ONE: None}
    assert await topic.near(ONE) is None
    assert await topic.near(TWO) is None


@virtual_time
async def test_the_watch_says_once_that_it_cannot_know(caplog: pytest.LogCaptureFixture) -> None:
    """A missing right is for a person; an outage has a log line of its own."""
    topic = Topic()
    topic.finished = {ONE: 0}
    topic.errors = [KafkaUnavailable("a:1", "down"), TimeoutError(), *[PermissionError("no")] * 2]
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert await topic.near(ONE) is None
    (line,) = caplog.messages
    assert line.startswith("Retention not measured, so nothing warns before it ends detail=")
    assert (await topic.near(ONE) or 0) > 0
    assert not topic.task.done()
