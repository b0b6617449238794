"""What is left in Kafka, by lane: when a partition is read again, and when reading pauses."""

from collections import deque

import pytest

from order_relay.delivery import left_in_kafka
from order_relay.delivery.left_in_kafka import LaneKey, LeftInKafka
from tests.support.fakes import FakeReading

A: LaneKey = ("orders", 0, b"a")
B: LaneKey = ("orders", 0, b"b")
OTHER: LaneKey = ("orders", 1, b"a")


@pytest.fixture
def moves() -> FakeReading:
    """No move so far."""
    return FakeReading()


@pytest.fixture
def left(moves: FakeReading) -> LeftInKafka:
    """Nothing is left."""
    return LeftInKafka(moves)


def leave(left: LeftInKafka, lane: LaneKey, *offsets: int) -> None:
    """Leave records of a lane that is full."""
    for offset in offsets:
        left.leave(lane, offset, full=True)


def test_a_lane_is_read_again_until_nothing_of_it_is_left(
    left: LeftInKafka, moves: FakeReading
) -> None:
    """From its first record; then reading continues where it was."""
    leave(left, A, 5, 7)
    assert moves.new() == []
    left.has_room(A)
    assert moves.new() == [(0, 5)]
    left.submitted(A, 5)
    assert moves.new() == []
    left.submitted(A, 7)
    assert moves.new() == [(0, "on")]
    assert (left.count, left.lanes) == (0, {})


def test_two_lanes_are_read_again_together(left: LeftInKafka, moves: FakeReading) -> None:
    """From the first record of both; if one is full again, the other is still read."""
    leave(left, A, 5, 9)
    leave(left, B, 6)
    left.has_room(B)
    left.has_room(A)
    left.has_room(A)
    assert moves.new() == [(0, 6), (0, 5)]
    left.leave(A, 5, full=True)
    assert moves.new() == []
    left.submitted(B, 6)
    assert moves.new() == [(0, "on")]
    left.has_room(A)
    assert moves.new() == [(0, 5)]


def test_a_later_record_of_a_full_lane_does_not_end_the_reading(
    left: LeftInKafka, moves: FakeReading
) -> None:
    """Reading ends only when the first record that is left finds no room; it has not come yet."""
    leave(left, A, 5)
    left.has_room(A)
    moves.new()
    left.leave(A, 8, full=True)
    assert moves.new() == []
    left.leave(A, 5, full=False)
    assert moves.new() == []
    left.leave(A, 5, full=True)
    assert moves.new() == [(0, "on")]
    assert left.count == 2


def test_order_within_a_key_holds(left: LeftInKafka) -> None:
    """While an earlier record is left, a later one comes too early, even if there is room."""
    leave(left, A, 5)
    assert left.comes_too_early(A, 6)
    assert not left.comes_too_early(A, 5)
    assert not left.comes_too_early(B, 6)
    left.submitted(A, 4)  # accepted before, and never left
    assert left.count == 1


def test_a_partition_with_too_many_pauses(
    left: LeftInKafka, moves: FakeReading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays paused after each reading while there are too many."""
    monkeypatch.setattr(left_in_kafka, "MAX_LEFT", 3)
    leave(left, A, 1, 2)
    leave(left, OTHER, 1)
    assert moves.new() == []
    leave(left, B, 3)
    assert moves.new() == [(0, "paused")]
    left.has_room(A)
    leave(left, B, 3)  # read again on the way: nothing is paused meanwhile, and it is not counted
    assert moves.new() == [(0, 1)]
    left.leave(A, 1, full=True)
    assert moves.new() == [(0, "paused")]
    left.has_room(A)
    left.submitted(A, 1)
    left.leave(A, 2, full=True)
    assert moves.new() == [(0, 1), (0, "on")]


def test_deleted_records_are_forgotten(left: LeftInKafka, moves: FakeReading) -> None:
    """Those of this partition before the offset; a lane without any is not read again."""
    leave(left, A, 5, 7)
    leave(left, B, 6)
    leave(left, OTHER, 5)
    left.has_room(A)
    left.has_room(B)
    moves.new()
    assert sorted(left.forget("orders", 0, lambda offset: offset < 7)) == [5, 6]
    assert left.count == 2
    left.submitted(A, 7)  # the last awaited one
    assert moves.new() == [(0, "on")]
    assert left.forget("orders", 0) == []
    assert left.forget("orders", 1) == [5]
    assert (left.count, left.lanes) == (0, {})


def test_compacted_records_are_forgotten(left: LeftInKafka) -> None:
    """As far as they are the first of their lanes: the next ones may be read now."""
    leave(left, A, 5, 6, 9, 10)
    leave(left, B, 7, 8)
    assert left.forget("orders", 0, {5, 6, 8, 10}.__contains__) == [5, 6]
    assert left.lanes == {A: deque([9, 10]), B: deque([7, 8])}
    assert left.count == 4


def test_clearing_forgets_everything(left: LeftInKafka, moves: FakeReading) -> None:
    """The next assignment starts with nothing left."""
    leave(left, A, 5)
    left.has_room(A)
    left.clear()
    assert (left.count, left.lanes) == (0, {})
    moves.new()
    left.has_room(A)  # nothing of it is left
    assert moves.new() == []
    leave(left, A, 5)
    assert moves.new() == []
    left.has_room(A)
    assert moves.new() == [(0, 5)]
