"""Waiting for a condition with a limit: in an async test, and in a thread."""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")

POLL_SECONDS = 0.05
BLOCKING_POLL_SECONDS = 0.1


@overload
async def eventually(
    condition: Callable[[], Coroutine[Any, Any, T]],
    timeout: float = ...,
    describe: str | Callable[[], object] = ...,
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], timeout: float = ..., describe: str | Callable[[], object] = ...
) -> T: ...
async def eventually(
    condition: Callable[[], Any], timeout: float = 30.0, describe: str | Callable[[], object] = ""
) -> Any:
    """Ask again and again until the answer is true, and return it; the loop runs meanwhile.

    Args:
        condition: The question; may be a coroutine function.
        timeout: Seconds after which to give up.
        describe: What is waited for, or what to ask for the error's text when time is over.

    Raises:
        TimeoutError: The limit is over; the text has the last answer.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() >= deadline:
            text = describe if isinstance(describe, str) else describe()
            raise TimeoutError(f"not within {timeout:g} s: {text} (last answer: {value!r})")
        await asyncio.sleep(POLL_SECONDS)


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
        time.sleep(BLOCKING_POLL_SECONDS)
