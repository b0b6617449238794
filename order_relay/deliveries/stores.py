"""The stores of the partitions that this worker has: opening, filling, bounding, closing them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from order_relay.deliveries.failsafe_store import FailsafeStore, in_memory
from order_relay.deliveries.store import PartitionStore
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

OPEN_SECONDS = 30.0
OPEN_AGAIN_SECONDS = 0.5
ANY_AGE_MS = 2**62


class Stores(dict[int, FailsafeStore]):
    """The open store of each partition of the source topic that this worker has."""

    def __init__(
        self, open_store: Callable[[int], PartitionStore], max_entries: int | None = None
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            open_store: Opens a partition's store; called again after any exception.
            max_entries: Entries kept in memory at most, roughly; ``None``: no limit.
        """
        super().__init__()
        self._open_store = open_store
        self._max_entries = max_entries
        self._recovered = False
        self._full = False

    @property
    def complete(self) -> bool:
        """Whether the stores have everything that was in the changelog when it was read."""
        return self._recovered and not any(store.failed for store in self.values())

    @property
    def entries(self) -> int:
        """How many entries there are; estimated where they are on disk."""
        return sum(len(store) for store in self.values())

    # --- opening and closing --------------------------------------------------------------------

    async def assign(
        self, partitions: Collection[int], stop: threading.Event
    ) -> Mapping[int, PartitionStore]:
        """Open the stores of these partitions and close all others; return them, to be filled.

        Stores that are open already stay open. A store that cannot be opened within
        ``OPEN_SECONDS`` is kept in memory. Once ``stop`` is set, some may be missing.
        """
        for partition in self.keys() - set(partitions):
            self.pop(partition).close()
        self._recovered = False
        for store in self.values():
            store.failed = False
        deadline = time.monotonic() + OPEN_SECONDS
        logged: set[int] = set()
        while problems := self._open(set(partitions) - self.keys()):
            if stop.is_set():
                break
            if time.monotonic() > deadline:
                for partition, problem in problems.items():
                    self[partition] = FailsafeStore(partition, in_memory(partition, problem))
                break
            for partition in problems.keys() - logged:
                # Its last owner on this machine may be about to close it.
                logger.warning(
                    LogLine(
                        "Table deliveries: store not opened, retrying",
                        partition=partition,
                        detail=problems[partition],
                    )
                )
            logged |= problems.keys()
            await asyncio.sleep(OPEN_AGAIN_SECONDS)
        return dict(self)

    def _open(self, partitions: Collection[int]) -> dict[int, str]:
        """Open stores; return the problem of each that cannot be opened."""
        problems = {}
        for partition in sorted(partitions):
            try:
                self[partition] = FailsafeStore(partition, self._open_store(partition))
            except Exception as error:  # noqa: BLE001 - whatever it raises, deliveries go on
                problems[partition] = str(error)
        return problems

    def close(self) -> None:
        """Close all stores. May be called twice."""
        while self:
            self.popitem()[1].close()

    # --- the changelog --------------------------------------------------------------------------

    def recovered_all(self) -> bool:
        """Note that the stores were read up to the changelog's end.

        Returns:
            ``False`` if a store failed meanwhile: read again, into memory, what it lacks.
        """
        failed = [store for store in self.values() if store.failed]
        for store in failed:
            store.failed = False
        self._recovered = not failed
        return self._recovered

    def next_offsets(self, changelog_partitions: int) -> dict[int, int]:
        """Return the offsets up to which the stores are read, by partition of the changelog."""
        offsets: dict[int, int] = {}
        for partition, store in self.items():
            if changelog_partitions and (offset := store.next_offset) is not None:
                of = partition % changelog_partitions
                offsets[of] = min(offset, offsets.get(of, offset))
        return offsets

    def read_up_to(self, next_offsets: Mapping[int, int], changelog_partitions: int) -> None:
        """Note the changelog offsets that the stores have; a store on disk resumes there."""
        if not self._recovered or not changelog_partitions:
            return
        for partition, store in self.items():
            after = next_offsets.get(partition % changelog_partitions, 0)
            if after > (store.next_offset or 0):
                store.read_up_to(after)

    # --- the limit ------------------------------------------------------------------------------

    def excess(self) -> Iterator[tuple[int, int]]:
        """Yield each partition with too many entries in memory, and how many; log it once.

        All partitions have an equal share; one may exceed it while others leave room.
        """
        if self._max_entries is None:
            return
        stores = {partition: store for partition, store in self.items() if store.in_memory}
        excess = sum(map(len, stores.values())) - self._max_entries
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
        """Remove excess entries here, without tombstones: the changelog keeps them."""
        for partition, too_many in self.excess():
            store = self[partition]
            for key in store.older_than(ANY_AGE_MS, too_many):
                store.remove(key)
