"""Lag, reachability and retention: measured regularly, whatever Kafka's clients do."""

import asyncio
import logging
from collections.abc import Mapping
from typing import cast
from unittest.mock import patch

import pytest
from faust.types import TP

from order_relay.errors import KafkaUnavailable
from order_relay.kafka.consumer import RelayConsumer
from order_relay.monitoring.health import INTAKE_STALL_SECONDS, Report, end_at_standstill
from order_relay.monitoring.measurements import (
    LAG_INTERVAL_SECONDS,
    RETENTION_INTERVAL_SECONDS,
    TIMEOUT_SECONDS,
    watch_lag,
    watch_retention,
)
from order_relay.monitoring.metrics import ConsumerMetrics, Metrics
from tests.support.standing_health import standing_health

pytestmark = pytest.mark.virtual_time

NEVER = float("-inf")
DAY = 86_400
ONE, TWO = TP("orders", 0), TP("orders", 1)


class FakeKafka:
    """A consumer and a broker whose offsets a test sets; one error is raised per round.

    Attributes:
        held_back: Records behind an open transaction, in addition to the readable ones.
    """

    def __init__(self) -> None:
        self.committed: dict[TP, int | None] = {}
        self.finished: dict[TP, int | None] = {}
        self.ends: dict[TP, int] = {}
        self.held_back: dict[TP, int] = {}
        self.starts: dict[TP, int] = {}
        self.errors: list[Exception] = []
        self.partitions = 3
        self.hangs = False
        self.rounds = 0
        self.group_hangs = False
        self.answers_consumer: bool | Exception | None = True
        self.stands_still: str | None = None
        self.has_quorum = True
        self.checks = 0

    async def check_brokers(self) -> None:
        self.checks += 1
        if not self.has_quorum:
            raise KafkaUnavailable("a:1", "no answer from the coordinator of orders")

    async def check_group(self) -> None:
        self.rounds += 1
        if self.group_hangs:
            await asyncio.get_running_loop().create_future()

    async def kafka_answers(self) -> bool:
        if isinstance(self.answers_consumer, Exception):
            raise self.answers_consumer
        if self.answers_consumer is None:
            await asyncio.get_running_loop().create_future()
        return bool(self.answers_consumer)

    def standstill(self) -> str | None:
        return self.stands_still

    async def count_partitions(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return self.partitions

    def committed_offsets(self) -> dict[TP, int | None]:
        return dict(self.committed)

    def finished_to(self) -> dict[TP, int | None]:
        return dict(self.finished)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return {one: self.ends[one] for one in partitions if one in self.ends}

    async def log_ends(self, *partitions: TP) -> Mapping[TP, int]:
        ends = {one: self.ends[one] for one in partitions if one in self.ends}
        return {one: end + self.held_back.get(one, 0) for one, end in ends.items()}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {one: self.starts[one] for one in partitions if one in self.starts}

    async def offsets_at(self, moment: float, *partitions: TP) -> Mapping[TP, int]:
        """Each partition has one record a second since the epoch."""
        return {one: round(moment) for one in partitions if moment < self.ends[one]}


def shown(metrics: ConsumerMetrics, name: str, tp: TP) -> float | None:
    """The gauge of a partition."""
    labels = {"consumer": "order_logging", "topic": tp.topic, "partition": str(tp.partition)}
    return metrics.registry.get_sample_value(f"order_relay_{name}", labels)


class Watched:
    """A watch over a fake Kafka. Make it inside the loop."""

    def __init__(
        self, committed: Mapping[TP, int | None] | None = None, ends: Mapping[TP, int] | None = None
    ) -> None:
        self.kafka = FakeKafka()
        self.kafka.committed = dict(committed or {})
        self.kafka.ends = dict(ends or {})
        self.metrics = Metrics().of("order_logging")
        clock = asyncio.get_running_loop().time
        self.health = standing_health(clock=clock, external_logger_timeout_seconds=1.0)
        self.task = asyncio.create_task(
            watch_lag(
                cast(RelayConsumer, self.kafka),
                self.kafka.count_partitions,
                self.metrics,
                self.health,
                clock,
                check_brokers=self.kafka.check_brokers,
            )
        )

    def lag(self, *partitions: TP) -> list[float | None]:
        return [shown(self.metrics, "consumer_lag", one) for one in partitions]

    def transaction_seconds(self, tp: TP) -> float | None:
        return shown(self.metrics, "transaction_open_seconds", tp)

    async def another_round(self) -> None:
        before = self.kafka.rounds
        await asyncio.sleep(LAG_INTERVAL_SECONDS + 0.5)
        assert self.kafka.rounds > before


async def test_new_partitions_are_seen() -> None:
    """If Kafka does not answer, or a client raises an error, the last number stays."""
    watched = Watched()
    found = []
    for partitions, error in (
        (3, None), (6, KafkaUnavailable("a:1", "down")), (6, ZeroDivisionError()), (6, None),
    ):  # fmt: skip
        watched.kafka.partitions = partitions
        watched.kafka.errors = [error] if error is not None else []
        await watched.another_round()
        labels = {"consumer": "order_logging"}
        gauge = "order_relay_topic_partitions"
        found.append(watched.metrics.registry.get_sample_value(gauge, labels))
    assert found == [3, 3, 3, 6]


async def test_lag_is_what_lies_behind_the_commit() -> None:
    """Or behind the beginning if there is none; finished records are not waiting work."""
    watched = Watched({ONE: 40, TWO: None}, {ONE: 100, TWO: 30})
    watched.kafka.finished = {ONE: 97, TWO: None}
    watched.kafka.starts = {TWO: 10}
    assert watched.health.kafka_seen_at == NEVER
    await watched.another_round()
    assert watched.health.kafka_seen_at > NEVER
    assert watched.lag(ONE, TWO) == [60, 20]
    assert watched.health.unfinished == 23

    watched.kafka.finished = {ONE: 100, TWO: 30}
    await watched.another_round()
    assert watched.lag(ONE, TWO) == [60, 20]
    assert watched.health.unfinished == 0

    # Ends that were measured before the commit, or are missing.
    watched.kafka.committed, watched.kafka.ends = {ONE: 7, TWO: 7}, {ONE: 5}
    await watched.another_round()
    assert watched.lag(ONE, TWO) == [0, 0]


async def test_what_an_open_transaction_holds_back_is_lag_and_no_work() -> None:
    """A gauge shows for how long; the next transaction resets it.

    Transactions that come and go, and a quiet partition before the first one, do not add up.
    """
    watched = Watched({ONE: 40, TWO: 40}, {ONE: 40, TWO: 40})
    watched.kafka.finished = {ONE: 40, TWO: 40}
    for _ in range(5):
        await watched.another_round()
        assert watched.transaction_seconds(ONE) == 0
    watched.kafka.held_back = {ONE: 3, TWO: 4}
    for moved in range(5):
        await watched.another_round()
        assert watched.lag(ONE, TWO) == [3, 4 + moved]
        assert watched.health.unfinished == moved
        watched.kafka.ends[TWO] += 1
    assert (watched.transaction_seconds(ONE) or 0) >= 4 * LAG_INTERVAL_SECONDS
    assert (watched.transaction_seconds(TWO) or 0) <= 2 * LAG_INTERVAL_SECONDS

    watched.kafka.held_back = {}
    watched.kafka.ends[ONE] = 43
    await watched.another_round()
    assert (watched.lag(ONE), watched.transaction_seconds(ONE)) == ([3], 0)
    watched.kafka.committed = {TWO: 40}
    await watched.another_round()
    assert watched.transaction_seconds(ONE) is None


async def test_what_cannot_be_measured_is_not_taken_for_work() -> None:
    """A partition without a leader blocks all measuring: earlier values are outdated."""
    watched = Watched({ONE: 0}, {ONE: 5})
    await watched.another_round()
    assert watched.health.unfinished == 5
    watched.kafka.hangs = True
    await asyncio.sleep(LAG_INTERVAL_SECONDS + TIMEOUT_SECONDS)

    assert watched.health.kafka_answers()
    assert watched.lag(ONE) == [5]
    assert watched.health.unfinished == 0


async def test_partitions_that_went_are_not_shown() -> None:
    """After a rebalance only the worker's own partitions have a lag."""
    watched = Watched({ONE: 0, TWO: 0}, {ONE: 5, TWO: 6})
    await watched.another_round()
    watched.kafka.committed = {TWO: 0}
    await watched.another_round()
    assert watched.lag(ONE, TWO) == [None, 6]

    watched.kafka.committed = {}
    await watched.another_round()
    assert watched.lag(TWO) == [None]
    assert watched.health.unfinished == 0


async def test_the_watch_outlives_every_error() -> None:
    """If a client raises an error or hangs, the next round measures again."""
    watched = Watched({ONE: 0}, {ONE: 5})
    watched.kafka.errors = [KafkaUnavailable("a:1", "down"), ZeroDivisionError(), TimeoutError()]
    for _ in range(3):
        assert watched.lag(ONE) == [None]
        assert watched.health.kafka_seen_at == NEVER
        await watched.another_round()
    assert watched.lag(ONE) == [5]
    watched.kafka.hangs = True
    watched.kafka.ends = {ONE: 9}
    await asyncio.sleep(LAG_INTERVAL_SECONDS + TIMEOUT_SECONDS)
    watched.kafka.hangs = False
    await asyncio.sleep(LAG_INTERVAL_SECONDS + TIMEOUT_SECONDS)

    assert watched.lag(ONE) == [9]
    assert not watched.task.done()


async def test_health_hears_of_an_intake_that_stands_still() -> None:
    """Only while Kafka answers."""
    watched = Watched()
    watched.kafka.stands_still = "flow is suspended"
    await watched.another_round()
    assert watched.health.live().reasons["intake"] == "flow is suspended"
    watched.kafka.errors = [KafkaUnavailable("a:1", "down")]
    await asyncio.sleep(LAG_INTERVAL_SECONDS)

    assert "intake" not in watched.health.live().reasons


@pytest.mark.parametrize("sign", ["intake", "consumer", "lag"])
async def test_one_broker_without_a_quorum_is_an_outage(sign: str) -> None:
    """It still tells the number of partitions, but the worker must not end itself."""
    watched = Watched({ONE: 0}, {ONE: 5})
    watched.health.assigned_partitions = 1
    ended: list[Exception] = []

    async def end(fault: Exception) -> None:
        ended.append(fault)

    ending = asyncio.create_task(end_at_standstill(watched.health, end))
    await watched.another_round()
    await watched.another_round()
    assert (watched.health.ready().ok, watched.kafka.checks) == (True, 1)

    watched.kafka.has_quorum = False
    kafka = watched.kafka
    for passed in range(0, 2 * int(INTAKE_STALL_SECONDS), 20):
        kafka.stands_still = "no answer to a fetch of orders-0" if sign == "intake" else None
        kafka.answers_consumer = sign != "consumer"
        kafka.hangs = sign == "lag"
        await asyncio.sleep(17)
        assert watched.health.ready().ok == (passed < 20)
        kafka.stands_still, kafka.answers_consumer, kafka.hangs = None, True, False
        await asyncio.sleep(3)
    assert not watched.health.kafka_answers()
    assert not ended

    kafka.has_quorum = True
    await asyncio.sleep(2 * LAG_INTERVAL_SECONDS)
    assert watched.health.ready().ok
    kafka.stands_still = "flow is suspended"
    await asyncio.sleep(INTAKE_STALL_SECONDS + 10)
    assert len(ended) == 1
    ending.cancel()


@pytest.mark.parametrize("answer", [False, None, RuntimeError("closed")])
async def test_health_hears_of_a_consumer_that_gets_no_answer(
    answer: bool | Exception | None,
) -> None:
    """If a broker answers only the producer, the worker is not ready."""
    watched = Watched()
    watched.health.assigned_partitions = 1
    await watched.another_round()
    assert watched.health.ready().ok
    watched.kafka.answers_consumer = answer
    await asyncio.sleep(60)

    assert watched.health.ready().reasons["consumer_connected"] is False
    assert watched.health.live().reasons["intake"] == "no broker answers the consumer's client"
    watched.kafka.answers_consumer = True
    await asyncio.sleep(10)
    assert watched.health.ready().ok


async def test_health_hears_of_a_thread_that_does_not_answer() -> None:
    """It cannot be asked, and all other figures would stay as they were."""
    watched = Watched()
    watched.kafka.group_hangs = True
    await asyncio.sleep(60)

    assert "thread" in str(watched.health.live().reasons["intake"])


async def test_a_worker_that_stands_still_is_ended() -> None:
    """Once, with what stands still."""
    watched = Watched()
    ended: list[Exception] = []

    async def end(fault: Exception) -> None:
        ended.append(fault)

    watch = asyncio.create_task(end_at_standstill(watched.health, end))
    await asyncio.sleep(2 * INTAKE_STALL_SECONDS)
    assert not ended
    watched.kafka.stands_still = "flow is suspended"
    await asyncio.sleep(INTAKE_STALL_SECONDS)
    assert not ended
    await asyncio.sleep(10)

    assert len(ended) == 1
    assert "flow is suspended" in str(ended[0])
    assert watch.done()


async def test_a_process_that_was_stopped_and_goes_on_does_not_end() -> None:
    """The first check after SIGCONT comes before the time-outs of attempts in flight."""
    health = standing_health()
    looks = [True, False, True, False, True, True]
    ended: list[Exception] = []

    def live() -> Report:
        return Report(looks.pop(0), {})

    async def end(fault: Exception) -> None:
        ended.append(fault)

    with patch.object(health, "live", live):
        watch = asyncio.create_task(end_at_standstill(health, end))
        await asyncio.sleep(9)
        assert not ended
        assert len(looks) == 1
    watch.cancel()


class Kept:
    """A watch over a topic of a hundred days, with a retention of four."""

    def __init__(self) -> None:
        self.now = 100.0 * DAY
        self.retention: float | None = 4.0 * DAY
        self.errors: list[Exception] = []
        self.kafka = FakeKafka()
        self.kafka.ends = {ONE: 100 * DAY, TWO: 100 * DAY}
        self.metrics = Metrics().of("order_logging")
        self.task = asyncio.create_task(
            watch_retention(
                cast(RelayConsumer, self.kafka),
                self.retention_seconds,
                self.metrics,
                lambda: self.now,
            )
        )

    async def retention_seconds(self) -> float | None:
        if self.errors:
            raise self.errors.pop(0)
        return self.retention

    async def near(self, tp: TP) -> float | None:
        """The gauge after another round."""
        await asyncio.sleep(RETENTION_INTERVAL_SECONDS + 1.0)
        return shown(self.metrics, "near_deletion_records", tp)


async def test_old_records_that_are_not_finished_are_counted() -> None:
    """Those in the last quarter of the retention, if it is limited."""
    topic = Kept()
    topic.kafka.finished = {ONE: 97 * DAY - 7, TWO: 97 * DAY}
    assert await topic.near(ONE) == 7
    assert await topic.near(TWO) == 0
    topic.now = 110 * DAY
    assert await topic.near(TWO) == 3 * DAY  # all records, also if no new ones came

    topic.retention = None
    assert await topic.near(TWO) == 0
    topic.kafka.finished = {ONE: None}
    assert await topic.near(ONE) is None
    assert await topic.near(TWO) is None


async def test_the_watch_says_once_that_it_cannot_know(caplog: pytest.LogCaptureFixture) -> None:
    """A missing right needs a person; an outage has its own log line."""
    topic = Kept()
    topic.kafka.finished = {ONE: 0}
    topic.errors = [KafkaUnavailable("a:1", "down"), TimeoutError(), *[PermissionError("no")] * 2]
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert await topic.near(ONE) is None
    (line,) = caplog.messages
    assert line.startswith("Retention not measured, so nothing warns before it ends detail=")
    assert (await topic.near(ONE) or 0) > 0
    assert not topic.task.done()
