"""The relay's promises about stopping and rebalancing, on a virtual clock."""

import asyncio
import logging

import pytest

from order_relay.delivery.breaker import BreakerState
from order_relay.errors import PublishRefused
from tests.support.fakes import Bench, Step, answer, record

pytestmark = pytest.mark.virtual_time

FOR_EVER = float("inf")
DOWN = answer(503)


async def test_attempts_under_way_end_and_nothing_new_is_sent() -> None:
    """Attempts and dead letters in flight end; what is queued or in backoff is given back."""
    bench = Bench(max_in_flight=3)
    slow, failing = record(0, "a"), record(1, "b")
    bench.target.plan(slow, Step(answer(200), seconds=4.0))
    bench.target.plan(failing, DOWN)
    refused = bench.target.plan(record(3, "c"), Step(answer(422), seconds=2.0))
    await bench.submit(slow, failing, record(2, "a"), refused)
    await asyncio.sleep(0.5)

    await bench.dispatcher.drain(attempt_seconds=30.0)

    assert asyncio.get_running_loop().time() == 4.0
    assert bench.finished_offsets == [3, 0]
    assert len(bench.dead_letters.letters) == 1
    assert bench.target.times(failing) == [0.0]
    assert bench.observer.abandoned_records == [2]


async def test_what_does_not_finish_in_time_is_given_up() -> None:
    """Attempts get so many seconds; what has no answer by then stays unfinished."""
    bench = Bench()
    ends, hangs = record(0, "ends"), record(1, "hangs")
    bench.target.plan(ends, Step(answer(200), seconds=12.0))
    bench.target.plan(hangs, Step(answer(200), seconds=FOR_EVER))
    waits = bench.target.plan(record(2, "waits"), answer(429, retry_after_seconds=60.0))
    await bench.submit(ends, hangs, waits, record(3, "waits"), record(4, "ends"))
    await asyncio.sleep(0.5)

    await bench.dispatcher.drain(attempt_seconds=15.0)

    assert asyncio.get_running_loop().time() == 15.5
    assert bench.finished_offsets == [0]
    assert bench.observer.abandoned_records == [4]
    assert (bench.dispatcher.queued, bench.dispatcher.in_flight) == (0, 0)


async def test_nothing_finishes_after_it_was_given_back() -> None:
    """When drain returns, nothing runs: no attempt, no dead letter, no finish."""
    bench = Bench(max_in_flight=2)
    bench.dead_letters.refusals.extend([PublishRefused("dlq", "down")] * 3)
    hangs, fails = record(0, "hangs"), record(1, "fails")
    bench.target.plan(hangs, Step(answer(200), seconds=3.0))
    bench.target.plan(fails, DOWN, DOWN)
    await bench.submit(hangs)
    await bench.submit(record(2, "broken", value=b"{"))
    await asyncio.sleep(0.1)
    await bench.submit(fails)
    await asyncio.sleep(0.1)
    await bench.dispatcher.drain(attempt_seconds=1.0)
    attempts, calls = len(bench.target.attempts), len(bench.dead_letters.calls)

    await asyncio.sleep(1000)

    assert bench.finished == []
    assert (len(bench.target.attempts), len(bench.dead_letters.calls)) == (attempts, calls)
    assert bench.observer.abandoned_records == [3]
    assert len(asyncio.all_tasks()) == 1


async def test_a_stop_during_a_rebalance_gives_back_once(caplog: pytest.LogCaptureFixture) -> None:
    """What is given back is counted and logged once, though both wait for the attempts.

    An attempt that fails meanwhile is neither retried nor dead-lettered.
    """
    caplog.set_level(logging.INFO)
    bench = Bench()
    fails = bench.target.plan(record(0, "a"), Step(DOWN, seconds=2.0))
    ends = bench.target.plan(record(1, "b"), Step(answer(200), seconds=2.0))
    await bench.submit(fails, ends, record(2, "a"), record(3, "b"))
    await asyncio.sleep(1.0)

    await asyncio.gather(*(bench.dispatcher.drain(attempt_seconds=n) for n in (10.0, 30.0)))

    assert asyncio.get_running_loop().time() == 2.0
    assert (bench.finished_offsets, bench.dead_letters.letters) == ([1], [])
    assert bench.observer.abandoned_records == [3]
    assert caplog.text.count("Gave back 3 unfinished records") == 1
    assert bench.dispatcher.queued == 0


