"""The relay's promise about outages: the breaker, over all keys, on a virtual clock."""

import asyncio

import pytest

from order_relay.delivery.answer import Answer, RetryPolicy
from order_relay.delivery.breaker import BreakerState
from order_relay.delivery.dead_letters import DeadLetter
from tests.support.fakes import NO_ANSWER, Bench, Step, answer, record

pytestmark = pytest.mark.virtual_time

DOWN = answer(503)
PROBES = [1.0 + 5.0 * number for number in range(1000)]  # after 1 s, then every 5 s


async def test_the_breaker_opens_over_all_keys_and_probes_alone() -> None:
    """After the threshold there is one attempt at a time, after 1 s and then every 5 s."""
    bench = Bench(breaker_threshold=4)
    bench.target.default = Step(DOWN)

    await bench.submit(*(record(offset, str(offset)) for offset in range(4)))
    await asyncio.sleep(200)

    assert bench.target.times() == [0.0] * 4 + PROBES[:40]
    assert bench.target.most_under_way == 4
    assert bench.dispatcher.breaker.state is BreakerState.OPEN
    assert bench.finished == []


@pytest.mark.parametrize("failure", [DOWN, NO_ANSWER, answer(404), answer(401), answer(302)])
async def test_what_counts_for_the_breaker(failure: Answer) -> None:
    """Retryable failures and outages both open it."""
    bench = Bench(breaker_threshold=2)
    bench.target.default = Step(failure)

    await bench.submit(record(0, "a"), record(1, "b"))
    await asyncio.sleep(0.9)

    assert bench.target.times() == [0.0, 0.0]
    assert bench.dispatcher.breaker.state is BreakerState.OPEN


async def test_refused_messages_show_that_the_logger_works() -> None:
    """A 4xx about the message is a success of the target: it resets the failures."""
    bench = Bench(breaker_threshold=2)
    for offset, status in enumerate([400, 503, 400, 400, 503]):
        one = record(offset, str(offset))
        bench.target.plan(one, answer(status))
        await bench.submit(one)
        await asyncio.sleep(0.01)

    assert bench.dispatcher.breaker.closed
    assert bench.finished_offsets == [0, 2, 3]


async def test_with_a_threshold_of_0_a_dead_logger_dead_letters() -> None:
    """Switched off, the breaker stops nothing: records are given up after retries."""
    bench = Bench(breaker_threshold=0)
    bench.target.default = Step(DOWN)

    await bench.submit(*(record(offset, str(offset)) for offset in range(8)))
    await bench.until_finished(8)

    assert asyncio.get_running_loop().time() == 7.0
    assert len(bench.target.attempts) == 32
    assert {letter.reason for letter in bench.dead_letters.letters} == {"retries_exhausted"}


async def test_an_outage_of_any_length_dead_letters_nothing() -> None:
    """After hours without the target all held records are delivered, in key order."""
    bench = Bench(breaker_threshold=3)
    bench.target.default = Step(DOWN)
    await bench.submit(*(record(offset, str(offset % 3)) for offset in range(9)))

    await asyncio.sleep(6 * 3600)
    assert bench.finished == []
    bench.target.default = Step(answer(200))
    await bench.until_finished(9)

    assert asyncio.get_running_loop().time() <= 6 * 3600 + 60
    assert bench.dead_letters.letters == []
    for key in range(3):
        of_key = [offset for offset in bench.finished_offsets if offset % 3 == key]
        assert of_key == sorted(of_key)


async def test_an_outage_spends_no_attempts() -> None:
    """The failure that opens the breaker and those while it is open do not count."""
    bench = Bench(breaker_threshold=2, policy=RetryPolicy(max_retries=1))
    one, other = record(0, "hopeless"), record(1, "other")
    bench.target.plan(one, *[DOWN] * 1000)
    bench.target.default = Step(DOWN)
    await bench.submit(one, other)
    await asyncio.sleep(40)
    in_outage = len(bench.target.times(one))
    assert in_outage == 5

    bench.target.default = Step(answer(200))
    for offset in range(2, 100):
        await bench.submit(record(offset, f"good-{offset}"))
        await asyncio.sleep(0.4)
    await bench.until_finished(100)

    (letter,) = bench.dead_letters.letters
    assert letter.record == one
    assert letter.attempts == len(bench.target.times(one)) - in_outage + 1  # the very first one


async def the_letter_among_good_orders(bench: Bench, first: int) -> DeadLetter:
    """Deliver 40 good orders, one a second from this offset on; return the only dead letter."""
    for offset in range(first, first + 40):
        await bench.submit(record(offset, f"good-{offset}"))
        await asyncio.sleep(1)
    await bench.until_finished(first + 40)
    (letter,) = bench.dead_letters.letters
    return letter


