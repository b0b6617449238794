"""An event loop whose clock jumps: waits are exact and take no time.

Whenever nothing is ready to run, the loop's clock goes forward to the next timer at once. When
nothing is ready and no timer is set, nothing can ever happen again: the test fails instead of
hanging. It also fails after two days: something loops endlessly.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

# A float of seconds is exact to less than the loop's clock resolution (1 ns) until then.
LONGEST_SECONDS = 2 * 24 * 3600.0

P = ParamSpec("P")
T = TypeVar("T")


class NothingLeftToHappen(Exception):
    """Every task waits for what cannot happen, or loops endlessly."""


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for ``timeout`` seconds, moves the clock by them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events:
            return events
        if timeout is None:
            raise NothingLeftToHappen
        if timeout > 0 and self.now > LONGEST_SECONDS:
            raise NothingLeftToHappen
        self.now += max(timeout, 0.0)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that begins at 0 s and never really waits.

    Attributes:
        failures: The errors that tasks ended with.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self.failures: list[BaseException] = []
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        task.add_done_callback(self._note_failure)
        return task

    def _note_failure(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time; a task that ends in an error fails it too."""
    loop = VirtualTimeLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            result = runner.run(main)
        except Exception as error:
            # The error of a task says more than the time-out of those that waited for it.
            if loop.failures and loop.failures[0] is not error:
                raise loop.failures[0] from error
            raise
    if loop.failures:
        raise loop.failures[0]
    return result


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make an async test run in virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtual(test(*args, **kwargs))

    return run
