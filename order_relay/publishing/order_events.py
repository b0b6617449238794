"""All that an order service needs to publish: made, started and ended in the right order.

    async with open_order_events(load_settings()) as events:
        events.outbox.add(session, event)

A service without asyncio has it in a thread of its own: ``order_events_thread``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass

from order_relay.fallback.replay import Replay
from order_relay.fallback.sweep import cancel_tasks
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer, start_threads
from order_relay.logs.rate_limit import RepeatFilter
from order_relay.publishing.after_commit import AfterCommit
from order_relay.publishing.outbox import Outbox
from order_relay.publishing.publisher import Publisher
from order_relay.settings import Settings
from order_relay.tracing.switch import running_tracing

# Of the event loop in a thread: what the Kafka client and host names are waited for in.
EXECUTOR_THREADS = 4


@dataclass(frozen=True, slots=True)
class OrderEvents:
    """The ways to publish, running.

    Attributes:
        publisher: Publishes now.
        after_commit: Publishes when a session's transaction has committed.
        outbox: Writes the event in the order's transaction.
        replay: Publishes saved rows and outbox rows.
    """

    publisher: Publisher
    after_commit: AfterCommit
    outbox: Outbox
    replay: Replay


@asynccontextmanager
async def open_order_events(
    settings: Settings, *, grace_seconds: float = 5.0
) -> AsyncIterator[OrderEvents]:
    """Publish as the settings say, and keep rows in their database, which is brought up to date.

    Kafka need not be there. After two questions in a row that no broker answered, events are saved
    at once, also those that wait for Kafka already, until a broker answers again.

    At the end each step gets ``grace_seconds``; what Kafka has not acknowledged by then is saved.

    Raises:
        InvalidSettings: TRACING cannot be used.
        InvalidDatabaseUrl: DATABASE_URL cannot be used.
        DatabaseTooNew: A newer version of the relay has migrated the database.
        DatabaseUnavailable: The database did not answer.
    """
    async with _opened(settings, grace_seconds, loop_ends=False) as events:
        yield events


@asynccontextmanager
async def _opened(
    settings: Settings, grace_seconds: float, *, loop_ends: bool
) -> AsyncIterator[OrderEvents]:
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(running_tracing(settings))
        store = FallbackTable(settings.database_url.get_secret_value())
        stack.push_async_callback(store.close)
        await store.open()
        producer = KafkaProducer(settings)
        topic, max_retry = settings.order_paid_topic, settings.fallback_max_retry
        publisher = Publisher(producer, store, topic, max_retry=max_retry, tracing=tracing)
        after_commit = AfterCommit(publisher, tracing=tracing)
        if loop_ends:  # other threads may commit up to now
            stack.push_async_callback(after_commit.end)
        producer_logger = logging.getLogger(KafkaProducer.__module__)
        repeats = RepeatFilter()  # librdkafka logs every attempt to connect
        producer_logger.addFilter(repeats)
        stack.callback(producer_logger.removeFilter, repeats)
        await producer.start()
        stack.push_async_callback(producer.stop, grace_seconds)
        stack.push_async_callback(publisher.close, grace_seconds)
        replay = Replay(
            store,
            producer,
            backoff_base_seconds=settings.fallback_backoff_base_seconds,
            interval_seconds=settings.fallback_replay_interval_seconds,
            stats_interval_seconds=settings.fallback_stats_interval_seconds,
            retention_days=settings.fallback_retention_days,
            tracing=tracing,
        )
        watching = asyncio.create_task(publisher.watch())
        stack.callback(watching.cancel)
        sweeping = asyncio.create_task(replay.run())
        stack.push_async_callback(cancel_tasks, sweeping)
        stack.push_async_callback(replay.stop, grace_seconds)
        stack.push_async_callback(after_commit.close, grace_seconds)
        outbox = Outbox(topic, replay=replay, max_retry=max_retry, tracing=tracing)
        stack.push_async_callback(outbox.close, grace_seconds)
        yield OrderEvents(publisher, after_commit, outbox, replay)


def order_events_thread(
    settings: Settings, *, grace_seconds: float = 5.0
) -> AbstractContextManager[OrderEvents]:
    """The same for a service without asyncio: its event loop runs in a thread of its own.

    Only ``after_commit.publish`` and ``outbox.add`` may be called from other threads. A process
    that ends without leaving the ``with`` block closes it first, unless a signal kills it.

    Raises:
        RelayError: On entering it; see ``open_order_events``.
    """
    return _OrderEventsThread(settings, grace_seconds)


class _OrderEventsThread(AbstractContextManager[OrderEvents]):
    """A class, since a generator would close as soon as it is referenced by nothing."""

    def __init__(self, settings: Settings, grace_seconds: float) -> None:
        self._settings = settings
        self._grace_seconds = grace_seconds
        self._stack = ExitStack()

    def __enter__(self) -> OrderEvents:
        loop = asyncio.new_event_loop()
        executor = ThreadPoolExecutor(EXECUTOR_THREADS, thread_name_prefix="order-events")
        start_threads(executor, EXECUTOR_THREADS)
        loop.set_default_executor(executor)
        thread = threading.Thread(target=loop.run_forever, name="order-events", daemon=True)
        thread.start()
        opened = _opened(self._settings, self._grace_seconds, loop_ends=True)
        with ExitStack() as stack:
            stack.callback(_end_loop, loop, thread, executor)
            # Entered and left by one task each: nothing in it is bound to the task.
            run = asyncio.run_coroutine_threadsafe
            events = run(opened.__aenter__(), loop).result()
            stack.callback(lambda: run(opened.__aexit__(None, None, None), loop).result())
            self._stack = stack.pop_all()
        self._process = os.getpid()
        # Closes it when the main thread has ended. A WSGI server calls a factory and never a
        # function at its end. Without this the interpreter waits for the database driver's threads,
        # and does not end. ``atexit`` runs too late: after the executors, which the clients need to
        # close, have shut down (CPython issue 86813).
        threading._register_atexit(self.__exit__)  # type: ignore[attr-defined]
        return events

    def __exit__(self, *_: object) -> None:
        if os.getpid() == self._process:  # a fork has no thread that could close it
            self._stack.close()


def _end_loop(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, executor: ThreadPoolExecutor
) -> None:
    executor.shutdown()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
