"""Where a partition's entries are on this worker: in memory, or on disk in RocksDB."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from pathlib import Path
from typing import TypeAlias, cast

from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)

# The first byte of a RocksDB key says which kind it is.
ENTRY = b"e"  # + key: finished_ms (8 bytes, big endian) and the value
BY_TIME = b"t"  # + finished_ms (8 bytes, big endian) + key: nothing; it outlasts its entry
NEXT_OFFSET = b"o"
MEMTABLE_BYTES = 16 * 1024 * 1024
# Entries a write. A write by itself costs as much as three entries in it.
WRITTEN_TOGETHER = 100


class MemoryStore:
    """The entries of one partition of the source topic, in memory.

    One task writes at a time. Calls take microseconds, are idempotent, and never raise.

    Attributes:
        next_offset: The changelog offset to go on reading from; ``None``: from the beginning.
        failed: Whether the store is switched off after an error, until it is opened again.
    """

    failed = False

    def __init__(self) -> None:
        self.next_offset: int | None = None
        # The oldest first: a key that is put again moves to the end.
        self._entries: dict[bytes, tuple[int, bytes]] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return the value that was put last under the key."""
        found = self._entries.get(key)
        return None if found is None else found[1]

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        """Keep an entry; it replaces the key's previous one."""
        self._entries.pop(key, None)
        self._entries[key] = (finished_ms, value)

    def remove(self, key: bytes) -> None:
        """Remove a key."""
        self._entries.pop(key, None)

    def older_than(self, finished_ms: int, limit: int) -> list[bytes]:
        """Return keys of ``limit`` entries at most, finished before this time, oldest first."""
        oldest = takewhile(lambda item: item[1][0] < finished_ms, self._entries.items())
        return [key for key, _ in islice(oldest, limit)]

    def read_up_to(self, next_offset: int) -> None:
        """Note that everything before this changelog offset is in the store."""
        self.next_offset = next_offset

    def clear(self) -> None:
        """Remove everything: the changelog topic was made anew."""
        self._entries.clear()
        self.next_offset = None

    def __len__(self) -> int:
        """Return how many entries there are; a store on disk estimates."""
        return len(self._entries)

    def close(self) -> None:
        """Close files."""


class RocksStore:
    """The same in a folder of its own.

    Entries are written in batches. A crash of the process or the machine loses none: an entry that
    was not written yet is read from the changelog again, since ``read_up_to`` writes all entries
    before it notes the offset. The table must never delay deliveries, so the first error of the
    database is logged and switches the store off.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the store.

        Raises:
            Exception: The folder cannot be used, or another process has it open.
        """
        from rocksdict import Options, Rdict, WriteBatch  # noqa: PLC0415 - loaded only if used

        self.failed = False
        folder.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(MEMTABLE_BYTES)
        options.set_keep_log_file_num(2)
        self._folder = folder
        self._database = Rdict(str(folder), options)
        self._new_batch = WriteBatch
        self._unwritten: dict[bytes, tuple[int, bytes]] = {}

    @property
    def next_offset(self) -> int | None:
        """See ``MemoryStore``."""
        found = self._get(NEXT_OFFSET)
        return None if found is None else int(found)

    def get(self, key: bytes) -> bytes | None:
        """See ``MemoryStore``."""
        unwritten = self._unwritten.get(key)
        if unwritten is not None:
            return unwritten[1]
        found = self._get(ENTRY + key)
        return None if found is None else found[8:]

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        """See ``MemoryStore``."""
        self._unwritten[key] = (finished_ms, value)
        if len(self._unwritten) >= WRITTEN_TOGETHER:
            self._write()

    def remove(self, key: bytes) -> None:
        """See ``MemoryStore``."""
        self._unwritten.pop(key, None)
        with self._switching_off():
            self._database.delete(ENTRY + key)

    def older_than(self, finished_ms: int, limit: int) -> list[bytes]:
        """See ``MemoryStore``."""
        self._write()
        found: list[bytes] = []
        end = BY_TIME + finished_ms.to_bytes(8, "big")
        with self._switching_off():
            outlasting = self._new_batch(raw_mode=True)
            names = cast("Iterator[bytes]", self._database.keys(from_key=BY_TIME))
            for name in takewhile(lambda name: name < end, islice(names, 10 * limit)):
                if len(found) == limit:
                    break
                entry = cast("bytes | None", self._database.get(ENTRY + name[9:]))
                if entry is not None and entry[:8] == name[1:9]:
                    found.append(name[9:])
                else:
                    outlasting.delete(name)
            self._database.write(outlasting)
        return found

    def read_up_to(self, next_offset: int) -> None:
        """See ``MemoryStore``."""
        self._write()
        with self._switching_off():
            if not self.failed:  # else what was not written would never be read again
                self._database.put(NEXT_OFFSET, b"%d" % next_offset)

    def clear(self) -> None:
        """See ``MemoryStore``."""
        self._unwritten.clear()
        with self._switching_off():
            self._database.delete_range(b"", b"\xff")

    def __len__(self) -> int:
        """See ``MemoryStore``; estimated by RocksDB."""
        names = 0
        with self._switching_off():
            names = int(self._database.property_int_value("rocksdb.estimate-num-keys") or 0)
        return names // 2 + len(self._unwritten)

    def close(self) -> None:
        """See ``MemoryStore``."""
        self._write()
        with self._switching_off():
            self._database.close()
        self.failed = True

    def _write(self) -> None:
        unwritten, self._unwritten = self._unwritten, {}
        if not unwritten:
            return
        with self._switching_off():
            changes = self._new_batch(raw_mode=True)
            for key, (finished_ms, value) in unwritten.items():
                when = finished_ms.to_bytes(8, "big")
                changes.put(ENTRY + key, when + value)
                changes.put(BY_TIME + when + key, b"")
            self._database.write(changes)

    def _get(self, name: bytes) -> bytes | None:
        try:  # not by ``_switching_off``, which would cost every record more than the reading
            return cast("bytes | None", self._database.get(name))
        except Exception as error:  # noqa: BLE001 - whatever RocksDB raises, deliveries go on
            self._switch_off(error)
            return None

    @contextmanager
    def _switching_off(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever RocksDB raises, deliveries go on
            self._switch_off(error)

    def _switch_off(self, error: Exception) -> None:
        if not self.failed:
            self.failed = True
            log_failure(self._folder.name, error)
            with suppress(Exception):
                self._database.close()


Store: TypeAlias = MemoryStore | RocksStore


def is_locked(error: Exception) -> bool:
    """Whether another process, or a table of this one, has the store open."""
    return "lock hold" in str(error) or "/LOCK:" in str(error)


def log_failure(partition: int | str, error: Exception) -> None:
    """Log that a partition has no table for now."""
    logger.error(
        LogLine(
            "Table deliveries: store failed, its partition's table is off until the next rebalance",
            partition=partition,
            detail=str(error),
        )
    )
