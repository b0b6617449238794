"""Removing entries that are too old or too many: here, and by tombstones in the changelog."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from order_relay.deliveries.changelog import Changelog
from order_relay.deliveries.stores import ANY_AGE_MS, Stores
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

# Time between sweeps; a tenth of the retention if that is less.
SWEEP_SECONDS = 30.0
SWEEP_CHUNK = 500
DRAIN_SECONDS = 2.0


class Retention:
    """Removes entries from the stores of a worker."""

    def __init__(
        self,
        stores: Stores,
        changelog: Changelog,
        changelog_partition: Callable[[int], int],
        may_write: Callable[[], bool],
        on_swept: Callable[[], None],
        *,
        retention_seconds: float,
        wall_clock: Callable[[], float],
    ) -> None:
        """Prepare; nothing is removed yet.

        Args:
            stores: The stores to sweep.
            changelog: Where tombstones go.
            changelog_partition: Maps a partition of the source topic to one of the changelog.
            may_write: Whether the worker has the stores now; called before each chunk.
            on_swept: Called after each sweep, while the worker has the stores.
            retention_seconds: How long entries are kept.
            wall_clock: Seconds since the epoch.
        """
        self._stores = stores
        self._changelog = changelog
        self._changelog_partition = changelog_partition
        self._may_write = may_write
        self._on_swept = on_swept
        self._retention_seconds = retention_seconds
        self._wall_clock = wall_clock

    async def run(self) -> None:
        """Sweep at intervals until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._retention_seconds / 10))
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - whatever a store raises, the next sweep comes
                logger.warning(LogLine("Table deliveries: old entries stay", detail=repr(error)))

    async def sweep(self) -> int:
        """Remove entries that are past the retention or too many; return how many."""
        before_ms = int((self._wall_clock() - self._retention_seconds) * 1000)
        removed = 0
        for partition in list(self._stores):
            removed += await self._remove(partition, before_ms)
        if self._may_write():
            for partition, too_many in self._stores.excess():
                removed += await self._remove(partition, ANY_AGE_MS, too_many)
        if self._may_write():
            self._on_swept()
        return removed

    async def _remove(self, partition: int, before_ms: int, most: int | None = None) -> int:
        removed = 0
        while self._may_write() and partition in self._stores:
            chunk = SWEEP_CHUNK if most is None else min(SWEEP_CHUNK, most - removed)
            store = self._stores[partition]
            keys = store.older_than(before_ms, chunk)
            for key in keys:
                store.remove(key)
                self._changelog.write(self._changelog_partition(partition), key, None)
            removed += len(keys)
            if len(keys) < SWEEP_CHUNK:
                break
            # Tombstones can wait; entries of deliveries go first.
            await self._changelog.drain(DRAIN_SECONDS)
        return removed
