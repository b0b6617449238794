"""What the benchmarks' sink counts, and what their plain loops commit."""

from __future__ import annotations

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from benchmarks.brokers import order
from benchmarks.peers.catalogue import PEERS
from benchmarks.plain_loops import Progress
from benchmarks.sink import Counts

PARTITION = TopicPartition("orders", 0)


@pytest.fixture
def counts() -> Counts:
    """What a sink has seen that nothing was sent to yet."""
    return Counts()


def deliver(counts: Counts, *orders: int, key: int = 1) -> None:
    """One after another, each answered before the next."""
    for order_id in orders:
        counts.left(counts.arrived(order(order_id, key)))


def test_an_order_that_comes_again_is_a_repetition(counts: Counts) -> None:
    """A second arrival counts as repeated and as nothing else."""
    deliver(counts, 1, 2, 1)

    assert (len(counts.arrivals), counts.repeated, counts.reordered) == (2, 1, 0)


def test_an_order_after_a_later_one_of_its_key_is_reordered(counts: Counts) -> None:
    """Keys are told apart: only the late order of the same key counts."""
    deliver(counts, 1, 3, 2, key=1)
    deliver(counts, 1_000, 999, key=2)
    deliver(counts, 4, key=3)

    assert (counts.reordered, counts.overlapping) == (2, 0)


def test_an_order_while_another_of_its_key_waits_overlaps(counts: Counts) -> None:
    """A key's next order before the answer to the last one is a break of order, too."""
    first = counts.arrived(order(1, 7))
    counts.arrived(order(2, 7))
    counts.arrived(order(3, 8))
    counts.left(first)

    assert (counts.overlapping, counts.reordered) == (1, 0)


def record(offset: int) -> ConsumerRecord[bytes, bytes]:
    """A record of the one partition."""
    return ConsumerRecord("orders", 0, offset, 0, 0, b"", b"", None, 0, 0, ())


def test_the_plain_loop_commits_up_to_the_first_unanswered_record() -> None:
    """Answers beyond a gap are not committed before the gap is closed."""
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
    """Each row of the table says what was measured, from the peer's own files."""
    assert all(peer.version[0].isdigit() for peer in PEERS)
