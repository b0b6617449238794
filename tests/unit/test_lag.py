"""Lag and reachability: measured again and again, whatever Kafka's clients do."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import pytest

from order_relay.errors import KafkaUnavailable
from order_relay.monitoring.health import INTAKE_STALL_SECONDS, Health, end_at_standstill
from order_relay.monitoring.metrics import Metrics
from order_relay.monitoring.partitions import LAG_INTERVAL_SECONDS, TIMEOUT_SECONDS, watch_lag
from tests.support.virtual_time import virtual_time

NEVER = float("-inf")


class Place(NamedTuple):
    topic: str
    partition: int


ONE, TWO = Place("orders", 0), Place("orders", 1)


class FakeKafka:
    """A consumer and a broker whose offsets a test sets; errors are raised one a round."""

    def __init__(self) -> None:
        self.committed: dict[Place, int | None] = {}
        self.finished: dict[Place, int | None] = {}
        self.ends: dict[Place, int] = {}
        self.held_back: dict[Place, int] = {}
        """Records behind an open transaction, the ends of what can be read not counted."""
        self.starts: dict[Place, int] = {}
        self.errors: list[Exception] = []
        self.hangs = False
        self.rounds = 0
        self.group_hangs = False
        self.answers_consumer: bool | Exception | None = True
        self.stands_still: str | None = None

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

    async def ping(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def committed_offsets(self) -> dict[Place, int | None]:
        return dict(self.committed)

    def finished_to(self) -> dict[Place, int | None]:
        return dict(self.finished)

    async def highwaters(self, *partitions: Place) -> Mapping[Place, int]:
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        return {one: self.ends[one] for one in partitions if one in self.ends}

    async def log_ends(self, *partitions: Place) -> Mapping[Place, int]:
        return {
            one: self.ends[one] + self.held_back.get(one, 0)
            for one in partitions
            if one in self.ends
        }

    async def earliest_offsets(self, *partitions: Place) -> Mapping[Place, int]:
        return {one: self.starts[one] for one in partitions if one in self.starts}


class Deliveries:
    last_activity = 0.0
    queued = 0


class Watched:
    """A watch over a fake Kafka. Make it inside the loop."""

    def __init__(self) -> None:
        self.kafka = FakeKafka()
        self.metrics = Metrics().of("order_logging")
        clock = asyncio.get_running_loop().time
        self.health = Health(
            Deliveries(),
            breaker_closed=lambda: True,
            dead_lettering=lambda: 0,
            attempt_timeout_seconds=1.0,
            clock=clock,
        )
        self.task = asyncio.create_task(
            watch_lag(self.kafka, self.kafka, self.metrics, self.health, clock)
        )

    def lag(self, place: Place) -> float | None:
        return self.metrics.registry.get_sample_value(
            "order_relay_consumer_lag",
            {
                "consumer": "order_logging",
                "topic": place.topic,
                "partition": str(place.partition),
            },
        )

    def transaction_seconds(self, place: Place) -> float | None:
        return self.metrics.registry.get_sample_value(
            "order_relay_transaction_open_seconds",
            {
                "consumer": "order_logging",
                "topic": place.topic,
                "partition": str(place.partition),
            },
        )

    async def another_round(self) -> None:
        before = self.kafka.rounds
        await asyncio.sleep(LAG_INTERVAL_SECONDS + 0.5)
        assert self.kafka.rounds > before


@virtual_time
async def test_lag_is_what_lies_behind_the_commit() -> None:
    """Lag is counted from the committed offset, or from the beginning where there is none."""
    watched = Watched()
    watched.kafka.committed = {ONE: 40, TWO: None}
    watched.kafka.ends = {ONE: 100, TWO: 30}
    watched.kafka.starts = {TWO: 10}
    assert watched.health.kafka_seen_at == NEVER
    await watched.another_round()

    assert (watched.lag(ONE), watched.lag(TWO)) == (60, 20)
    assert watched.health.kafka_seen_at > NEVER


@virtual_time
async def test_health_hears_of_what_is_not_finished() -> None:
    """What is finished and not committed is lag, and no work that waits."""
    watched = Watched()
    watched.kafka.committed = {ONE: 40, TWO: None}
    watched.kafka.finished = {ONE: 97, TWO: None}
    watched.kafka.ends = {ONE: 100, TWO: 30}
    watched.kafka.starts = {TWO: 10}
    await watched.another_round()
    assert (watched.lag(ONE), watched.lag(TWO)) == (60, 20)
    assert watched.health.unfinished == 23

    watched.kafka.finished = {ONE: 100, TWO: 30}
    await watched.another_round()
    assert (watched.lag(ONE), watched.lag(TWO)) == (60, 20)
    assert watched.health.unfinished == 0


@virtual_time
async def test_what_an_open_transaction_holds_back_is_lag_and_no_work() -> None:
    """A gauge tells for how long; it begins anew with the next transaction.

    Transactions that come and go, and a quiet partition before the first one, do not add up.
    """
    watched = Watched()
    watched.kafka.committed = {ONE: 40, TWO: 40}
    watched.kafka.finished = {ONE: 40, TWO: 40}
    watched.kafka.ends = {ONE: 40, TWO: 40}
    for _ in range(5):
        await watched.another_round()
        assert watched.transaction_seconds(ONE) == 0
    watched.kafka.held_back = {ONE: 3, TWO: 4}
    for moved in range(5):
        await watched.another_round()
        assert (watched.lag(ONE), watched.lag(TWO)) == (3, 4 + moved)
        assert watched.health.unfinished == moved
        watched.kafka.ends[TWO] += 1
    assert (watched.transaction_seconds(ONE) or 0) >= 4 * LAG_INTERVAL_SECONDS
    assert (watched.transaction_seconds(TWO) or 0) <= 2 * LAG_INTERVAL_SECONDS

    watched.kafka.held_back = {}
    watched.kafka.ends[ONE] = 43
    await watched.another_round()
    assert (watched.lag(ONE), watched.transaction_seconds(ONE)) == (3, 0)
    watched.kafka.committed = {TWO: 40}
    await watched.another_round()
    assert watched.transaction_seconds(ONE) is None


@virtual_time
async def test_what_cannot_be_measured_is_not_taken_for_work() -> None:
    """A partition without a leader hangs the measuring of all: what was measured before is old."""
    watched = Watched()
    watched.kafka.committed = {ONE: 0}
    watched.kafka.ends = {ONE: 5}
    await watched.another_round()
    assert watched.health.unfinished == 5
    watched.kafka.hangs = True
    await asyncio.sleep(LAG_INTERVAL_SECONDS + TIMEOUT_SECONDS)

    assert watched.health.kafka_answers()
    assert watched.lag(ONE) == 5
    assert watched.health.unfinished == 0


@virtual_time
async def test_lag_is_never_negative() -> None:
    """An end that was asked for a moment before the commit does not go below 0."""
    watched = Watched()
    watched.kafka.committed = {ONE: 7, TWO: 7}
    watched.kafka.ends = {ONE: 5}
    await watched.another_round()

    assert (watched.lag(ONE), watched.lag(TWO)) == (0, 0)


@virtual_time
async def test_partitions_that_went_are_not_shown() -> None:
    """After a rebalance only the worker's own partitions have a lag."""
    watched = Watched()
    watched.kafka.committed = {ONE: 0, TWO: 0}
    watched.kafka.ends = {ONE: 5, TWO: 6}
    await watched.another_round()
    watched.kafka.committed = {TWO: 0}
    await watched.another_round()
    assert (watched.lag(ONE), watched.lag(TWO)) == (None, 6)

    watched.kafka.committed = {}
    await watched.another_round()
    assert watched.lag(TWO) is None
    assert watched.health.unfinished == 0


