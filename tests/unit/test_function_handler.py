"""A consumer's function as a target: the result of an attempt that returns or raises."""

import asyncio
import dataclasses
import errno
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from order_relay import Delivery, Reject, RetryLater, Unavailable
from order_relay.delivery.answer import Answer, Verdict
from order_relay.handlers.function import FunctionHandler
from order_relay.settings import load_settings
from tests.support.waiting import eventually

DELIVERY = Delivery("coupons", "paid-7", 1, "orders", 0, 41, b"7", b"{}", (), 1000)

Attempt = Callable[..., Awaitable[Answer]]


@pytest.fixture
def handlers() -> list[FunctionHandler]:
    """The handlers of a test."""
    return []


@pytest.fixture
async def attempt(handlers: list[FunctionHandler]) -> AsyncIterator[Attempt]:
    """Makes one attempt with a function; stops its handler at the end."""

    async def one(function: Callable[[Any, Delivery], Any], *, seconds: float = 30) -> Answer:
        settings = load_settings(
            external_logger_timeout_seconds=seconds, external_logger_token="s3cret"
        )
        handler = FunctionHandler(function, settings, max_in_flight=2)
        handlers.append(handler)
        return await handler.handle({"orderId": 7}, DELIVERY)

    yield one
    for handler in handlers:
        handler.stop()


def raising(error: BaseException) -> Callable[[Any, Delivery], Any]:
    """An async handler that raises."""

    async def handler(event: Any, delivery: Delivery) -> None:
        raise error

    return handler


def raising_plainly(error: BaseException) -> Callable[[Any, Delivery], Any]:
    """A plain handler that raises."""

    def handler(event: Any, delivery: Delivery) -> None:
        raise error

    return handler


async def test_it_is_called_with_event_and_delivery(attempt: Attempt) -> None:
    """An async function in the loop, a plain one in a thread; returning finishes the record."""
    seen: list[tuple[Any, Delivery, bool]] = []

    async def in_loop(event: Any, delivery: Delivery) -> str:
        seen.append((event, delivery, threading.current_thread() is threading.main_thread()))
        return "whatever it returns"

    def in_thread(event: Any, delivery: Delivery) -> None:
        seen.append((event, delivery, threading.current_thread() is threading.main_thread()))

    class CallableObject:
        async def __call__(self, event: Any, delivery: Delivery) -> None:
            await in_loop(event, delivery)

    for function in (in_loop, in_thread, partial(in_loop), CallableObject(), staticmethod(in_loop)):
        assert (await attempt(function)).verdict is Verdict.SUCCESS
    assert [(event, delivery) for event, delivery, _ in seen] == [({"orderId": 7}, DELIVERY)] * 5
    assert [in_main for _, _, in_main in seen] == [True, False, True, True, True]


class OwnRetryLater(RetryLater):
    """Does not call ours."""

    def __init__(self) -> None:
        Exception.__init__(self, "too many")


@pytest.mark.parametrize("way", [raising, raising_plainly])
@pytest.mark.parametrize(
    ("error", "verdict", "detail"),
    [
        (Reject("no such user"), Verdict.REJECTED, "no such user"),
        (Unavailable("our credentials"), Verdict.OUTAGE, "our credentials"),
        (RetryLater(5), Verdict.THROTTLED, "the handler asked to retry later"),
        (OwnRetryLater(), Verdict.THROTTLED, "too many"),
        (
            ExceptionGroup("of a TaskGroup", [ExceptionGroup("", [Reject("no user")]), OSError()]),
            Verdict.REJECTED,
            "no user",
        ),
        (ValueError("no s3cret for you"), Verdict.RETRYABLE, "ValueError: no [redacted] for you"),
        (TimeoutError(), Verdict.RETRYABLE, "TimeoutError"),
        (OSError(errno.EMFILE, "too many open files"), Verdict.LOCAL, "too many open files"),
        (MemoryError(), Verdict.LOCAL, "MemoryError"),
        (SystemExit(3), Verdict.RETRYABLE, "SystemExit(3)"),
        (KeyboardInterrupt(), Verdict.RETRYABLE, "KeyboardInterrupt()"),
        (StopIteration(), Verdict.RETRYABLE, "StopIteration"),
        (asyncio.CancelledError(), Verdict.RETRYABLE, "CancelledError"),
        (GeneratorExit(), Verdict.RETRYABLE, "GeneratorExit"),
    ],
)
async def test_what_it_raises_is_an_answer(
    attempt: Attempt,
    way: Callable[[BaseException], Any],
    error: BaseException,
    verdict: Verdict,
    detail: str,
) -> None:
    """Nothing that a handler raises ends more than its own attempt."""
    answer = await attempt(way(error))
    assert answer.verdict is verdict
    assert detail in answer.detail
    assert answer.retry_after_seconds == getattr(error, "seconds", 0)