@pytest.mark.parametrize("moment", ["while draining", "when closed"])
async def test_a_record_submitted_before_resuming_is_not_delivered(moment: str) -> None:
    """A record that is submitted between drain and resume is not delivered late.

    It is read again; delivered first, it would overtake older records of its key.
    """
    bench = Bench()
    hangs = bench.target.plan(record(0, "hangs"), Step(answer(200), seconds=FOR_EVER))
    await bench.submit(hangs)
    giving_back = asyncio.create_task(bench.dispatcher.drain(attempt_seconds=5.0))
    await asyncio.sleep(1.0 if moment == "while draining" else 6.0)
    taking = asyncio.create_task(bench.dispatcher.submit(record(5, "a")))
    await asyncio.sleep(10.0)
    assert giving_back.done()
    bench.dispatcher.resume()

    await bench.deliver(record(4, "a"), record(5, "a"))
    await asyncio.sleep(10.0)

    assert taking.done()
    assert [attempt.event_id[-1] for attempt in bench.target.attempts] == ["0", "4", "5"]
    assert bench.finished_offsets == [4, 5]


async def test_it_goes_on_as_before_after_resuming() -> None:
    """All slots are free again, attempts count from 0, and keys are ordered."""
    bench = Bench(max_in_flight=2)
    one = bench.target.plan(record(0, "a"), DOWN, DOWN, *[DOWN] * 4)
    await bench.submit(one)
    await asyncio.sleep(1.5)
    await bench.dispatcher.drain(attempt_seconds=5.0)
    bench.dispatcher.resume()

    await bench.deliver(one, record(1, "a"), record(2, "b"))

    assert bench.target.times(one) == [0.0, 1.0, 1.5, 2.5, 4.5, 8.5]
    assert bench.dead_letters.letters[0].attempts == 4
    assert bench.finished_offsets == [2, 0, 1]


async def test_activity_is_told_for_liveness() -> None:
    """Activity: an attempt, a dead letter, a resumption, a record that is skipped."""
    bench = Bench()
    one = bench.target.plan(record(0), Step(answer(400), seconds=3.0))
    bench.dead_letters.refusals.append(PublishRefused("dlq", "down"))
    assert bench.dispatcher.last_activity == 0.0

    await bench.submit(one)
    await asyncio.sleep(3.5)
    assert bench.dispatcher.last_activity == 3.0
    await bench.until_finished(1)
    assert bench.dispatcher.last_activity == 4.0
    await asyncio.sleep(10)
    bench.dispatcher.resume()
    assert bench.dispatcher.last_activity == 14.0
    await asyncio.sleep(10)
    duplicate = record(1)
    bench.delivered_before.add(duplicate.idempotency_key())
    await bench.deliver(duplicate)
    assert bench.dispatcher.last_activity == 24.0


async def test_a_pause_sends_nothing_and_its_end_sends_at_once() -> None:
    """Records are accepted up to the limit; a wait for room ends, too."""
    bench = Bench(max_in_flight=2)
    bench.dispatcher.pause(True)
    await bench.submit(record(0, "a"), record(1, "b"))
    waiting = asyncio.create_task(bench.dispatcher.submit(record(2, "c")))
    await asyncio.sleep(100.0)
    assert bench.target.attempts == []
    assert not waiting.done()
    assert bench.dispatcher.probe_now()

    bench.dispatcher.pause(False)
    await bench.until_finished(3)
    assert asyncio.get_running_loop().time() == 100.0
    assert await waiting


