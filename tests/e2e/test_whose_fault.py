"""The shipped worker and a target that is slow, rate-limited, half broken or down: whose fault?

With default settings, except those that a test names. Tests count the requests at the target, and
never assert a duration.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest

from tests.support.embedded import EmbeddedKafka
from tests.support.limiters import FixedWindow, SlidingWindow, TokenBucket
from tests.support.orders import Published, event_ids, order, orders
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import QUICK, NewWorker, WorkerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LIMIT_SECONDS = 120.0
DEFAULTS: dict[str, Any] = dict.fromkeys(map(str.lower, QUICK))
"""The product's own retries and waits instead of the quick ones."""
QUICK_RETRIES: dict[str, Any] = {
    **DEFAULTS,
    "consumer_retry_initial_interval_ms": 100,
    "consumer_retry_max_interval_ms": 1000,
}
"""A tenth of the product's waits between attempts, where a test must sit through many."""
PROBE_SECONDS = 5.0
MAX_IN_FLIGHT = 256
BREAKER_FAILURE_THRESHOLD = 20
# With this seed, one of 1,500 orders needs 11 attempts, the most.
SEED = 0
ODD = ("-5", "nan", "inf", "", "1e9", "0x10", "soon", "Fri, 31 Feb 2025 25:61:61 GMT")
"""None of these is a Retry-After."""
GIVEN_UP = "Publishing failed message to DLQ"


def in_order(sink: ScriptedSink, published: Iterable[Published]) -> bool:
    """Whether records were accepted once each, in the order in which they were published."""
    wanted = event_ids(published)
    of_them = set(wanted)
    return [key for key in sink.accepted_keys if key in of_them] == wanted


def after_first_burst(sink: ScriptedSink, status: int) -> list[Received]:
    """The requests that were certainly sent after the first refusal.

    At that moment up to MAX_IN_FLIGHT requests were in flight.
    """
    for number, one in enumerate(sink.requests):
        if one.answer is not None and one.answer.status == status:
            return sink.requests[number + MAX_IN_FLIGHT :]
    return []


class Shop:
    """Publishes an order a second until it closes.

    Attributes:
        published: Its orders.
        asked: How many requests the target had received before each order.
    """

    def __init__(self, stage: Stage, sink: ScriptedSink) -> None:
        self.published: list[Published] = []
        self.asked: list[int] = []
        self._stage = stage
        self._sink = sink
        self._closes = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._sell())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closes.set()
        await self._task

    async def _sell(self) -> None:
        while not self._closes.is_set():
            self.asked.append(len(self._sink.requests))
            self.published += await self._stage.publish([order(101 + len(self.published))])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closes.wait(), 1.0)


async def test_hopeless_orders_of_a_quiet_topic_do_not_delay_good_ones(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Six orders always get 500 and are given up; one good order a second is delivered."""
    sink.script = lambda request: Answer(500 if (request.order_id or 0) <= 6 else 200)
    hopeless = await stage.publish(orders(6))
    async with new_worker(**DEFAULTS) as worker:
        await worker.wait_log("Breaker open")
        async with Shop(stage, sink) as shop:
            await worker.wait_until(
                lambda: len(worker.log_lines(GIVEN_UP)) == len(hopeless),
                LIMIT_SECONDS,
                "to give up the hopeless orders",
            )
        await sink.wait_for(lambda s: len(s.accepted) >= len(shop.published), LIMIT_SECONDS)
        await eventually(stage.all_committed, 30, "everything is committed")
        # The first good order closes it, and it never opens again.
        assert len(worker.log_lines("Breaker open")) == 1
        assert await worker.stop() == 0
    letters = await stage.dead_letters()
    assert {letter.text("event-id") for letter in letters} == set(event_ids(hopeless))
    assert {letter.text("dlq-reason") for letter in letters} == {"retries_exhausted"}
    assert Counter(sink.accepted_keys) == Counter(event_ids(shop.published))
    for asked, one in zip(shop.asked, shop.published, strict=True):
        (attempt,) = sink.attempts(one.event_id)
        between = sink.requests[asked : sink.requests.index(attempt)]
        turns = Counter(request.order_id for request in between if (request.order_id or 0) <= 6)
        assert max(turns.values(), default=0) <= 2, f"{one.event_id} waited for {turns}"


async def test_a_key_with_many_records_leaves_room_for_others(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Other keys are delivered although 12,000 records of a key wait behind a failing or slow one.

    The first record may fail 1,000 times, so that it is not given up before the others finish.
    """
    fails, slow = True, True

    def script(request: Received) -> Answer:
        if request.key != "hot":
            return Answer()
        if request.order_id == 1 and fails:
            return Answer(500)
        return Answer(delay_seconds=0.05 if slow else 0.0)

    sink.script = script
    hot = await stage.publish(order(n, key="hot", partition=0) for n in range(1, 12_001))
    behind = await stage.publish(order(n, partition=n % 3) for n in range(20_001, 21_501))
    async with new_worker(**QUICK_RETRIES, consumer_retry_max_attempts=1000) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(behind), LIMIT_SECONDS)
        assert Counter(sink.accepted_keys) == Counter(event_ids(behind))
        assert {request.order_id for request in sink.requests if request.key == "hot"} == {1}

        fails = False
        behind_slow = await stage.publish(order(n, partition=n % 3) for n in range(30_001, 31_501))
        others = set(event_ids([*behind, *behind_slow]))
        await sink.wait_for(lambda s: others <= set(s.accepted_keys), LIMIT_SECONDS)
        slow_ones = len(sink.accepted) - len(others)
        # Fewer than the 10,000 records that fit in memory: the key did not take all the room.
        assert slow_ones < 1_500

        slow = False
        await sink.wait_for(lambda s: len(s.accepted) >= len(hot) + len(others), LIMIT_SECONDS)
        await eventually(stage.all_committed, 30, "everything is committed")
        assert await worker.live()
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log_text()
    assert in_order(sink, hot)
    assert Counter(sink.accepted_keys) == Counter(event_ids([*hot, *behind, *behind_slow]))
    assert not await stage.dead_letters()


