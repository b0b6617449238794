"""Entries on disk, in RocksDB: for tables larger than memory, and for fast restarts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import cast

from rocksdict import Options, Rdict, WriteBatch

# The first byte of a RocksDB key says which kind it is.
ENTRY = b"e"  # + key: finished_ms (8 bytes, big endian) and the value
BY_TIME = b"t"  # + finished_ms (8 bytes, big endian) + key: nothing
NEXT_OFFSET = b"o"

MEMTABLE_BYTES = 16 * 1024 * 1024
# Entries a write. A write by itself costs as much as three entries in it.
WRITTEN_TOGETHER = 100


class RocksStore:
    """A ``PartitionStore`` in a folder of its own.

    Entries are written in batches. A crash of the process or the machine loses none: an entry that
    was not written yet is read from the changelog again, since ``read_up_to`` writes all entries
    before it notes the offset.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the store.

        Raises:
            Exception: The folder cannot be used, or another process has it open.
        """
        folder.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(MEMTABLE_BYTES)
        options.set_keep_log_file_num(2)
        self._database = Rdict(str(folder), options)
        self._unwritten: dict[bytes, tuple[int, bytes]] = {}
        self._closed = False

    @property
    def next_offset(self) -> int | None:
        """See ``PartitionStore.next_offset``."""
        found = self._get(NEXT_OFFSET)
        return None if found is None else int(found)

    def get(self, key: bytes) -> bytes | None:
        """See ``PartitionStore.get``."""
        unwritten = self._unwritten.get(key)
        if unwritten is not None:
            return unwritten[1]
        found = self._get(ENTRY + key)
        return None if found is None else found[8:]

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        """See ``PartitionStore.put``."""
        self._unwritten[key] = (finished_ms, value)
        if len(self._unwritten) >= WRITTEN_TOGETHER:
            self._write()

    def remove(self, key: bytes) -> None:
        """See ``PartitionStore.remove``."""
        self._unwritten.pop(key, None)
        before = self._get(ENTRY + key)
        if before is not None:
            changes = WriteBatch(raw_mode=True)
            changes.delete(BY_TIME + before[:8] + key)
            changes.delete(ENTRY + key)
            self._database.write(changes)

    def older_than(self, finished_ms: int, limit: int) -> list[bytes]:
        """See ``PartitionStore.older_than``."""
        self._write()
        end = BY_TIME + finished_ms.to_bytes(8, "big")
        found = []
        for name in islice(self._database.keys(from_key=BY_TIME), limit):
            if not cast(bytes, name) < end:
                break
            found.append(cast(bytes, name)[9:])
        return found

    def read_up_to(self, next_offset: int) -> None:
        """See ``PartitionStore.read_up_to``."""
        self._write()
        self._database.put(NEXT_OFFSET, b"%d" % next_offset)

    def clear(self) -> None:
        """See ``PartitionStore.clear``."""
        self._unwritten.clear()
        self._database.delete_range(b"", b"\xff")

    def __len__(self) -> int:
        """See ``PartitionStore.__len__``; estimated by RocksDB."""
        names = self._database.property_int_value("rocksdb.estimate-num-keys") or 0
        return int(names) // 2 + len(self._unwritten)

    def close(self) -> None:
        """See ``PartitionStore.close``."""
        if not self._closed:
            self._closed = True
            try:
                self._write()
            finally:
                self._database.close()

    def _write(self) -> None:
        if not self._unwritten:
            return
        changes = WriteBatch(raw_mode=True)
        for key, (finished_ms, value) in self._unwritten.items():
            when = finished_ms.to_bytes(8, "big")
            before = self._get(ENTRY + key)
            if before is not None:
                changes.delete(BY_TIME + before[:8] + key)
            changes.put(ENTRY + key, when + value)
            changes.put(BY_TIME + when + key, b"")
        self._database.write(changes)
        self._unwritten.clear()

    def _get(self, name: bytes) -> bytes | None:
        return cast("bytes | None", self._database.get(name))