async def test_an_attempt_during_which_an_outage_was_does_not_count() -> None:
    """It hangs from before an outage to after it: the record has an attempt more."""
    bench = Bench(breaker_threshold=2)
    hangs = bench.target.plan(record(0, "hangs"), Step(NO_ANSWER, seconds=20.0), *[DOWN] * 9)
    down = [bench.target.plan(record(n, f"{n}"), DOWN) for n in (1, 2)]
    await bench.submit(hangs)
    await asyncio.sleep(1)
    await bench.submit(*down)
    await asyncio.sleep(0.1)
    assert bench.dispatcher.breaker.state is BreakerState.OPEN
    letter = await the_letter_among_good_orders(bench, first=3)
    assert (letter.record, letter.attempts) == (hangs, 4)
    assert len(bench.target.times(hangs)) == 5


async def test_a_probe_does_not_count_after_the_outage() -> None:
    """It hangs until another probe has ended the outage: it has an attempt more."""
    bench = Bench(breaker_threshold=2)
    hangs = bench.target.plan(record(0, "hangs"), DOWN, Step(NO_ANSWER, seconds=20.0), *[DOWN] * 9)
    other = bench.target.plan(record(1, "other"), DOWN, DOWN)
    await bench.submit(other, hangs)
    await asyncio.sleep(1.1)
    assert bench.dispatcher.breaker.state is BreakerState.HALF_OPEN
    letter = await the_letter_among_good_orders(bench, first=2)
    assert (letter.record, letter.attempts) == (hangs, 4)
    # The first attempt does not count, either: it opened the breaker.
    assert len(bench.target.times(hangs)) == 6


async def test_intake_stops_while_the_breaker_is_open() -> None:
    """During an outage a bounded number of records is let in, for probes."""
    loop = asyncio.get_running_loop()
    bench = Bench(breaker_threshold=3, max_queued=10_000)
    bench.target.default = Step(DOWN)
    await bench.submit(*(record(offset, str(offset)) for offset in range(3)))
    await asyncio.sleep(0.1)
    let_in: list[float] = []

    async def take_more() -> None:
        for offset in range(3, 8100):
            await bench.dispatcher.submit(record(offset, str(offset)))
            let_in.append(loop.time())

    taking = asyncio.create_task(take_more())
    await asyncio.sleep(400)
    # Each of the first five probes a second after the last one.
    probes = [1.0, 2.0, 3.0, 4.0, 5.0, *(6.0 + 5.0 * n for n in range(79))]
    # From the seventh on, one in four is a record that has failed before.
    retried = probes[6::4]
    assert let_in == [0.1] * 8000 + [at for at in probes if at not in retried]
    assert bench.target.times() == [0.0] * 3 + probes
    bench.target.default = Step(answer(200))
    await taking
    await bench.until_finished(8100)

    assert loop.time() == 401.0
    assert bench.dead_letters.letters == []


@pytest.mark.parametrize("status", [422, 429])
async def test_a_probe_that_is_refused_or_throttled_ends_the_outage(status: int) -> None:
    """The target works again: it refuses one record, or limits the rate."""
    bench = Bench(breaker_threshold=2)
    one = bench.target.plan(record(0, "a"), DOWN, answer(status))
    other = bench.target.plan(record(1, "b"), DOWN)
    await bench.submit(one, other)
    await asyncio.sleep(1.05)
    assert bench.dispatcher.breaker.closed
    assert bench.dispatcher.target().last_status == status
    await bench.until_finished(2)
    assert [letter.record for letter in bench.dead_letters.letters] == [one] * (status == 422)


async def test_another_record_probes_while_one_is_told_to_wait() -> None:
    """A Retry-After delays its record, not the probes."""
    bench = Bench(breaker_threshold=2)
    bench.target.default = Step(DOWN)
    patient = bench.target.plan(record(0, "patient"), answer(503, retry_after_seconds=60.0))

    await bench.submit(patient, record(1, "other"))
    await asyncio.sleep(50)

    assert bench.target.times(patient) == [0.0]
    assert bench.target.times() == [0.0, 0.0, *PROBES[:10]]


async def test_the_log_tells_of_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is logged once as an error; its end is logged, too."""
    bench = Bench(breaker_threshold=1)
    one = bench.target.plan(record(0), DOWN)

    await bench.deliver(one)

    told = [(entry.levelname, entry.getMessage()) for entry in caplog.records]
    assert [one for one in told if "Breaker" in one[1]] == [
        (
            "ERROR",
            "Breaker open: the target fails; intake is paused "
            "because=1 first attempts in a row failed status=503 detail=''",
        ),
        ("WARNING", "Breaker closed: the target works again"),
    ]