class NoText(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise ValueError("no text")


async def test_an_error_that_cannot_be_told_is_a_failed_attempt_like_any(attempt: Attempt) -> None:
    """Without a text its class is shown; a lone surrogate is escaped."""
    assert (await attempt(raising(NoText()))).detail == "NoText"
    for error in (ValueError("\ud800"), Reject("\ud800")):
        answer = await attempt(raising(error))
        assert answer.detail.endswith("\\ud800")
        assert answer.detail.isascii()  # the deliveries table takes UTF-8 alone


async def test_an_error_that_is_its_own_cause_is_a_failed_attempt(attempt: Attempt) -> None:
    """As of ``raise error from error``: the search for its cause ends."""

    async def handler(event: object, delivery: Delivery) -> None:
        try:
            int("odd")
        except ValueError as error:
            raise error from error

    answer = await attempt(handler)
    assert answer.verdict is Verdict.RETRYABLE
    assert answer.detail.startswith("ValueError: invalid literal")


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [
        *((-1, 0), (0, 0), (7.5, 7.5), (3600, 60), (float("inf"), 60), (float("nan"), 0)),
        *(("5", 5), ("Fri, 19 Dec 2025 10:30:00 GMT", 0), (None, 0)),
    ],
)
async def test_a_wait_is_bounded(attempt: Attempt, wanted: Any, seconds: float) -> None:
    """As Retry-After is: 0 to 60 s, also as the text of that header; 0 for what is not a number."""
    answer = await attempt(raising(RetryLater(wanted)))
    assert answer.verdict is Verdict.THROTTLED
    assert answer.retry_after_seconds == seconds


async def test_a_hanging_handler_is_a_failed_attempt(attempt: Attempt) -> None:
    """It is cancelled when its time is over."""
    ended = []

    async def hangs(event: Any, delivery: Delivery) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    answer = await attempt(hangs, seconds=0.01)
    assert (answer.verdict, answer.failure) == (Verdict.RETRYABLE, "timeout")
    assert answer.detail == "the handler did not return within 0.01 s"
    assert ended == ["cancelled"]


async def test_a_standstill_of_the_event_loop_is_not_the_handlers_fault(attempt: Attempt) -> None:
    """Other code blocks the loop beyond the time-out: the handler gets its time again."""
    waits = asyncio.Event()

    async def waiting(event: Any, delivery: Delivery) -> None:
        waits.set()
        await asyncio.sleep(0.2)
        await asyncio.sleep(0.2)

    async def blocking() -> None:
        await waits.wait()
        time.sleep(1.0)  # noqa: ASYNC251 - the fault

    answer, _ = await asyncio.gather(attempt(waiting, seconds=0.5), blocking())
    assert answer.verdict is Verdict.SUCCESS


async def test_a_thread_that_does_not_return_is_told(
    attempt: Attempt, caplog: pytest.LogCaptureFixture
) -> None:
    """After the time-out; the attempt lasts until it returns."""
    told = threading.Event()

    def waits(event: Any, delivery: Delivery) -> None:
        assert told.wait(60)

    attempting = asyncio.ensure_future(attempt(waits, seconds=0.01))
    await eventually(lambda: "Handler does not return from its thread" in caplog.text)
    assert "seconds=0.01 calls=1" in caplog.text
    told.set()
    assert (await attempting).verdict is Verdict.SUCCESS


