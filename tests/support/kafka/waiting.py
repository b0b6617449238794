"""Waiting for a condition outside this process, with a limit."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


def wait_until(ask: Callable[[], T | None], *, limit: float, what: str) -> T:
    """Ask again and again until the answer is neither None nor False, and return it.

    Blocks the calling thread: from a coroutine use `asyncio.to_thread`.

    Args:
        ask: The question; it must return within a few seconds.
        limit: Seconds after which to give up.
        what: What is being waited for, for the error.

    Raises:
        TimeoutError: The limit is over.
    """
    deadline = time.monotonic() + limit
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {limit:g} s: {what}")
        time.sleep(POLL_SECONDS)