LIMITS: dict[str, Callable[[int], TokenBucket | FixedWindow | SlidingWindow]] = {
    "bucket": lambda rate: TokenBucket(rate, rate),
    "fixed": FixedWindow,
    "sliding": SlidingWindow,
}
REFUSALS = {
    "429 Retry-After 1": Answer(429, {"Retry-After": "1"}),
    "503 Retry-After 2": Answer(503, {"Retry-After": "2"}),
    "429": Answer(429),
}
TAKES = 50
COUNT = 1500


async def deliver_to_limited(stage: Stage, directory: Path, limit: str, refusal: str) -> None:
    """Deliver to a target that takes 50 a second."""
    takes, refused = LIMITS[limit](TAKES).takes, REFUSALS[refusal]
    async with ScriptedSink() as sink:
        sink.script = lambda request: Answer() if takes(time.monotonic()) else refused
        published = await stage.publish(orders(COUNT))
        async with WorkerProcess(directory, stage, sink.url, **DEFAULTS) as worker:
            await sink.wait_for(lambda s: len(s.accepted) == COUNT, LIMIT_SECONDS)
            await eventually(stage.all_committed, 30, "everything is committed")
            assert await worker.live()
            assert not worker.log_lines("Breaker open")
        assert Counter(sink.accepted_keys) == Counter(event_ids(published))
        assert not await stage.dead_letters()
        after = after_first_burst(sink, refused.status)
        assert len(after) > COUNT / 2
        again = sum(one.answer is refused for one in after)
        assert again <= len(after) * 0.05, f"{limit}, {refusal}: {again} of {len(after)}"


