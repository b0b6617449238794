r"""Records with a header whose name is not UTF-8, which aiokafka refuses, and with it their batch.

Kafka takes any bytes as a header's name, and clients in C or Go send them. aiokafka's parser would
raise at such a record for ever, and its partition would wait. Once a worker has met one, it parses
with aiokafka's own Python code instead, which is slower, and those bytes are written as in a Python
literal: ``b"\xff"`` is the text ``\xff``.
"""

from __future__ import annotations

from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy


def read_any_header_name() -> None:
    """Let this process read such records from its next fetch on."""
    fetcher.MemoryRecords = Batches


class Batches(_MemoryRecordsPy):  # type: ignore[misc]  # aiokafka ships no types
    """What a fetch brought of a partition."""

    def next_batch(self) -> Any:  # its own two arguments are constants
        """Return the next batch; one that may have headers reads any name."""
        data = self._next_slice
        batch = super().next_batch()
        # Older formats have no headers.
        return _Batch(data) if isinstance(batch, DefaultRecordBatch) else batch


class _Batch(_DefaultRecordBatchPy):  # type: ignore[misc]
    def __iter__(self) -> _Batch:
        super().__iter__()  # decompresses
        self._buffer: _Buffer = _Buffer(self._buffer)
        return self


class _Buffer(bytearray):
    """Bytes whose parts say as text what they hold, whatever it is."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return _Part(found) if isinstance(place, slice) else found


class _Part(bytes):
    def decode(self, *_: Any) -> str:
        return super().decode("utf-8", "backslashreplace")