@virtual_time
async def test_the_watch_outlives_every_error() -> None:
    """Whatever a client raises, or if it hangs, the next round measures again."""
    watched = Watched()
    watched.kafka.committed = {ONE: 0}
    watched.kafka.ends = {ONE: 5}
    watched.kafka.errors = [KafkaUnavailable("a:1", "down"), ZeroDivisionError(), TimeoutError()]
    for _ in range(3):
        assert watched.lag(ONE) is None
        assert watched.health.kafka_seen_at == NEVER
        await watched.another_round()
    assert watched.lag(ONE) == 5
    watched.kafka.hangs = True
    watched.kafka.ends = {ONE: 9}
    await asyncio.sleep(LAG_INTERVAL_SECONDS + TIMEOUT_SECONDS)
    watched.kafka.hangs = False
    await asyncio.sleep(LAG_INTERVAL_SECONDS + TIMEOUT_SECONDS)

    assert watched.lag(ONE) == 9
    assert not watched.task.done()


@virtual_time
async def test_health_hears_of_an_intake_that_stands_still() -> None:
    """It does while Kafka answers, and no longer."""
    watched = Watched()
    watched.kafka.stands_still = "flow is suspended"
    await watched.another_round()
    assert watched.health.live().reasons["intake"] == "flow is suspended"
    watched.kafka.errors = [KafkaUnavailable("a:1", "down")]
    await asyncio.sleep(LAG_INTERVAL_SECONDS)

    assert "intake" not in watched.health.live().reasons


@pytest.mark.parametrize("answer", [False, None, RuntimeError("closed")])
@virtual_time
async def test_health_hears_of_a_consumer_that_gets_no_answer(
    answer: bool | Exception | None,
) -> None:
    """No broker answers its own client, though one answers the producer: it is not ready."""
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


@virtual_time
async def test_health_hears_of_a_thread_that_does_not_answer() -> None:
    """Nothing can be asked of it, and all other figures would stay as they were."""
    watched = Watched()
    watched.kafka.group_hangs = True
    await asyncio.sleep(60)

    assert "thread" in str(watched.health.live().reasons["intake"])


@virtual_time
async def test_a_worker_that_stands_still_is_ended() -> None:
    """Once, and with what stands still."""
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
