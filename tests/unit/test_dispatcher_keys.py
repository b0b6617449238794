"""The relay's promises about keys: order, waiting, and bounded memory."""

import asyncio

import pytest

from order_relay.errors import PublishRefused
from tests.support.fakes import Bench, Step, answer, record

pytestmark = pytest.mark.virtual_time

FOR_EVER = float("inf")
DOWN = answer(503, "try later")


@pytest.mark.parametrize("error", [PublishRefused("dlq", "down"), OSError("unexpected")])
async def test_a_refused_dead_letter_is_tried_until_it_is_kept(error: Exception) -> None:
    """Its record stays unfinished, its key waits, and other keys use its slot."""
    bench = Bench(max_in_flight=1)
    bench.dead_letters.refusals.extend([error] * 6)

    await bench.submit(record(0, "a", value=b"{"), record(1, "a"), record(2, "b"))
    await bench.until_finished(1)
    assert bench.finished_offsets == [2]
    await asyncio.sleep(34.5)
    assert bench.finished_offsets == [2]
    await bench.until_finished(3)

    waits_1_2_4_8_10 = [0.0, 1.0, 3.0, 7.0, 15.0, 25.0, 35.0]
    assert bench.dead_letters.calls == [(at, 0) for at in waits_1_2_4_8_10]
    assert bench.finished_offsets == [2, 0, 1]
    assert bench.observer.dead_letter_reasons == ["invalid_json"]
    assert bench.dispatcher.dead_lettering == 0


async def test_the_id_of_a_record_that_waits_is_not_anothers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A target that drops known ids would drop the one that waits; copies keep it."""
    bench = Bench()
    ids_of_the_first = [("event-id", b"order-paid-events-0-0")]
    waiting = bench.target.plan(record(0, "a"), DOWN)

    await bench.deliver(waiting, record(1, "b", headers=ids_of_the_first))
    await bench.submit(record(2, "a", headers=ids_of_the_first))
    await bench.until_finished(3)

    assert [(attempt.event_id[-3:], attempt.at) for attempt in bench.target.attempts] == [
        ("0-0", 0.0), ("0-1", 0.0), ("0-0", 1.0), ("0-0", 1.0),
    ]  # fmt: skip
    assert caplog.text.count("Event id is that of another record") == 1


async def test_an_id_of_a_record_that_is_still_to_come_is_not_taken() -> None:
    """Ids are predictable: a record with the id of a later one gets that of its own position."""
    bench = Bench()
    early = record(0, "a", headers=[("event-id", b"order-paid-events-0-1"), ("other", b"x")])

    await bench.deliver(early)

    assert [attempt.event_id for attempt in bench.target.attempts] == ["order-paid-events-0-0"]
    assert bench.finished == [early.with_own_id()]


async def test_a_key_in_backoff_holds_up_only_itself() -> None:
    """While one key fails through all its retries, others are delivered at once."""
    bench = Bench(max_in_flight=1)
    failing = bench.target.plan(record(0, "failing"), *[DOWN] * 4)

    await bench.submit(failing, record(1, "failing"))
    for offset in range(2, 50):
        await bench.submit(record(offset, f"key-{offset}"))
    await bench.until_finished(50)

    assert bench.finished_offsets == [*range(2, 50), 0, 1]
    assert bench.target.times(record(49, "key-49")) == [0.0]


async def test_records_without_a_key_do_not_wait() -> None:
    """A record without a key has its own lane; "" is a key."""
    bench = Bench()
    for offset, key in enumerate([None, None, "", ""]):
        one = record(offset, key)
        bench.target.plan(one, Step(answer(200), seconds=3.0 - offset if offset < 2 else 1.0))
        await bench.submit(one)
    await bench.until_finished(4)

    assert bench.target.times() == [0.0, 0.0, 0.0, 1.0]
    assert bench.finished_offsets in ([2, 1, 3, 0], [2, 3, 1, 0])


async def test_memory_is_bounded_behind_a_stuck_key() -> None:
    """It gets a tenth of the room; the rest of it is left in Kafka, and other keys go on."""
    bench = Bench(max_in_flight=2, max_queued=50)
    stuck = [record(offset, "stuck") for offset in range(100)]
    bench.target.plan(stuck[0], Step(answer(200), seconds=50.0))

    taken = [await bench.dispatcher.submit(one) for one in stuck]
    await bench.deliver(record(100, "other"))

    assert taken == [True] * 5 + [False] * 95
    assert bench.finished_offsets == [100]
    assert bench.dispatcher.queued == 5
    assert bench.dispatcher.left.count == 95
    assert bench.reading.asked == []
    await asyncio.sleep(60)
    # Asked for once half of its room was free; nothing later is accepted before it.
    assert bench.reading.asked == [(0, 5)]
    assert not await bench.dispatcher.submit(record(101, "stuck"))
    for one in stuck[5:]:
        assert await bench.dispatcher.submit(one)
        await asyncio.sleep(0.1)
    assert bench.dispatcher.left.count == 1
    assert await bench.dispatcher.submit(record(101, "stuck"))
    await asyncio.sleep(1)
    assert bench.finished_offsets == [100, *range(100), 101]
    assert bench.reading.asked[-1] == (0, "on")


async def test_at_full_room_a_new_key_still_gets_in() -> None:
    """Stuck keys with many records fill little more than half of the room, never all."""
    bench = Bench(max_in_flight=100, max_queued=100)
    bench.target.default = Step(answer(200), seconds=FOR_EVER)
    for offset in range(2000):
        await bench.dispatcher.submit(record(offset, f"stuck-{offset % 20}"))
    assert bench.dispatcher.queued < 100
    good = bench.target.plan(record(2000, "good"), answer(200))

    await bench.deliver(good)

    assert bench.finished == [good]
