"""A partition's store that never raises: when it fails, a store in memory takes over.

The table must never delay deliveries, so every error of a store is logged once and survived.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from order_relay.deliveries.store import MemoryStore, PartitionStore
from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FailsafeStore:
    """A ``PartitionStore`` that goes on in memory after an error of the store beneath.

    Attributes:
        failed: The entries of the failed store are missing here. Reading the changelog again from
            ``next_offset`` on, which is ``None`` then, brings them back; the reader resets this.
    """

    def __init__(self, partition: int, store: PartitionStore) -> None:
        """Keep entries of ``partition`` in ``store``."""
        self.failed = False
        self._partition = partition
        self._store = store
        self._replaced = self._closed = False
        self._replacing = threading.Lock()

    @property
    def in_memory(self) -> bool:
        """Whether entries take the process's memory."""
        return isinstance(self._store, MemoryStore)

    @property
    def next_offset(self) -> int | None:
        """See ``PartitionStore.next_offset``."""
        return self._do(lambda store: store.next_offset)

    def get(self, key: bytes) -> bytes | None:
        """See ``PartitionStore.get``."""
        store = self._store
        try:  # not by ``_do``, which would add two calls to every record
            return store.get(key)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, deliveries go on
            return self._instead_of(store, error).get(key)

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        """See ``PartitionStore.put``."""
        store = self._store
        try:  # as in ``get``
            store.put(key, finished_ms, value)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, deliveries go on
            self._instead_of(store, error).put(key, finished_ms, value)

    def remove(self, key: bytes) -> None:
        """See ``PartitionStore.remove``."""
        self._do(lambda store: store.remove(key))

    def older_than(self, finished_ms: int, limit: int) -> list[bytes]:
        """See ``PartitionStore.older_than``."""
        return self._do(lambda store: store.older_than(finished_ms, limit))

    def read_up_to(self, next_offset: int) -> None:
        """See ``PartitionStore.read_up_to``; does nothing while ``failed``."""
        self._do(lambda store: None if self.failed else store.read_up_to(next_offset))

    def clear(self) -> None:
        """See ``PartitionStore.clear``."""
        self._do(lambda store: store.clear())

    def __len__(self) -> int:
        """See ``PartitionStore.__len__``."""
        return self._do(len)

    def close(self) -> None:
        """See ``PartitionStore.close``; later calls of other methods may raise."""
        self._closed = True
        self._close_store()

    def _close_store(self) -> None:
        try:
            self._store.close()
        except Exception as error:  # noqa: BLE001 - whatever a store raises, deliveries go on
            logger.warning(
                LogLine(
                    "Table deliveries: store not closed cleanly",
                    partition=self._partition,
                    detail=str(error),
                )
            )

    def _do(self, work: Callable[[PartitionStore], T]) -> T:
        store = self._store
        try:
            return work(store)
        except Exception as error:  # noqa: BLE001 - whatever a store raises, deliveries go on
            return work(self._instead_of(store, error))

    def _instead_of(self, store: PartitionStore, error: Exception) -> PartitionStore:
        """Return the store to go on with; raises ``error`` if this is closed or memory failed."""
        # The thread that reads the changelog may meet the same failure at the same time.
        with self._replacing:
            if self._closed or (self._replaced and store is self._store):
                raise error
            if not self._replaced:
                self._replaced = self.failed = True
                self._close_store()
                self._store = in_memory(self._partition, str(error))
        return self._store


def in_memory(partition: int, problem: str) -> PartitionStore:
    """Return a store in memory in place of one that failed, and log why."""
    logger.error(
        LogLine(
            "Table deliveries: store failed, its partition is kept in memory",
            partition=partition,
            detail=problem,
        )
    )
    return MemoryStore()
