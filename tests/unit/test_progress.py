"""What may be committed for a partition, and what the next owner learns from it."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from order_relay.delivery.progress import MAX_METADATA_LENGTH, Commit, PartitionProgress

OURS = re.compile(r"relay2:100:[0-9]+:([0-9]+(,[0-9]+)*)?", re.ASCII)


def _taken(*offsets: int, committed: Commit | None = None) -> PartitionProgress:
    """Progress in which these were read, and claimed for delivery where they are to be."""
    progress = PartitionProgress(1, committed)
    for offset in offsets:
        if progress.add(offset, float(offset)):
            assert progress.claim(offset)
    return progress


def test_the_first_record_after_an_assignment_holds_the_commit() -> None:
    """Offset 0 unfinished and 1 to 5 finished commits 0: where stock Faust commits 6."""
    progress = _taken(0, 1, 2, 3, 4, 5)
    for offset in range(1, 6):
        progress.finish(offset)
    commit = progress.commit()

    assert commit is not None
    assert commit.offset == 0

    progress.finish(0)
    assert progress.commit() == Commit(6, "")


def test_a_record_is_finished_once_it_was_read_and_ended() -> None:
    """Nothing that is under way, or still to be read, counts; what the last owner finished does."""
    assert not PartitionProgress(1).is_finished(0)
    before = _taken(10, 11, 12)
    before.finish(11)
    progress = _taken(committed=before.commit())

    assert [offset for offset in range(8, 15) if progress.is_finished(offset)] == [8, 9, 11]
    for offset in (10, 11, 12, 13):
        progress.add(offset, 0.0)
    progress.finish(12)
    assert [offset for offset in range(8, 15) if progress.is_finished(offset)] == [8, 9, 11, 12]


def test_what_is_in_no_hand_is_counted() -> None:
    """A record that was read and not claimed waits somewhere between Kafka and the deliveries."""
    progress = PartitionProgress(1)
    for offset in range(5):
        progress.add(offset, 0.0)
    progress.claim(0)
    progress.claim(1)
    progress.finish(0)
    assert progress.unclaimed == 3
    progress.leave(1)
    assert progress.unclaimed == 4


def test_what_was_not_taken_cannot_be_held() -> None:
    """A record that was never read from Kafka in this generation cannot be claimed."""
    assert not PartitionProgress(1).claim(7)


def test_memory_is_that_of_the_unfinished() -> None:
    """Behind one slow record a million others may finish: what is kept does not grow."""
    progress = _taken(0)
    for offset in range(1, 100_000):
        progress.add(offset, 0.0)
        progress.claim(offset)
        progress.finish(offset)

    kept = [value for value in vars(progress).values() if isinstance(value, dict | set)]
    assert sum(len(value) for value in kept) <= 2
    assert progress.commit() == Commit(0, "relay2:0:100000:0")


@pytest.mark.parametrize(
    "metadata",
    [
        "relay2",
        "relay2:100",
        "relay2:100:5",
        "relay2:100:x:",
        "relay2:100:5:x",
        "relay2:100:5:0:1",
        "relay2:100:-5:",
        "relay2:100:5:-1,1",
        "relay2:100:5:,",
        "relay2:100:5:0,,1",
        "relay2:100: 5:",
        "relay2:100:5_0:",
        "relay2:100:\u0665:",
        "relay2:99:5:",
        "relay2:101:5:",
        "relay2:0100x:5:",
        "relay1:5:",
        "RELAY2:100:5:",
        "bz1,AAAA",
        "written by a person",
        "relay2:100:" + "9" * 5000 + ":",
    ],
)
def test_metadata_of_other_tools_is_ignored(metadata: str) -> None:
    """What we did not write says nothing: every record is delivered."""
    progress = PartitionProgress(2, Commit(100, metadata))

    assert [progress.add(offset, 0.0) for offset in range(100, 110)] == [True] * 10


@given(st.text() | st.from_regex(r"relay2:(100:)?[-+ _0-9:,]*", fullmatch=True))
def test_no_metadata_breaks_or_skips(metadata: str) -> None:
    """Whatever stands beside the commit, a record is skipped only on our own words."""
    progress = PartitionProgress(2, Commit(100, metadata))
    to_be_delivered = [progress.add(offset, 0.0) for offset in range(100, 110)]

    if not OURS.fullmatch(metadata):
        assert to_be_delivered == [True] * 10


@given(st.integers(99, 10**9), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_metadata_is_bounded_and_truncation_skips_nothing(widest_gap: int, seed: int) -> None:
    """However many records are unfinished, the metadata fits, and none of them is skipped."""
    chance = random.Random(seed)
    offset = chance.randrange(10**12)
    progress = PartitionProgress(1, Commit(offset, ""))
    unfinished, finished = [], []
    for _ in range(2500):
        offset += 1 + chance.randrange(widest_gap + 1)
        progress.add(offset, 0.0)
        progress.claim(offset)
        if chance.random() < 0.5:
            progress.finish(offset)
            finished.append(offset)
        else:
            unfinished.append(offset)
    commit = progress.commit()

    assert commit is not None
    assert commit.offset == unfinished[0]
    assert MAX_METADATA_LENGTH - 100 < len(commit.metadata) <= MAX_METADATA_LENGTH < 4096
    assert commit.metadata.isascii()
    owner = PartitionProgress(2, commit)
    read_again = [one for one in sorted(unfinished + finished) if one >= commit.offset]
    delivered = {one for one in read_again if owner.add(one, 0.0)}
    assert delivered >= set(unfinished)
    assert len(delivered) < len(read_again), "the part that fits is used"


def test_what_was_deleted_unread_is_passed_over_and_counted() -> None:
    """What is in hand stays unfinished, and the next owner does not count the rest once more."""
    progress = _taken(10, 11, 12)
    progress.finish(10)
    progress.finish(12)
    assert progress.delete_before(30) == 17
    assert progress.delete_before(30) == 0
    assert progress.delete_before(20) == 0
    assert progress.position == 30

    commit = progress.commit()
    assert commit is not None
    assert commit.offset == 11
    assert PartitionProgress(2, commit).delete_before(30) == 1
    progress.finish(11)
    assert progress.commit() == Commit(30, "")


def test_what_was_finished_before_is_not_counted_as_deleted() -> None:
    """The commit's metadata says what of the deleted was, and is still true of the rest."""
    before = _taken(*range(100, 110))
    for offset in (101, 102, 104, 107):
        before.finish(offset)
    commit = before.commit()
    assert commit is not None
    # 100 and 103 are lost; 105 and 106 are to be read, and 107 is not.
    progress = PartitionProgress(2, commit)
    assert progress.delete_before(105) == 2
    assert [offset for offset in range(105, 109) if progress.add(offset, 0.0)] == [105, 106, 108]

    assert PartitionProgress(2, commit).delete_before(120) == 120 - 100 - 4
    assert PartitionProgress(2).delete_before(120) == 0


@pytest.mark.parametrize("limit", [0, 30, 61, 100, 500, MAX_METADATA_LENGTH])
def test_metadata_is_as_long_as_the_brokers_take(limit: int) -> None:
    """Where less fits, less is remembered, and what is remembered is true."""
    progress = _taken(*range(100, 1100))
    finished = set(range(101, 1100, 2))
    for offset in finished:
        progress.finish(offset)
    commit = progress.commit(limit)
    assert commit is not None
    assert commit.offset == 100
    assert len(commit.metadata) <= limit
    assert bool(commit.metadata) == (limit > 61)
    restored = PartitionProgress(2, commit)
    passed_over = {offset for offset in range(100, 1100) if not restored.add(offset, 0.0)}
    assert passed_over <= finished
    assert bool(passed_over) == bool(commit.metadata)
