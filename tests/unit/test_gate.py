"""Which record is sent next while the target cannot take everything."""

import asyncio
from itertools import pairwise

import pytest

from order_relay.delivery.back_pressure import Pace
from order_relay.delivery.breaker import Breaker, BreakerState
from order_relay.delivery.gate import NO_PROBE, Gate

pytestmark = pytest.mark.virtual_time


class Guarded:
    """A gate, with its breaker and its pace on the running loop's clock."""

    def __init__(self, max_rate: float | None = None) -> None:
        clock = asyncio.get_running_loop().time
        self.breaker = Breaker(1, 5.0, clock, self._changed)
        self.pace = Pace(clock, max_rate)
        self.gate = Gate(self.breaker, self.pace)
        self.order: list[tuple[str, float]] = []

    def open_breaker(self) -> None:
        self.breaker.failed(NO_PROBE, first=True)

    async def fail(self, name: str, number: int, failures: int) -> None:
        """Wait for the turn, then fail."""
        self.breaker.failed(await self.gate.join(number, failures), first=failures == 0)
        self.order.append((name, asyncio.get_running_loop().time()))

    def _changed(self, state: BreakerState) -> None:
        self.gate.serve()


async def test_the_least_hopeless_record_probes_first() -> None:
    """Records never sent, each a second after the last probe: the last, the first, and so on.

    Then the others by their failures, at the interval.
    """
    guarded = Guarded()
    guarded.open_breaker()

    waiting = [("7", 1, 7), ("2a", 2, 2), ("old", 3, 0), ("mid", 4, 0), ("new", 5, 0), ("1", 6, 1)]
    await asyncio.gather(*(guarded.fail(*one) for one in waiting))

    assert guarded.order == [
        ("new", 1.0), ("old", 2.0), ("mid", 3.0), ("1", 8.0), ("2a", 13.0), ("7", 18.0)
    ]  # fmt: skip


async def test_a_probe_that_is_cancelled_before_it_is_sent() -> None:
    """The next record probes at once."""
    guarded = Guarded()
    guarded.open_breaker()
    turn = guarded.gate.join(1, 0)
    await asyncio.sleep(1.0)
    assert turn.done()

    guarded.gate.leave(1, turn)

    assert guarded.breaker.state is BreakerState.OPEN
    assert guarded.breaker.probe_wait(never_sent=False) == 0


async def test_in_order_at_the_pace() -> None:
    """With a rate all are sent in their order, however often they failed."""
    guarded = Guarded(max_rate=2.0)
    assert not guarded.gate.is_open
    gone: list[tuple[int, float]] = []

    async def go(number: int, failures: int) -> None:
        assert await guarded.gate.join(number, failures) == NO_PROBE
        gone.append((number, asyncio.get_running_loop().time()))

    await asyncio.gather(*(go(number, failures) for number, failures in ((3, 0), (1, 2), (2, 0))))

    # The first to arrive is sent at once; the others are in order.
    assert gone == [(3, 0.0), (1, 0.5), (2, 1.0)]


async def test_the_first_after_a_refusal_was_never_sent() -> None:
    """Those refused before may always be refused; then all are sent in order again."""
    guarded = Guarded(max_rate=2.0)
    guarded.pace.refused(0.0, 1.0)
    gone: list[int] = []

    async def go(number: int, failures: int) -> None:
        await guarded.gate.join(number, failures)
        gone.append(number)
        guarded.pace.accepted(asyncio.get_running_loop().time())

    await asyncio.gather(*(go(number, failures) for number, failures in ((1, 2), (2, 1), (3, 0))))

    assert gone == [3, 1, 2]


async def test_a_hold_holds_probes_back_too() -> None:
    """Retry-After applies to all that is sent."""
    guarded = Guarded()
    guarded.open_breaker()
    guarded.pace.refused(0.0, 30.0)

    await guarded.gate.join(1, 0)

    assert asyncio.get_running_loop().time() == 30.0


async def test_thousands_that_have_failed_are_not_gone_through_for_each_one() -> None:
    """They come at once when the breaker opens; the one that probes next is chosen once."""
    guarded = Guarded()
    guarded.open_breaker()
    asked = 0
    probe_wait = guarded.breaker.probe_wait

    def counting(*, never_sent: bool) -> float:
        nonlocal asked
        asked += 1
        return probe_wait(never_sent=never_sent)

    guarded.breaker.probe_wait = counting  # type: ignore[method-assign]
    turns = [guarded.gate.join(number, 1 + number % 3) for number in range(1, 2000)]
    assert asked == 1

    await asyncio.sleep(1.0)
    assert [number for number, turn in enumerate(turns, 1) if turn.done()] == [3]


async def test_among_orders_never_sent_a_retry_probes_now_and_then() -> None:
    """After six of them, then after each three: the target may accept only what is repeated."""
    guarded = Guarded()
    guarded.open_breaker()
    new = [(f"new-{number}", number, 0) for number in range(1, 11)]

    await asyncio.gather(
        *(
            guarded.fail(*one)
            for one in (*new, ("twice", 20, 2), ("once", 21, 1), ("thrice", 22, 3))
        )
    )

    names = [name for name, _ in guarded.order]
    assert [names.index(name) for name in ("once", "twice", "thrice")] == [6, 10, 12]
    assert all(late - early <= 5.0 for (_, early), (_, late) in pairwise(guarded.order))