async def test_a_target_that_takes_so_many_a_second_refuses_few(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """All is delivered without dead letters and with few refusals, for each kind of limit.

    Three targets side by side, as each worker waits most of the time.
    """
    async with asyncio.TaskGroup() as group:
        for limit, refusal in zip(LIMITS, REFUSALS, strict=True):
            stage = embedded.stage()
            group.create_task(deliver_to_limited(stage, tmp_path / limit, limit, refusal))


async def test_no_good_order_is_given_up_while_half_of_all_requests_fail(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """At random, then every other request: all are delivered.

    Retries are ten times faster than by default, since one order needs eleven attempts.
    """
    turn = False

    def at_random(request: Received) -> Answer:
        coin = Random(f"{SEED}/{request.order_id}/{request.attempt}")
        return Answer(200 if coin.random() < 0.5 else 500)

    def in_turn(request: Received) -> Answer:
        nonlocal turn
        turn = not turn
        return Answer(200 if turn else 500)

    sink.script = at_random
    published = await stage.publish(orders(1500))
    async with new_worker(**QUICK_RETRIES) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(published), LIMIT_SECONDS)
        sink.script = in_turn
        published += await stage.publish(orders(600, keys=200, first=5000))
        await sink.wait_for(lambda s: len(s.accepted) == len(published), LIMIT_SECONDS)
        await eventually(stage.all_committed, 30, "everything is committed")
        assert await worker.live()
    assert Counter(sink.accepted_keys) == Counter(event_ids(published))
    assert not await stage.dead_letters()


async def test_an_outage_is_probed_every_five_seconds_and_its_end_is_seen(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """In an outage there are only probes; the first success closes the breaker."""
    before = await stage.publish(orders(300))
    async with new_worker(**DEFAULTS) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(before), LIMIT_SECONDS)
        sink.script = lambda request: Answer(500, body=b"down")
        began = time.monotonic()
        during = await stage.publish(orders(2000, first=1000))
        await worker.wait_log("Breaker open")

        async def probed() -> bool:
            return bool((await worker.json("/stats"))["breaker"]["failed_probes"] >= 8)

        # The first probes come sooner, the last two after the whole interval.
        await worker.wait_until(probed, LIMIT_SECONDS, "to probe")
        asked, seconds = len(sink.requests), time.monotonic() - began
        sink.script = lambda request: Answer()
        during += await stage.publish(orders(100, first=9000))
        await sink.wait_for(lambda s: len(s.accepted) == len(before) + len(during), LIMIT_SECONDS)
        await eventually(stage.all_committed, 30, "everything is committed")
        # Requests in flight at the start, those that took the slots of the first 20 failures, and
        # a probe every 5 s with a few sooner.
        most = MAX_IN_FLIGHT + BREAKER_FAILURE_THRESHOLD + 6 + seconds / PROBE_SECONDS
        assert asked - len(before) <= most
        await worker.wait_log("Breaker closed")
        assert len(worker.log_lines("Breaker open")) == 1
        assert len(worker.log_lines("Breaker closed")) == 1
    assert Counter(sink.accepted_keys) == Counter(event_ids([*before, *during]))
    assert not await stage.dead_letters()


async def test_404_to_all_is_an_outage(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """It begins under load, once for 0.3 s: no dead letter, and all is delivered afterwards."""
    gone, short_until = False, 0.0

    def script(request: Received) -> Answer:
        nonlocal short_until
        if not short_until and len(sink.requests) > 400:
            short_until = request.arrived_at + 0.3
        return Answer(404 if gone or request.arrived_at < short_until else 200)

    sink.script = script
    # Enough load when an outage begins: a single 404 counts against its order.
    published = await stage.publish(orders(6000))
    async with new_worker(**DEFAULTS) as worker:
        await worker.wait_log("Breaker open")
        await sink.wait_for(lambda s: len(s.accepted) > 2000, LIMIT_SECONDS)
        gone = True
        published += await stage.publish(orders(1000, first=6001))
        await worker.wait_until(
            lambda: len(worker.log_lines("Breaker open")) == 2, LIMIT_SECONDS, "to see the outage"
        )
        asked = len(sink.requests)
        await sink.wait_for(lambda s: len(s.requests) >= asked + 2, LIMIT_SECONDS)
        gone = False
        await sink.wait_for(lambda s: len(s.accepted) >= len(published), LIMIT_SECONDS)
        await eventually(stage.all_committed, 30, "everything is committed")
    assert Counter(sink.accepted_keys) == Counter(event_ids(published))
    assert not await stage.dead_letters()


async def test_a_target_that_throttles_all_is_asked_rarely(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Even with an invalid Retry-After; when the target recovers, all is delivered."""
    odd = cycle(ODD)
    sink.script = lambda request: Answer(429, {"Retry-After": next(odd)})
    published = await stage.publish(orders(400))
    async with new_worker(**DEFAULTS) as worker:
        await sink.wait_for(lambda s: len(s.requests) >= MAX_IN_FLIGHT + 3, LIMIT_SECONDS)
        first, *later = sink.requests[MAX_IN_FLIGHT:]  # after those in flight at first
        assert len(later) <= later[-1].arrived_at - first.arrived_at
        assert await worker.live()
        sink.script = lambda request: Answer()
        await sink.wait_for(lambda s: len(s.accepted) == len(published), LIMIT_SECONDS)
        await eventually(stage.all_committed, 30, "everything is committed")
        assert not worker.log_lines("Breaker open")
        assert "Traceback" not in worker.log_text()
    assert Counter(sink.accepted_keys) == Counter(event_ids(published))
    assert not await stage.dead_letters()


async def test_a_retry_after_in_the_year_9999_is_a_minute(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """It is capped at 60 s; the worker stays live, and can stop."""
    sink.script = lambda request: Answer(429, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"})
    (published,) = await stage.publish(orders(1))
    # A short grace: no delivery can end within it.
    settings = {**DEFAULTS, "shutdown_grace_seconds": 1}
    async with new_worker(**settings) as worker:
        await worker.wait_log("retry_after_seconds=60.0")
        assert await worker.live()
        assert await worker.stop() == 0
        assert "Traceback" not in worker.log_text()
    assert [request.idempotency_key for request in sink.requests] == [published.event_id]
    assert not await stage.dead_letters()


async def test_the_rate_given_by_hand_is_kept(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """EXTERNAL_LOGGER_MAX_RATE=20: 20 records a second, however many wait."""
    published = await stage.publish(orders(120))
    async with new_worker(**DEFAULTS, external_logger_max_rate=20):
        await sink.wait_for(lambda s: len(s.accepted) == len(published), LIMIT_SECONDS)
    arrived = [request.arrived_at for request in sink.requests]
    assert len(arrived) == len(published)
    assert len(arrived) <= 1 + (arrived[-1] - arrived[0]) * 20 * 1.25
