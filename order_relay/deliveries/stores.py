"""The stores of the partitions that this worker has: opened, bounded, and how far they go."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from order_relay.deliveries.entries import Entry, decode_entry
from order_relay.deliveries.failsafe_store import GuardedStore, in_memory
from order_relay.deliveries.store import PartitionStore
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

OPEN_SECONDS = 30.0
OPEN_AGAIN_SECONDS = 0.5
ANY_AGE_MS = 2**62


class Stores:
    """Opens, asks and closes the store of each partition."""

    def __init__(
        self, open_store: Callable[[int], PartitionStore], max_entries: int | None = None
    ) -> None:
        """Prepare.

        Args:
            open_store: Opens a partition's store; may raise anything, and is then tried again.
            max_entries: How many are kept in memory at most, about; ``None``: all.
        """
        self._open_store = open_store
        self._max_entries = max_entries
        self._stores: dict[int, GuardedStore] = {}
        self._filled = False
        self._full = False

    @property
    def partitions(self) -> list[int]:
        """The partitions that have a store."""
        return list(self._stores)

    @property
    def complete(self) -> bool:
        """Whether the stores have all that the changelog had when they were read."""
        return self._filled and not any(store.failed for store in self._stores.values())

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

    async def assign(
        self, partitions: Collection[int], stop: threading.Event
    ) -> dict[int, PartitionStore]:
        """Have the stores of these partitions and no others; returns them, to be filled.

        A store of a partition that stays is kept. Those that cannot be opened within
        ``OPEN_SECONDS`` are replaced by memory. Once ``stop`` is set some may be missing.
        """
        for partition in self._stores.keys() - set(partitions):
            self._stores.pop(partition).close()
        self._filled = False
        for store in self._stores.values():
            store.failed = False
        deadline = time.monotonic() + OPEN_SECONDS
        said: set[int] = set()
        while problems := self._open(set(partitions) - self._stores.keys()):
            if stop.is_set():
                break
            if time.monotonic() > deadline:
                for partition, problem in problems.items():
                    store = GuardedStore(partition, in_memory(partition, problem))
                    self._stores[partition] = store
                break
            for partition in problems.keys() - said:
                # Its last owner on this machine may be about to close it.
                logger.warning(
                    LogLine(
                        "Table deliveries: store not opened, trying on",
                        partition=partition,
                        detail=problems[partition],
                    )
                )
            said |= problems.keys()
            await asyncio.sleep(OPEN_AGAIN_SECONDS)
        return dict(self._stores)

    def recovered_all(self) -> bool:
        """Note that the stores were read to the changelog's end.

        Returns:
            ``False`` when one failed meanwhile: what it lacks can be read again, into memory.
        """
        failed = [store for store in self._stores.values() if store.failed]
        for store in failed:
            store.failed = False
        self._filled = not failed
        return self._filled

    def next_offsets(self, changelog_partitions: int) -> dict[int, int]:
        """Return up to where the stores were filled, by partition of the changelog."""
        offsets: dict[int, int] = {}
        for partition, store in self._stores.items():
            if changelog_partitions and (offset := store.next_offset) is not None:
                of = partition % changelog_partitions
                offsets[of] = min(offset, offsets.get(of, offset))
        return offsets

    def read_up_to(self, next_offsets: Mapping[int, int], changelog_partitions: int) -> None:
        """Let stores that outlive the process begin where the changelog is known to end."""
        for partition, store in self._stores.items():
            if not self._filled or not changelog_partitions:
                continue
            after = next_offsets.get(partition % changelog_partitions, 0)
            if after > (store.next_offset or 0):
                store.read_up_to(after)

    def close(self) -> None:
        """Close all stores. May be called twice."""
        while self._stores:
            self._stores.popitem()[1].close()

    def _open(self, partitions: Collection[int]) -> dict[int, str]:
        """Open stores; returns what is wrong with those that cannot be."""
        problems = {}
        for partition in sorted(partitions):
            try:
                self._stores[partition] = GuardedStore(partition, self._open_store(partition))
            except Exception as error:  # noqa: BLE001 - whatever it raises, deliveries go on
                problems[partition] = str(error)
        return problems

    # --- entries --------------------------------------------------------------------------------

    def get(self, partition: int, key: bytes) -> Entry | None:
        """Return the entry of a key; ``None`` also where the partition has no store."""
        store = self._stores.get(partition)
        value = store.get(key) if store is not None else None
        return None if value is None else decode_entry(value)

    def of(self, partition: int) -> PartitionStore | None:
        """Return the partition's store; ``None`` where it has none."""
        return self._stores.get(partition)

    def excess(self) -> Iterator[tuple[int, int]]:
        """Yield partitions that have too many entries in memory, and how many; says it once.

        Each partition may have its part of them, and more where others leave room.
        """
        stores = {partition: one for partition, one in self._stores.items() if one.in_memory}
        total = sum(map(len, stores.values()))
        if self._max_entries is None:
            return
        excess = total - self._max_entries
        if excess > 0 and not self._full:
            logger.warning(
                LogLine(
                    "Table deliveries: full, the oldest orders are forgotten early",
                    max_entries=self._max_entries,
                )
            )
        self._full = excess > 0
        for partition, store in stores.items():
            too_many = min(len(store) - self._max_entries // len(stores), excess)
            if too_many > 0:
                excess -= too_many
                yield partition, too_many

    def forget_excess(self) -> None:
        """Forget what is too much here alone: the changelog keeps it."""
        for partition, too_many in self.excess():
            store = self._stores[partition]
            for key in store.older_than(ANY_AGE_MS, too_many):
                store.remove(key)
