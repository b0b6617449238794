"""Publishing the due rows of the fallback table: at intervals, in every worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

from order_relay.errors import DatabaseUnavailable, KafkaUnavailable
from order_relay.fallback.sweep import Batch, Sweep, cancel_tasks
from order_relay.fallback.retry_schedule import RetrySchedule
from order_relay.fallback.store import FallbackStats, FallbackStore, Position
from order_relay.kafka.producer import RecordProducer
from order_relay.kafka.reachability import Pingable, Reachability
from order_relay.logs.log_line import FiguresLine, LogLine

logger = logging.getLogger(__name__)

PURGE_BATCH = 1000
PURGE_INTERVAL_SECONDS = 60.0


class ReplayProducer(RecordProducer, Pingable, Protocol):
    """The part of ``KafkaProducer`` that replay needs."""


class Replay:
    """Publishes due rows. Several replays, in any processes, may share one table."""

    def __init__(
        self,
        store: FallbackStore,
        producer: ReplayProducer,
        *,
        schedule: RetrySchedule | None = None,
        interval_seconds: float = 60.0,
        stats_interval_seconds: float = 3600.0,
        retention_days: float = 7.0,
        batch_size: int = 500,
        max_in_flight: int = 2000,
        lease_seconds: float = 60.0,
        on_result: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            store: The rows; the caller closes it after ``stop``.
            producer: The caller starts it before ``run`` and stops it after ``stop``.
            schedule: When refused rows are tried again.
            interval_seconds: Time from the start of a sweep to the next.
            stats_interval_seconds: Time between the lines of figures in the log.
            retention_days: How long PUBLISHED rows are kept.
            batch_size: Rows of a claim.
            max_in_flight: Rows claimed and not settled, at most; at least one batch.
            lease_seconds: After a crash of this worker, its rows become due in this time.
            on_result: Called with each row's result: ``published``, ``retried`` or ``failed``. Must
                neither block nor raise.
        """
        self._store = store
        self._producer = producer
        self._schedule = schedule or RetrySchedule()
        self._interval = interval_seconds
        self._stats_interval = stats_interval_seconds
        self._retention = timedelta(days=retention_days)
        self._batch_size = batch_size
        self._batches = max(1, max_in_flight // batch_size)
        self._lease_seconds = lease_seconds
        self._on_result = on_result
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()
        self._warned = ""

    # --- what others call -----------------------------------------------------------------------

    async def run(self) -> None:
        """Sweep, purge and log figures until ``stop``; never raises for Kafka or the database."""
        loops = [
            asyncio.create_task(
                self._every(self._interval, self._sweep, wake=self._wake, at_once=True)
            ),
            asyncio.create_task(self._every(self._stats_interval, self.log_stats)),
            asyncio.create_task(self._every(PURGE_INTERVAL_SECONDS, self.purge, at_once=True)),
        ]
        self._running.update(loops)
        await asyncio.gather(*loops, return_exceptions=True)
        self._running.difference_update(loops)

    def wake(self) -> None:
        """Let ``run`` sweep now instead of at the next interval."""
        self._wake.set()

    async def stop(self, grace_seconds: float = 10.0) -> None:
        """Claim no more rows, and give those in flight ``grace_seconds`` to be acknowledged.

        Rows that were not sent are released; those sent and not acknowledged become due when
        their lease runs out. Nothing runs when this returns.
        """
        self._stopping.set()
        self._wake.set()
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
        return await self._tracked(self._run_once())

    async def publish_rows(self, ids: Collection[int]) -> Sweep:
        """Publish these rows now, as far as they are due and first of their key.

        Raises:
            DatabaseUnavailable: The database refused.
        """
        return await self._tracked(self._publish_rows(ids))

    async def purge(self) -> int:
        """Delete PUBLISHED rows that are older than the retention; return how many.

        Raises:
            DatabaseUnavailable: The database refused.
        """
        before = await self._store.now() - self._retention
        purged = 0
        while not self._stopping.is_set():
            count = await self._store.purge(published_before=before, limit=PURGE_BATCH)
            purged += count
            if count < PURGE_BATCH:
                break
            await asyncio.sleep(0)
        if purged:
            logger.info(LogLine("Purged published fallback messages", count=purged))
        return purged

    async def log_stats(self) -> FallbackStats:
        """Log how many rows there are, and return it.

        Raises:
            DatabaseUnavailable: The database refused.
        """
        stats = await self._store.stats()
        logger.info(
            FiguresLine(
                "Fallback message stats",
                pending=stats.pending,
                published=stats.published,
                failed=stats.failed,
            )
        )
        return stats

    # --- sweeping -------------------------------------------------------------------------------

    async def _publish_rows(self, ids: Collection[int]) -> Sweep:
        total = Sweep()
        reachability = Reachability(self._producer)
        while ids and not self._stopping.is_set() and not reachability.lost:
            batch = await self._claim(reachability, None, ids)
            if not batch.rows:
                break
            total += await batch.run()
            ids = set(ids) - batch.rows
        return replace(total, skipped=reachability.reason)

    async def _run_once(self) -> Sweep:
        total = Sweep()
        try:
            await self._producer.ping()
        except KafkaUnavailable as error:
            return replace(total, skipped=str(error))
        reachability = Reachability(self._producer)
        watch = asyncio.create_task(reachability.watch())
        try:
            # Publishing a row makes the next ones of its key due: another pass finds them.
            while not self._stopping.is_set() and not reachability.lost:
                swept = await self._pass(reachability)
                total += swept
                if not swept.settled:
                    break
        finally:
            await cancel_tasks(watch)
        return replace(total, skipped=reachability.reason)

    async def _pass(self, reachability: Reachability) -> Sweep:
        """Go through the due rows once, several batches at a time."""
        total = Sweep()
        position: Position | None = None
        running: set[asyncio.Task[Sweep]] = set()
        try:
            while not self._stopping.is_set() and not reachability.lost:
                try:
                    batch = await self._claim(reachability, position)
                except DatabaseUnavailable:
                    await asyncio.gather(*running)
                    raise
                if batch.rows:
                    running.add(asyncio.create_task(batch.run()))
                position = batch.position
                if position is None:
                    break
                if len(running) >= self._batches:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    total = sum((task.result() for task in done), start=total)
            for swept in await asyncio.gather(*running):
                total += swept
            return total
        finally:
            await cancel_tasks(*running)

    async def _claim(
        self,
        reachability: Reachability,
        after: Position | None,
        ids: Collection[int] | None = None,
    ) -> Batch:
        asked_at = asyncio.get_running_loop().time()
        claim = await self._store.claim(
            limit=self._batch_size, lease_seconds=self._lease_seconds, after=after, ids=ids
        )
        return Batch(
            claim,
            self._store,
            self._producer,
            self._schedule,
            reachability=reachability,
            on_result=self._on_result,
            asked_at=asked_at,
            lease_seconds=self._lease_seconds,
            stopping=self._stopping.is_set,
        )

    # --- running at intervals -------------------------------------------------------------------

    async def _sweep(self) -> None:
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
        wake: asyncio.Event | None = None,
        at_once: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + (0.0 if at_once else seconds)
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - loop.time())):
                    await (wake or self._stopping).wait()
            if self._stopping.is_set():
                return
            if wake is not None:
                wake.clear()
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

    async def _tracked(self, work: Coroutine[Any, Any, Sweep]) -> Sweep:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await cancel_tasks(task)
            raise
