"""Batches of records as aiokafka parses them, also with names of headers that are not UTF-8."""

from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from order_relay.kafka.consumer.aiokafka_patches import Batches, read_any_header_name
from tests.support.odd_records import OddName, batch_of

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)


@pytest.fixture
def parser_as_it_was() -> Iterator[None]:
    """Leaves aiokafka's parser as this test found it."""
    before = fetcher.MemoryRecords
    yield
    fetcher.MemoryRecords = before


def parsed(records: Any) -> list[list[Any]]:
    """What each batch holds."""
    batches = []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        batches.append(
            [(one.offset, one.timestamp, one.key, one.value, one.headers) for one in batch]
        )
    return batches


@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
def test_any_name_is_read_and_nothing_else_changes(codec: int) -> None:
    """Bytes that are not UTF-8 are escaped in the name; values and other records are unchanged."""
    odd = [(OddName(b"caf\xc3\xa9-\xff\xfe"), b"\xff"), ("event-id", b"7"), ("none", None)]
    data = batch_of([(b"k", b"\xff\x00v", odd), (None, None, []), (b"", b"", [("h", b"")])], codec)
    with pytest.raises(UnicodeDecodeError):
        parsed(MemoryRecords(data))
    assert parsed(Batches(data * 2)) == 2 * [
        [
            (0, 1000, b"k", b"\xff\x00v", [(r"café-\xff\xfe", b"\xff"), *odd[1:]]),
            (1, 1001, None, None, []),
            (2, 1002, b"", b"", [("h", b"")]),
        ]
    ]  # fmt: skip


@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, LZ4, ZSTD])
def test_ordinary_records_are_read_as_aiokafka_reads_them(codec: int) -> None:
    """Both parsers agree."""
    rows = [(b"k%d" % n, b"v" * n * 37, [(f"ü{n}", b"x" * n)] * (n % 4)) for n in range(200)]
    data = batch_of(rows, codec)
    assert parsed(Batches(data)) == parsed(MemoryRecords(data))


def test_older_formats_are_left_to_aiokafka() -> None:
    """They have no headers; aiokafka's own class reads them."""
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    builder.append(0, timestamp=1000, key=b"k", value=b"v")
    batch = Batches(bytes(builder.build())).next_batch()
    assert not isinstance(batch, DefaultRecordBatch)
    assert [(one.offset, one.key, one.value) for one in batch] == [(0, b"k", b"v")]


@pytest.mark.usefixtures("parser_as_it_was")
def test_the_parser_is_the_one_that_fetches_use() -> None:
    """What is put in place is what aiokafka calls."""
    read_any_header_name()
    assert fetcher.MemoryRecords is Batches
