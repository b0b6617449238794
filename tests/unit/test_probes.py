"""Who probes next while the breaker is not closed."""

import asyncio

from app.delivery.breaker import Breaker, BreakerState
from app.delivery.probes import NO_PROBE, ProbeQueue
from tests.support.virtual_time import virtual_time


def opened() -> tuple[Breaker, ProbeQueue]:
    """An open breaker with its queue."""
    loop = asyncio.get_running_loop()

    def changed(_: BreakerState) -> None:
        queue.serve()

    breaker = Breaker(1, 5.0, loop.time, changed)
    queue = ProbeQueue(breaker)
    breaker.failed(NO_PROBE)
    return breaker, queue


@virtual_time
async def test_the_least_hopeless_record_goes_first() -> None:
    """One that was never sent, then by failures, then in order of arrival."""
    breaker, queue = opened()
    loop = asyncio.get_running_loop()
    order: list[tuple[str, float]] = []

    async def wait(name: str, failures: int) -> None:
        breaker.failed(await queue.join(failures))
        order.append((name, loop.time()))

    await asyncio.gather(
        *(wait(*one) for one in [("7", 7), ("2a", 2), ("new", 0), ("1", 1), ("2b", 2)])
    )

    assert order == [("new", 1.0), ("1", 6.0), ("2a", 11.0), ("2b", 16.0), ("7", 21.0)]


@virtual_time
async def test_a_record_that_was_never_sent_need_not_wait_for_the_interval() -> None:
    """It goes a second after the last probe, whenever it comes."""
    breaker, queue = opened()
    loop = asyncio.get_running_loop()
    breaker.failed(await queue.join(3))
    later = queue.join(4)

    await queue.join(0)

    assert loop.time() == 2.0
    assert not later.done()


@virtual_time
async def test_all_go_when_the_breaker_closes() -> None:
    """None of them is a probe then."""
    breaker, queue = opened()
    turns = [queue.join(failures) for failures in (3, 0, 1)]

    breaker.succeeded()

    assert [turn.result() for turn in turns] == [NO_PROBE] * 3
    assert (await queue.join(9)) == NO_PROBE


@virtual_time
async def test_who_leaves_the_queue_holds_nobody_up() -> None:
    """A record that is given up meanwhile does not take a turn."""
    _, queue = opened()
    first, second = queue.join(0), queue.join(1)
    first.cancel()

    ticket = await second

    assert ticket != NO_PROBE
    assert asyncio.get_running_loop().time() == 1.0
