"""The stores of the partitions that this worker has; one that fails is replaced by memory.

The table never holds up deliveries: whatever a store raises is said once, and done without.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping

from app.log_line import LogLine
from app.order_status.entry import Entry, decode_entry
from app.order_status.store import MemoryStore, PartitionStore

logger = logging.getLogger(__name__)

OPEN_SECONDS = 30.0
OPEN_AGAIN_SECONDS = 0.5


class Stores:
    """Opens, asks and closes the store of each partition."""

    def __init__(self, open_store: Callable[[int], PartitionStore]) -> None:
        """Open stores by ``open_store``; it may raise anything, and is then tried again."""
        self._open_store = open_store
        self._stores: dict[int, PartitionStore] = {}
        # Those that lack something of the changelog: they must not be taken for up to date.
        self._incomplete: set[int] = set()

    @property
    def partitions(self) -> list[int]:
        """The partitions that have a store."""
        return list(self._stores)

    def __contains__(self, partition: int) -> bool:
        """Whether the partition has a store."""
        return partition in self._stores

    def __getitem__(self, partition: int) -> PartitionStore:
        """Return a partition's store, to read and sweep it."""
        return self._stores[partition]

    def __len__(self) -> int:
        """How many entries there are; estimated where they are on disk."""
        return sum(len(store) for store in self._stores.values())

    # --- which there are ------------------------------------------------------------------------

    async def become(
        self, partitions: Collection[int], stop: threading.Event
    ) -> dict[int, PartitionStore]:
        """Have the stores of these partitions and no others; returns them, to be filled.

        A store of a partition that stays is kept. One that cannot be opened for
        ``OPEN_SECONDS``, or until ``stop`` is set, is replaced by memory.
        """
        for partition in self._stores.keys() - set(partitions):
            self._drop(partition)
        self._incomplete = set(partitions)
        for partition in sorted(set(partitions) - self._stores.keys()):
            self._stores[partition] = await self._opened(partition, stop)
        return dict(self._stores)

    def filled(self) -> None:
        """Note that the stores hold all that the changelog has."""
        self._incomplete = set()

    def read_up_to(self, next_offsets: Mapping[int, int], changelog_partitions: int) -> None:
        """Let stores that outlive the process begin where the changelog is known to end."""
        for partition, store in self._stores.items():
            if partition in self._incomplete or not changelog_partitions:
                continue
            after = next_offsets.get(partition % changelog_partitions, 0)
            if after > (store.next_offset or 0):
                store.read_up_to(after)

    def close(self) -> None:
        """Close all stores. May be called twice."""
        for partition in self.partitions:
            self._drop(partition)

    async def _opened(self, partition: int, stop: threading.Event) -> PartitionStore:
        deadline = time.monotonic() + OPEN_SECONDS
        said = False
        while True:
            try:
                return self._open_store(partition)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, deliveries go on
                problem = str(error)
            if stop.is_set() or time.monotonic() > deadline:
                return self._in_memory(partition, problem)
            if not said:
                # Its last owner on this machine may be about to close it.
                logger.warning(
                    LogLine(
                        "Table deliveries: store not opened, trying on",
                        partition=partition,
                        detail=problem,
                    )
                )
            said = True
            await asyncio.sleep(OPEN_AGAIN_SECONDS)

    def _in_memory(self, partition: int, problem: str) -> PartitionStore:
        logger.error(
            LogLine(
                "Table deliveries: store failed, its partition is kept in memory",
                partition=partition,
                detail=problem,
            )
        )
        return MemoryStore()

    def _drop(self, partition: int) -> None:
        store = self._stores.pop(partition)
        try:
            store.close()
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning(
                LogLine(
                    "Table deliveries: store not closed in good order",
                    partition=partition,
                    detail=str(error),
                )
            )

    # --- entries --------------------------------------------------------------------------------

    def get(self, partition: int, key: bytes) -> Entry | None:
        """Return the entry of a key; ``None`` also where the partition has no store."""
        store = self._stores.get(partition)
        if store is None:
            return None
        try:
            value = store.get(key)
        except Exception as error:  # noqa: BLE001 - as above
            self._replace(partition, error)
            return None
        return None if value is None else decode_entry(value)

    def put(self, partition: int, key: bytes, finished_ms: int, value: bytes) -> None:
        """Keep an entry in a partition that has a store."""
        try:
            self._stores[partition].put(key, finished_ms, value)
        except Exception as error:  # noqa: BLE001 - as above
            self._replace(partition, error)
            self._stores[partition].put(key, finished_ms, value)

    def _replace(self, partition: int, error: Exception) -> None:
        self._drop(partition)
        self._stores[partition] = self._in_memory(partition, str(error))
        self._incomplete.add(partition)
