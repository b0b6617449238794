"""The event loop's default threads: those of each consumer for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from order_relay.logs.log_line import CONSUMER

P = ParamSpec("P")
T = TypeVar("T")


class ConsumerThreads(ThreadPoolExecutor):
    """Runs what ``asyncio.to_thread`` and ``run_in_executor(None, ...)`` are given.

    A thread that hangs cannot be stopped. With threads shared by all, the calls of one consumer
    would take them from the other consumers and from the worker itself. What is called in the
    context of no consumer runs in this pool's own threads.
    """

    def __init__(self, max_in_flight: Mapping[str, int]) -> None:
        """Create the pools; no thread is started.

        Args:
            max_in_flight: For each consumer how many attempts it has at once, and so threads.
        """
        super().__init__(thread_name_prefix="worker")
        self._of_consumers = {
            name: ThreadPoolExecutor(threads, f"consumer-{name}")
            for name, threads in max_in_flight.items()
        }

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread of the consumer in whose context this is called."""
        pool = self._of_consumers.get(CONSUMER.get(""))
        if pool is None:
            return super().submit(fn, *args, **kwargs)
        return pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See ``Executor.shutdown``; calls of consumers that hang are not waited for."""
        for pool in self._of_consumers.values():
            pool.shutdown(wait=False, cancel_futures=cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)
