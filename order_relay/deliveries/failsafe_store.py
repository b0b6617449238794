"""A partition's store that never raises: one that fails is replaced by memory.

The table never holds up deliveries: whatever a store raises is said once, and done without.
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


class GuardedStore:
    """A ``PartitionStore`` that goes on in memory where its own fails.

    Attributes:
        failed: Whether it lacks what was in the store that failed; whoever reads the changelog
            from ``next_offset`` on, which is ``None`` then, may set it back.
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
        try:  # as ``_do``, which would cost every record two calls more
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
        """See ``PartitionStore.read_up_to``; does nothing while something is lacking."""
        self._do(lambda store: None if self.failed else store.read_up_to(next_offset))

    def clear(self) -> None:
        """See ``PartitionStore.clear``."""
        self._do(lambda store: store.clear())

    def __len__(self) -> int:
        """See ``PartitionStore.__len__``."""
        return self._do(len)

    def close(self) -> None:
        """See ``PartitionStore.close``; what is asked afterwards may raise."""
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        try:
            self._store.close()
        except Exception as error:  # noqa: BLE001 - whatever a store raises, deliveries go on
            logger.warning(
                LogLine(
                    "Table deliveries: store not closed in good order",
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
        """Return the store to go on with; raises the error where there is none."""
        # The changelog is read in a thread of its own: both may meet the failure.
        with self._replacing:
            if self._closed or (self._replaced and store is self._store):
                raise error
            if not self._replaced:
                self._replace(error)
        return self._store

    def _replace(self, error: Exception) -> None:
        self._replaced = self.failed = True
        self._let_go()
        self._store = in_memory(self._partition, str(error))


def in_memory(partition: int, problem: str) -> PartitionStore:
    """Return a store in memory in place of one on disk, and say why."""
    logger.error(
        LogLine(
            "Table deliveries: store failed, its partition is kept in memory",
            partition=partition,
            detail=problem,
        )
    )
    return MemoryStore()