async def test_records_at_the_gate_do_not_hold_up_the_end() -> None:
    """In an outage nothing is in flight: draining does not wait."""
    bench = Bench(breaker_threshold=2)
    bench.target.default = Step(DOWN)
    await bench.submit(record(0, "a"), record(1, "b"), record(2, "b"))
    await asyncio.sleep(1)

    await bench.dispatcher.drain(attempt_seconds=11.0)

    assert asyncio.get_running_loop().time() == pytest.approx(1.0, abs=0.25)
    assert bench.observer.abandoned_records == [3]
    assert bench.finished == []


async def test_a_probe_is_asked_for_in_an_outage_only() -> None:
    """If the breaker is closed, or the consumer paused, the reason is returned."""
    bench = Bench(breaker_threshold=1)
    closed = "nothing to probe: the breaker is closed, records are sent as they come"
    assert bench.dispatcher.probe_now() == closed
    bench.target.default = Step(DOWN)
    await bench.submit(record(0, "a"))
    await asyncio.sleep(3)
    bench.dispatcher.pause(True)
    assert (
        bench.dispatcher.probe_now() == "the consumer is paused, nothing is sent: resume it first"
    )
    bench.dispatcher.pause(False)
    assert bench.dispatcher.probe_now() == ""
    await asyncio.sleep(0)
    assert bench.target.times() == [0.0, 1.0, 3.0]


async def test_after_a_rebalance_in_an_outage_a_record_probes() -> None:
    """With the breaker open some records are taken to probe; the rest follows a success."""
    loop = asyncio.get_running_loop()
    bench = Bench(breaker_threshold=1)
    bench.target.default = Step(DOWN)
    await bench.submit(record(0, "a"))
    await asyncio.sleep(0.5)
    await bench.dispatcher.drain(attempt_seconds=1.0)
    bench.dispatcher.resume()

    await bench.submit(record(0, "a"), record(1, "b"))
    await asyncio.sleep(10.25)
    assert bench.target.times() == [0.0, 1.0, 2.0, 7.0]
    bench.target.default = Step(answer(200))
    await bench.until_finished(2)

    assert loop.time() == 12.0
    assert sorted(bench.finished_offsets) == [0, 1]


async def test_a_probe_that_is_given_back_does_not_stop_the_probing() -> None:
    """After a cancelled probe the next record probes at once."""
    bench = Bench(breaker_threshold=1)
    one = bench.target.plan(record(0, "a"), DOWN, Step(DOWN, seconds=float("inf")))
    await bench.submit(one)
    await asyncio.sleep(6)
    assert bench.dispatcher.breaker.state is BreakerState.HALF_OPEN

    await bench.dispatcher.drain(attempt_seconds=2.0)
    bench.dispatcher.resume()
    await bench.deliver(one)

    assert asyncio.get_running_loop().time() == 8.0
    assert bench.dispatcher.breaker.closed


@pytest.mark.parametrize("queued_behind", [0, 1, 5])
async def test_a_dead_letter_that_kafka_refuses_does_not_stop_the_probing(
    queued_behind: int,
) -> None:
    """After a rebalance the first record may be broken, and Kafka may refuse its letter."""
    bench = Bench(breaker_threshold=1)
    good = bench.target.plan(record(1, "good"), DOWN)
    await bench.submit(good)
    await asyncio.sleep(1)
    await bench.dispatcher.drain(attempt_seconds=1.0)
    bench.dispatcher.resume()
    bench.dead_letters.refusals.extend([PublishRefused("dlq", "no such topic")] * 1000)

    await bench.submit(record(0, "broken", value=b"{"))
    async with asyncio.timeout(60):
        for offset in range(2, 2 + queued_behind):
            await bench.dispatcher.submit(record(offset, "broken"))
        await bench.dispatcher.submit(good)
    await bench.until_finished(1, within_seconds=120)

    assert bench.finished == [good]
    assert bench.dispatcher.breaker.closed
