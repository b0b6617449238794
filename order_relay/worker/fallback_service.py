"""The worker's fallback service: publisher, fallback table, replay, statistics."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from order_relay.errors import RelayError
from order_relay.fallback.replay import Replay
from order_relay.fallback.store import FallbackStats
from order_relay.fallback.sweep import cancel_tasks
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from order_relay.monitoring.metrics import Metrics
from order_relay.publishing.publisher import Publisher
from order_relay.settings import Settings

if TYPE_CHECKING:
    from order_relay.tracing.spans import Tracing

logger = logging.getLogger(__name__)

OPEN_RETRY_SECONDS = 5.0
REFRESH_SECONDS = 15.0
# Counting a million rows takes a while. It may take one fiftieth of the time.
REFRESH_SHARE = 50
MAX_REFRESH_SECONDS = 60.0
# Rows in flight are safe in the table. Events of waiting callers are not, and are saved instead.
REPLAY_GRACE_SECONDS = 5.0
PUBLISH_GRACE_SECONDS = 3.0


class Fallback:
    """Publishes events, saves those that Kafka refuses, and publishes them later.

    Deliveries do not depend on the database. While it cannot be used, this logs once and retries in
    the background; until then refused records fail.

    Attributes:
        store: The fallback table.
        publisher: Publishes events of all sources.
        replaying: Whether ``replay_until_stopped`` was called.
    """

    def __init__(
        self,
        settings: Settings,
        store: FallbackTable,
        producer: KafkaProducer,
        metrics: Metrics,
        *,
        tracing: Tracing | None = None,
    ) -> None:
        """Prepare. Starts and connects nothing. The caller starts and stops ``producer``."""
        self.store = store
        self.publisher = Publisher(
            producer,
            store,
            settings.order_paid_topic,
            max_retry=settings.fallback_max_retry,
            on_result=metrics.published,
            tracing=tracing,
        )
        self._replay = Replay(
            store,
            producer,
            backoff_base_seconds=settings.fallback_backoff_base_seconds,
            interval_seconds=settings.fallback_replay_interval_seconds,
            stats_interval_seconds=settings.fallback_stats_interval_seconds,
            retention_days=settings.fallback_retention_days,
            on_result=metrics.replayed,
            tracing=tracing,
        )
        self._metrics = metrics
        self._opened = asyncio.Event()
        self._problem = ""
        self.replaying = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the table in the background, refresh its statistics, and watch for outages."""
        self._tasks = [
            asyncio.create_task(self._run()),
            # In an outage, callers do not wait for the delivery time-out: their events are saved.
            asyncio.create_task(self.publisher.watch()),
        ]

    async def replay_until_stopped(self) -> None:
        """Publish rows when they are due, until ``stop_replay``. Never raises."""
        self.replaying = True
        await self._opened.wait()
        await self._replay.run()

    async def stop_replay(self, grace_seconds: float) -> None:
        """Claim no more rows. Rows in flight get ``grace_seconds``, 5 s at most."""
        await self._replay.stop(min(grace_seconds, REPLAY_GRACE_SECONDS))

    async def stop_publishing(self, grace_seconds: float) -> None:
        """Let publishes in flight finish; save those that Kafka does not acknowledge in time.

        They get ``grace_seconds``, 3 s at most. Until ``close``, new events are saved without
        asking Kafka.
        """
        await self.publisher.close(min(grace_seconds, PUBLISH_GRACE_SECONDS))

    async def close(self) -> None:
        """Close the database. May be called twice, and without ``start``."""
        tasks, self._tasks = self._tasks, []
        await cancel_tasks(*tasks)
        try:
            await self.store.close()
        except RelayError as error:
            logger.warning("The database was not closed: %s", error)

    # --- in the background ----------------------------------------------------------------------

    async def _run(self) -> None:
        await self._open_until_it_works()
        self._opened.set()
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            await self._refresh()
            took = loop.time() - started
            pause = min(took * REFRESH_SHARE, MAX_REFRESH_SECONDS)
            await asyncio.sleep(max(REFRESH_SECONDS, pause))

    async def _open_until_it_works(self) -> None:
        logged = ""
        while True:
            try:
                migrated = await self.store.open()
            except Exception as error:
                # A driver may raise any exception. Deliveries go on.
                logger.debug("The fallback table was not opened", exc_info=True)
                problem = _text_of(error)
            else:
                break
            if problem != logged:
                logger.error(
                    "Fallback table unusable at DATABASE_URL=%s: %s; deliveries go on, what Kafka "
                    "refuses cannot be saved; retrying until it works",
                    self.store.location,
                    problem,
                )
            logged = problem
            await asyncio.sleep(OPEN_RETRY_SECONDS)
        if migrated.found == migrated.wanted:
            logger.info("Fallback table opened at %s", self.store.location)
        else:
            logger.info(
                "Fallback table opened at %s, migrated from %s to revision %s",
                self.store.location,
                migrated.found or "nothing",
                migrated.wanted,
            )

    async def _refresh(self) -> None:
        stats: FallbackStats | None = None
        problem = ""
        try:
            stats = await self.store.stats()
            await self.store.check_writes()
        except Exception as error:  # noqa: BLE001 - drivers raise anything; the next refresh retries
            problem = _text_of(error)
        if problem and problem != self._problem:
            logger.warning("Fallback table takes no rows: %s", problem)
        self._problem = problem
        self._metrics.counted(stats, works=not problem)


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, RelayError) else repr(error)
