"""The stores that keep a partition's entries on this worker."""

from __future__ import annotations

from itertools import islice, takewhile
from typing import Protocol


class PartitionStore(Protocol):
    """The entries of one partition of the source topic.

    One task writes at a time. Calls take microseconds and are idempotent.
    """

    @property
    def next_offset(self) -> int | None:
        """The changelog offset to go on reading from; ``None``: from the beginning."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value that was put last under the key."""

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        """Keep an entry; it replaces the key's previous one."""

    def remove(self, key: bytes) -> None:
        """Remove a key."""

    def older_than(self, finished_ms: int, limit: int) -> list[bytes]:
        """Return keys of ``limit`` entries at most, finished before this time, oldest first."""

    def read_up_to(self, next_offset: int) -> None:
        """Note that everything before this changelog offset is in the store."""

    def clear(self) -> None:
        """Remove everything: the changelog topic was made anew."""

    def __len__(self) -> int:
        """How many entries there are; a store on disk may estimate."""

    def close(self) -> None:
        """Close files. May be called twice."""


class MemoryStore:
    """A ``PartitionStore`` in memory, filled from the changelog at each assignment."""

    def __init__(self) -> None:
        self.next_offset: int | None = None
        # The oldest first: a key that is put again moves to the end.
        self._entries: dict[bytes, tuple[int, bytes]] = {}

    def get(self, key: bytes) -> bytes | None:
        """See ``PartitionStore.get``."""
        found = self._entries.get(key)
        return None if found is None else found[1]

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        """See ``PartitionStore.put``."""
        self._entries.pop(key, None)
        self._entries[key] = (finished_ms, value)

    def remove(self, key: bytes) -> None:
        """See ``PartitionStore.remove``."""
        self._entries.pop(key, None)

    def older_than(self, finished_ms: int, limit: int) -> list[bytes]:
        """See ``PartitionStore.older_than``."""
        oldest = takewhile(lambda item: item[1][0] < finished_ms, self._entries.items())
        return [key for key, _ in islice(oldest, limit)]

    def read_up_to(self, next_offset: int) -> None:
        """See ``PartitionStore.read_up_to``."""
        self.next_offset = next_offset

    def clear(self) -> None:
        """See ``PartitionStore.clear``."""
        self._entries.clear()
        self.next_offset = None

    def __len__(self) -> int:
        """See ``PartitionStore.__len__``."""
        return len(self._entries)

    def close(self) -> None:
        """Do nothing."""


class OneKeyStore(MemoryStore):
    """Keeps the entry of one key only, to look up one order in the changelog."""

    def __init__(self, key: bytes) -> None:
        """Keep the entry of ``key``."""
        super().__init__()
        self._key = key

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        """See ``PartitionStore.put``; the latest entry of all partitions is kept."""
        known = self._entries.get(key)
        if key == self._key and (known is None or known[0] <= finished_ms):
            super().put(key, finished_ms, value)

    def read_up_to(self, next_offset: int) -> None:
        """Do nothing: this reads several partitions, and an offset belongs to one."""