async def test_a_handler_that_does_not_end_is_told(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it ignores the cancellation, the attempt ends, and an error is logged."""
    monkeypatch.setattr("order_relay.handlers.function.CANCEL_SECONDS", 0.01)
    release = asyncio.Event()
    ended = asyncio.Event()

    async def stubborn(event: Any, delivery: Delivery) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    assert (await attempt(stubborn, seconds=0.01)).failure == "timeout"
    assert "Handler goes on though it was cancelled" in caplog.text
    release.set()
    await asyncio.wait_for(ended.wait(), 5)


async def test_an_attempt_that_is_given_up_ends_its_handler(attempt: Attempt) -> None:
    """As in a rebalance: the handler is cancelled, and so is the attempt."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def hangs(event: Any, delivery: Delivery) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.ensure_future(attempt(hangs))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_thread_cannot_be_ended(attempt: Attempt, handlers: list[FunctionHandler]) -> None:
    """Only an attempt that is given up does not wait for its end."""
    began, release, returned = threading.Event(), threading.Event(), threading.Event()

    def hangs(event: Any, delivery: Delivery) -> None:
        began.set()
        release.wait(30)
        returned.set()

    task = asyncio.ensure_future(attempt(hangs, seconds=0.01))
    await eventually(began.is_set, 5, "the handler to begin")
    await asyncio.sleep(0.05)
    assert not task.done()  # no time-out: a second attempt would run beside it
    assert handlers[-1].in_threads == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handlers[-1].in_threads == 0
    release.set()
    await eventually(returned.is_set, 5, "the thread to return")


async def test_a_call_without_a_thread_is_not_made(
    handlers: list[FunctionHandler], attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without threads on the host no attempt counts, and the call is not made later."""
    began, release, made = threading.Event(), threading.Event(), []

    def waits(event: Any, delivery: Delivery) -> None:
        made.append(delivery.attempt)
        began.set()
        release.wait(30)

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    first = asyncio.ensure_future(attempt(waits))
    await eventually(began.is_set, 5, "the handler to begin")
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    second, third = (dataclasses.replace(DELIVERY, attempt=number) for number in (2, 3))
    answer = await handlers[0].handle({}, second)
    assert (answer.verdict, answer.failure) == (Verdict.LOCAL, "local")
    assert answer.detail == "RuntimeError: can't start new thread"
    monkeypatch.undo()
    release.set()
    await first
    assert (await handlers[0].handle({}, third)).verdict is Verdict.SUCCESS
    assert made == [1, 3]


async def in_loop(event: Any, delivery: Delivery) -> None:
    """Work that is never done."""
    raise AssertionError


async def yields(event: Any, delivery: Delivery) -> AsyncIterator[None]:
    """The same, as a generator."""
    yield


def around(function: Callable[[Any, Delivery], Any]) -> Callable[[Any, Delivery], Any]:
    """Hide a function's kind, as a decorator may."""
    return lambda event, delivery: function(event, delivery)  # noqa: PLW0108 - hides it


async def without_await(event: Any, delivery: Delivery) -> Any:
    """Forgets to await."""
    return in_loop(event, delivery)


class Yields:
    """Its method is a generator, which a declaration does not see."""

    def __call__(self, event: Any, delivery: Delivery) -> Iterator[None]:
        """Do nothing."""
        yield


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (around(in_loop), "coroutine"),
        (around(yields), "async_generator"),
        (without_await, "coroutine"),
        (Yields(), "generator"),
        (lambda event, delivery: Future(), "Future"),
    ],
)
async def test_work_that_is_returned_is_not_done(
    attempt: Attempt, function: Callable[[Any, Delivery], Any], kind: str
) -> None:
    """A handler that returns unfinished work has failed, and the answer says why."""
    answer = await attempt(function)
    assert answer.verdict is Verdict.RETRYABLE
    assert f"returned work that is not done, of type {kind}:" in answer.detail
