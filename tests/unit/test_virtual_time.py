"""The virtual clock that the other unit tests rely on."""

import asyncio

import pytest

from tests.support.virtual_time import NothingLeftToHappen, run_virtual, virtual_time


@virtual_time
async def test_waits_are_exact_and_in_order() -> None:
    """Timers fire at exactly their time, and in the order of their times."""
    loop = asyncio.get_running_loop()
    fired: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        fired.append((name, loop.time()))

    await asyncio.gather(wait("day", 86_400.0), wait("tick", 0.25), wait("minute", 60.0))

    assert fired == [("tick", 0.25), ("minute", 60.0), ("day", 86_400.0)]


def test_what_never_ends_fails() -> None:
    """A test that waits for what cannot happen, or loops endlessly, fails at once."""

    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    async def go_round_for_ever() -> None:
        while True:  # noqa: ASYNC110 - there is no event, on purpose
            await asyncio.sleep(3600)

    with pytest.raises(NothingLeftToHappen):
        run_virtual(wait_for_ever())
    with pytest.raises(NothingLeftToHappen):
        run_virtual(go_round_for_ever())


def test_an_error_in_a_task_fails() -> None:
    """A task that fails also fails the test that started it, even if that waits forever."""

    async def fail() -> None:
        raise ValueError("unseen")

    async def start(seconds: float) -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(seconds)
        if not seconds:
            await asyncio.get_running_loop().create_future()
        del task

    for seconds in (0.0, 1.0):
        with pytest.raises(ValueError, match="unseen"):
            run_virtual(start(seconds))
