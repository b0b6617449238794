"""Publishing the due rows of the fallback table: at intervals, in every worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from order_relay.errors import DatabaseUnavailable, KafkaUnavailable
from order_relay.fallback.sweep import Sweep, Sweeper, cancel_tasks
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from order_relay.logs.log_line import FiguresLine, LogLine

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

logger = logging.getLogger(__name__)

PURGE_BATCH = 1000
PURGE_INTERVAL_SECONDS = 60.0


class Replay:
    """Publishes due rows. Several replays, in any processes, may share one table."""

    def __init__(
        self,
        store: FallbackTable,
        producer: KafkaProducer,
        *,
        interval_seconds: float = 60.0,
        stats_interval_seconds: float = 3600.0,
        retention_days: float = 7.0,
        batch_size: int = 500,
        max_in_flight: int = 2000,
        lease_seconds: float = 60.0,
        backoff_base_seconds: float = 60.0,
        on_result: Callable[[str], None] = lambda _: None,
        tracing: Tracing | None = None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            store: The rows; the caller closes it after ``stop``.
            producer: The caller starts it before ``run`` and stops it after ``stop``.
            interval_seconds: Time from the start of a sweep to the next.
            stats_interval_seconds: Time between the lines of figures in the log.
            retention_days: How long PUBLISHED rows are kept.
            batch_size: Rows of a claim.
            max_in_flight: Rows claimed and not settled, at most; at least one batch.
            lease_seconds: After a crash of this worker, its rows become due in this time.
            backoff_base_seconds: How long a row waits after its first refusal; see
                ``delay_seconds``.
            on_result: Called with each row's result: ``published``, ``retried`` or ``failed``. Must
                neither block nor raise.
            tracing: Makes a span of each row that is sent; ``None``: none.
        """
        self._store = store
        self._producer = producer
        self._interval = interval_seconds
        self._stats_interval = stats_interval_seconds
        self._retention = timedelta(days=retention_days)
        self._stopping = asyncio.Event()
        self._new_sweeper = partial(
            Sweeper,
            store=store,
            producer=producer,
            stopping=self._stopping.is_set,
            on_result=on_result,
            tracing=tracing,
            backoff_base_seconds=backoff_base_seconds,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            lease_seconds=lease_seconds,
        )
        self._running: set[asyncio.Task[Any]] = set()
        self._warned = ""

    async def run(self) -> None:
        """Sweep, purge and log figures until ``stop``; never raises for Kafka or the database."""
        loops = [
            asyncio.create_task(self._every(self._interval, self._sweep_by_interval, at_once=True)),
            asyncio.create_task(self._every(self._stats_interval, self._log_stats)),
            asyncio.create_task(self._every(PURGE_INTERVAL_SECONDS, self._purge, at_once=True)),
        ]
        self._running.update(loops)
        await asyncio.gather(*loops, return_exceptions=True)
        self._running.difference_update(loops)

    async def stop(self, grace_seconds: float = 10.0) -> None:
        """Claim no more rows, and give those in flight ``grace_seconds`` to be acknowledged.

        Rows that were not sent are released; those sent and not acknowledged become due when
        their lease runs out. Nothing runs when this returns, unless the database hangs.
        """
        self._stopping.set()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        await cancel_tasks(*self._running)

    async def run_once(self) -> Sweep:
        """Publish all rows that are due, in batches.

        Returns:
            The result; ``skipped`` says why the sweep did not happen or ended early.

        Raises:
            DatabaseUnavailable: The database refused. Claimed rows were settled where possible;
                the others become due when their lease runs out.
        """
        try:
            await self._producer.ping()
        except KafkaUnavailable as error:
            return Sweep(skipped=str(error))
        task = asyncio.create_task(self._new_sweeper().run())
        self._running.add(task)  # ``stop`` waits for it
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await cancel_tasks(task)
            raise

    async def _purge(self) -> None:
        """Delete PUBLISHED rows that are older than the retention."""
        before = await self._store.now() - self._retention
        purged, count = 0, PURGE_BATCH
        while count == PURGE_BATCH and not self._stopping.is_set():
            count = await self._store.purge(published_before=before, limit=PURGE_BATCH)
            purged += count
        if purged:
            logger.info(LogLine("Purged published fallback messages", count=purged))

    async def _log_stats(self) -> None:
        stats = await self._store.stats()
        logger.info(
            FiguresLine(
                "Fallback message stats",
                pending=stats.pending,
                published=stats.published,
                failed=stats.failed,
            )
        )

    async def _sweep_by_interval(self) -> None:
        swept = await self.run_once()
        if swept.skipped:
            self._warn_once(f"Fallback replay skipped, no retry was spent: {swept.skipped}")
        else:
            self._warned = ""

    async def _every(
        self,
        seconds: float,
        work: Callable[[], Coroutine[Any, Any, object]],
        *,
        at_once: bool = False,
    ) -> None:
        """Run ``work`` at intervals from one start to the next, until ``stop``."""
        loop = asyncio.get_running_loop()
        due = loop.time() + (0.0 if at_once else seconds)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - loop.time())):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            due = loop.time() + seconds
            try:
                await work()
            except DatabaseUnavailable as error:
                self._warn_once(f"Fallback replay skipped: {error}")
            except Exception:
                logger.exception("Fallback replay failed with an unexpected error")

    def _warn_once(self, problem: str) -> None:
        """Log a problem once, not every minute of an outage."""
        if problem != self._warned:
            logger.warning(problem)
        self._warned = problem
