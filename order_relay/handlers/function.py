"""Handles records with a consumer's function: one call is one attempt."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from order_relay.delivery.answer import MAX_RETRY_AFTER_SECONDS, Answer, Verdict
from order_relay.delivery.dead_letters import full_name
from order_relay.errors import Reject, RetryLater, Unavailable
from order_relay.handlers.http import is_local_failure
from order_relay.logs.log_line import LogLine
from order_relay.model.consumer import Delivery, runs
from order_relay.settings import Settings
from order_relay.settings.secret_files import redact

logger = logging.getLogger(__name__)

MAX_TEXT_LENGTH = 1024
# How long a cancelled call may take to end.
CANCEL_SECONDS = 1.0
# If a time-out comes this late, the process or its event loop stood still: the call gets its time
# again, once.
STANDSTILL_SECONDS = 0.25
# Minimum time between two lines about calls that do not return.
LATE_LOG_SECONDS = 60.0
# Returned by a function that only prepared its work; awaitables are others.
WORK = (Generator, AsyncGenerator, Future)
# asyncio does not pass these on through a task or a thread's future.
EXITS = (SystemExit, KeyboardInterrupt, StopIteration)
FUNCTION = "function"
SUCCESS = Answer(Verdict.SUCCESS, failure=FUNCTION)


class HandlerExited(Exception):
    """A handler raised an exception that would have stopped more than its own call."""


class FunctionHandler:
    """Calls a function with each event: an async one in the event loop, a plain one in a thread."""

    def __init__(
        self, function: Callable[[Any, Delivery], Any], settings: Settings, max_in_flight: int
    ) -> None:
        """Create a handler; no thread is started.

        Args:
            function: The consumer's function.
            settings: The consumer's settings. Their time-out is for async functions: a thread
                cannot be stopped, so an attempt of a plain function lasts until it returns.
            max_in_flight: Maximum concurrent calls.
        """
        self._function = function
        self._timeout_seconds = settings.external_logger_timeout_seconds
        self._secrets = settings.secrets
        self._max_in_flight = max_in_flight
        self._threads: ThreadPoolExecutor | None = None
        self._late_logged_at = float("-inf")
        self._in_loop = runs(function, inspect.iscoroutinefunction)
        self.in_threads = 0
        """Calls in threads whose result is awaited."""

    async def handle(self, event: Any, delivery: Delivery) -> Answer:
        """See ``EventHandler.handle``."""
        if self._in_loop:
            return await self._result(asyncio.ensure_future(self._run_async(event, delivery)))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._max_in_flight, "handler")
        done: Future[None] = Future()
        call = functools.partial(
            contextvars.copy_context().run, self._run_in_thread, done, event, delivery
        )
        try:
            self._threads.submit(call)
        except RuntimeError as error:
            # No thread can be started. The executor keeps the call, and would run it later.
            if done.cancel():
                local = Verdict.LOCAL
                return Answer(local, None, self._text(error), 0.0, full_name(error), "local")
        in_thread = asyncio.wrap_future(done)
        self.in_threads += 1
        try:
            return await self._result(in_thread, limited=False)
        finally:
            self.in_threads -= 1

    async def _run_async(self, event: Any, delivery: Delivery) -> None:
        try:
            _check_done(await self._function(event, delivery))
        except EXITS as error:  # it would stop the event loop
            raise HandlerExited(repr(error)) from error

    def _run_in_thread(self, done: Future[None], event: Any, delivery: Delivery) -> None:
        if done.set_running_or_notify_cancel():
            try:
                _check_done(self._function(event, delivery))
            except EXITS as error:
                done.set_exception(HandlerExited(repr(error)))
            except BaseException as error:  # noqa: BLE001 - it is the call's result
                done.set_exception(error)
            else:
                done.set_result(None)

    async def _result(self, call: asyncio.Future[None], *, limited: bool = True) -> Answer:
        """Return the result of a call; cancels it after the time-out, or with the attempt.

        If it is not ``limited``, it is only logged after the time-out.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._timeout_seconds
        try:
            _, late = await asyncio.wait({call}, timeout=self._timeout_seconds)
            if late and limited and loop.time() >= ends_at + STANDSTILL_SECONDS:
                _, late = await asyncio.wait({call}, timeout=self._timeout_seconds)
            if late and not limited:
                self._log_late()
                _, late = await asyncio.wait({call})
        except asyncio.CancelledError:
            await self._cancel(call)
            raise
        if late:
            await self._cancel(call)
            return Answer(
                Verdict.RETRYABLE,
                detail=f"the handler did not return within {self._timeout_seconds:g} s",
                error_type="builtins.TimeoutError",
                failure="timeout",
            )
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        return SUCCESS if error is None else self._judge(error)

    def _log_late(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._late_logged_at >= LATE_LOG_SECONDS:
            self._late_logged_at = now
            logger.warning(
                LogLine(
                    "Handler does not return from its thread, its record waits",
                    seconds=self._timeout_seconds,
                    calls=self.in_threads,
                )
            )

    async def _cancel(self, call: asyncio.Future[None]) -> None:
        call.cancel()
        if self._in_loop:
            await asyncio.wait({call}, timeout=CANCEL_SECONDS)
            if not call.done():
                logger.error(
                    LogLine("Handler goes on though it was cancelled, beside its next attempt")
                )
        call.add_done_callback(_retrieve_exception)

    def _judge(self, error: BaseException) -> Answer:
        logger.debug("A handler raised", exc_info=error)
        verdict, failure, seconds = Verdict.RETRYABLE, FUNCTION, 0.0
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]  # the others are often its consequences
        if isinstance(error, Reject):
            verdict = Verdict.REJECTED
        elif isinstance(error, RetryLater):
            verdict, seconds = Verdict.THROTTLED, _seconds(error.seconds)
        elif isinstance(error, Unavailable):
            verdict = Verdict.OUTAGE
        elif is_local_failure(error):
            verdict, failure = Verdict.LOCAL, "local"
        return Answer(verdict, None, self._text(error), seconds, full_name(error), failure)

    def stop(self) -> None:
        """Start no more calls; those under way continue in their threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def _text(self, error: BaseException) -> str:
        try:
            text = str(error)
        except Exception:  # noqa: BLE001 - an error whose text fails is still an error
            text = ""
        name = type(error).__name__
        if not isinstance(error, Reject | RetryLater | Unavailable):
            text = f"{name}: {text}" if text else name
        # The deliveries table accepts UTF-8 only.
        text = text.encode("utf-8", "backslashreplace").decode()
        return redact(text or name, self._secrets)[:MAX_TEXT_LENGTH]


def _check_done(returned: object) -> None:
    """Check that a handler did its work, and did not return it for others to run or await.

    Raises:
        TypeError: It returned work, for example a coroutine that it does not await.
    """
    if inspect.isawaitable(returned) or isinstance(returned, WORK):
        if inspect.iscoroutine(returned):
            returned.close()  # otherwise Python warns that it was never awaited
        raise TypeError(
            f"the handler returned work that is not done, of type {type(returned).__name__}: "
            "finish the work before the handler returns"
        )


def _seconds(wanted: Any) -> float:
    """Return the wait that a handler asks for; it may be the text of a header."""
    try:
        seconds = float(wanted)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(seconds, MAX_RETRY_AFTER_SECONDS) if seconds > 0 else 0.0  # NaN is not


def _retrieve_exception(call: asyncio.Future[None]) -> None:
    """Retrieve a call's exception, so that asyncio does not log that it was never retrieved."""
    if not call.cancelled():
        call.exception()
