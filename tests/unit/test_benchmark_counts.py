"""What the benchmarks' sink counts, and what their plain loops commit."""

from __future__ import annotations

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from benchmarks.brokers import order
from benchmarks.delivery import parse_options
from benchmarks.peers.catalogue import PEERS
from benchmarks.plain_loops import Progress
from benchmarks.sink import Counts

PARTITION = TopicPartition("orders", 0)


@pytest.mark.parametrize(
    ("orders", "repeated", "reordered"),
    [
        ([(1, 1), (2, 1), (1, 1)], 1, 0),  # comes again: only repeated
        ([(1, 1), (3, 1), (2, 1), (1_000, 2), (999, 2), (4, 3)], 0, 2),  # keys are independent
    ],
)
def test_orders_that_come_again_or_late(
    orders: list[tuple[int, int]], repeated: int, reordered: int
) -> None:
    """Each is counted once; sequential orders do not overlap."""
    counts = Counts()
    for order_id, key in orders:
        counts.left(counts.arrived(order(order_id, key)))

    assert len(counts.arrivals) == len(orders) - repeated
    assert (counts.repeated, counts.reordered, counts.overlapping) == (repeated, reordered, 0)


def test_an_order_while_another_of_its_key_waits_overlaps() -> None:
    """A key's next order before the answer to the last one breaks the order, too."""
    counts = Counts()
    first = counts.arrived(order(1, 7))
    counts.arrived(order(2, 7))
    counts.arrived(order(3, 8))
    counts.left(first)

    assert (counts.overlapping, counts.reordered) == (1, 0)


def record(offset: int) -> ConsumerRecord[bytes, bytes]:
    """A record of the one partition."""
    return ConsumerRecord("orders", 0, offset, 0, 0, b"", b"", None, 0, 0, ())


def test_the_plain_loop_commits_up_to_the_first_unanswered_record() -> None:
    """Answers beyond a gap are committed once the gap is closed."""
    progress = Progress()
    records = [record(offset) for offset in (5, 6, 9)]
    for one in records:
        progress.start(one)

    progress.finish(records[1])
    assert progress.offsets() == {PARTITION: 5}
    progress.finish(records[0])
    assert progress.offsets() == {PARTITION: 9}
    progress.finish(records[2])
    assert progress.offsets() == {PARTITION: 10}


def test_every_peer_names_its_version() -> None:
    """Each row of the table names the peer's version, from its own files."""
    assert all(peer.version[0].isdigit() for peer in PEERS)


def test_the_delivery_benchmark_runs_without_options() -> None:
    """Each option has its default, such as 0 to 100 ms."""
    options = parse_options([])

    assert options.latency_ms == (0.0, 5.0, 20.0, 100.0)
    assert (options.table, options.memory, options.brokers) == (False, False, "embedded")
