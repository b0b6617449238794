"""What may be committed for a partition, and what the next owner reads from it."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from order_relay.delivery.progress import MAX_METADATA_LENGTH, Commit, PartitionProgress

OURS = re.compile(r"relay2:100:[0-9]+:([0-9]+(,[0-9]+)*)?", re.ASCII)


def _taken(*offsets: int, committed: Commit | None = None) -> PartitionProgress:
    """Progress with these records read, and claimed unless they are finished."""
    progress = PartitionProgress(1, committed)
    for offset in offsets:
        if progress.add(offset, float(offset)):
            assert progress.claim(offset)
    return progress


def test_a_record_is_finished_once_it_was_read_and_ended() -> None:
    """Unread records and those in flight are not; those that the last owner finished are."""
    assert not PartitionProgress(1).is_finished(0)
    before = _taken(10, 11, 12)
    before.finish(11)
    progress = _taken(committed=before.commit())

    assert [offset for offset in range(8, 15) if progress.is_finished(offset)] == [8, 9, 11]
    for offset in (10, 11, 12, 13):
        progress.add(offset, 0.0)
    progress.finish(12)
    assert [offset for offset in range(8, 15) if progress.is_finished(offset)] == [8, 9, 11, 12]


def test_unclaimed_records_are_counted() -> None:
    """A record that was read and not claimed waits between Kafka and the deliveries.

    One that was never read cannot be claimed.
    """
    progress = PartitionProgress(1)
    assert not progress.claim(7)
    for offset in range(5):
        progress.add(offset, 0.0)
    progress.claim(0)
    progress.claim(1)
    progress.finish(0)
    assert progress.unclaimed == 3
    progress.leave(1)
    assert progress.unclaimed == 4


def test_memory_is_that_of_the_unfinished() -> None:
    """Behind one slow record 100,000 others may finish: memory does not grow."""
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
    """Foreign metadata has no effect: every record is delivered."""
    progress = PartitionProgress(2, Commit(100, metadata))

    assert [progress.add(offset, 0.0) for offset in range(100, 110)] == [True] * 10


@given(st.text() | st.from_regex(r"relay2:(100:)?[-+ _0-9:,]*", fullmatch=True))
def test_no_metadata_breaks_or_skips(metadata: str) -> None:
    """With other metadata than our own, no record is skipped."""
    progress = PartitionProgress(2, Commit(100, metadata))
    to_be_delivered = [progress.add(offset, 0.0) for offset in range(100, 110)]

    if not OURS.fullmatch(metadata):
        assert to_be_delivered == [True] * 10


@given(
    st.integers(99, 10**9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 30, 100, 500, *[MAX_METADATA_LENGTH] * 4]),
)
@settings(max_examples=40)
def test_metadata_is_bounded_and_truncation_skips_nothing(
    widest_gap: int, seed: int, limit: int
) -> None:
    """With any number of unfinished records it is as long as brokers take; none is skipped."""
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
    commit = progress.commit(limit)

    assert commit is not None
    assert commit.offset == unfinished[0]
    assert max(limit - 100, 0) <= len(commit.metadata) <= limit < 4096
    assert bool(commit.metadata) == (limit >= 100)
    assert commit.metadata.isascii()
    owner = PartitionProgress(2, commit)
    read_again = [one for one in sorted(unfinished + finished) if one >= commit.offset]
    delivered = {one for one in read_again if owner.add(one, 0.0)}
    assert delivered >= set(unfinished)
    assert (len(delivered) < len(read_again)) == (limit >= 100), "the part that fits is used"


def test_metadata_ends_with_the_last_finished_record() -> None:
    """Unfinished records after it take no room."""
    progress = _taken(100, 101, 102, 103)
    assert progress.commit() == Commit(100, "")
    progress.finish(101)
    assert progress.commit() == Commit(100, "relay2:100:2:0")


def test_what_was_deleted_unread_is_passed_over_and_counted() -> None:
    """Held records stay unfinished, and the next owner does not count the rest again."""
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
    """The metadata has the finished ones of the deleted, and is right for the rest."""
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


class OneGroup(RuleBasedStateMachine):
    """A partition through reads, deliveries in any order, commits, re-reads and new owners."""

    @initialize(first=st.integers(0, 3))
    def start(self, first: int) -> None:
        self.log: list[int] = []
        self.next_offset = first
        self.progress = PartitionProgress(0)
        self.position = 0  # index in the log of the record that is read next
        self.seen = 0  # how much of the log this owner has read
        self.told = -1  # the position that the consumer reported
        self.held: list[int] = []
        self.finished: set[int] = set()
        self.committed: Commit | None = None
        self.finished_at_commit: set[int] = set()

    @rule(count=st.integers(1, 4), gap=st.sampled_from([0, 0, 0, 1, 5]))
    def produce(self, count: int, gap: int) -> None:
        self.next_offset += gap
        self.log += range(self.next_offset, self.next_offset + count)
        self.next_offset += count

    @precondition(lambda self: self.position < len(self.log))
    @rule(count=st.integers(1, 5))
    def read(self, count: int) -> None:
        for offset in self.log[self.position : self.position + count]:
            self.position += 1
            self.seen = max(self.seen, self.position)
            assert self.progress.add(offset, float(offset)) == (offset not in self.finished)
            if offset not in self.finished:
                assert self.progress.claim(offset) == (offset not in self.held)
                if offset not in self.held:
                    self.held.append(offset)
            else:
                assert not self.progress.claim(offset)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), times=st.sampled_from([1, 1, 2]))
    def finish(self, data: st.DataObject, times: int) -> None:
        offset = data.draw(st.sampled_from(self.held))
        self.held.remove(offset)
        self.finished.add(offset)
        for _ in range(times):
            self.progress.finish(offset)

    @rule(markers=st.integers(0, 2))
    def skip_markers(self, markers: int) -> None:
        """The consumer reports its position: after markers and gaps without records."""
        if self.position == len(self.log):
            self.next_offset += markers
            standing = self.next_offset
        else:
            standing = self.log[self.position]
        self.progress.skip_to(standing)
        self.told = max(self.told, standing)

    @rule()
    def commit(self) -> None:
        self.committed = self.progress.commit()
        self.finished_at_commit = set(self.finished)

    @rule()
    def read_again(self) -> None:
        """The consumer seeks to what is committed, in the same generation."""
        self.position = self._committed_position()

    @rule(commits_first=st.booleans())
    def change_owner(self, commits_first: bool) -> None:
        """A rebalance, or a kill: what was not committed is forgotten."""
        if commits_first:
            self.commit()
        self.finished = set(self.finished_at_commit)
        self.held.clear()
        self.progress = PartitionProgress(self.progress.generation + 1, self.committed)
        self.position = self.seen = self._committed_position()
        self.told = -1

    def _committed_position(self) -> int:
        if self.committed is None:
            return 0
        return sum(offset < self.committed.offset for offset in self.log)

    @invariant()
    def the_commit_is_the_finished_prefix(self) -> None:
        commit = self.progress.commit()
        if commit is None:
            assert not self.seen
            assert self.told < 0
            return
        before = {offset for offset in self.log if offset < commit.offset}
        assert before <= self.finished
        assert commit.offset <= self.next_offset
        assert len(commit.metadata) <= MAX_METADATA_LENGTH
        unfinished = [offset for offset in self.log[: self.seen] if offset not in self.finished]
        if unfinished:
            assert commit.offset == unfinished[0]
        else:
            assert commit.offset >= self.told
            assert not self.seen or commit.offset > self.log[self.seen - 1]

    @invariant()
    def a_new_owner_delivers_exactly_the_unfinished(self) -> None:
        commit = self.progress.commit()
        owner = PartitionProgress(99, commit)
        start = commit.offset if commit else 0
        for offset in self.log:
            if offset >= start:
                assert owner.add(offset, 0.0) == (offset not in self.finished)

    @invariant()
    def the_unfinished_are_counted(self) -> None:
        assert self.progress.unfinished == len(self.held)
        oldest = min(self.held, default=None)
        assert self.progress.oldest_unfinished_time() == oldest


TestOneGroup = OneGroup.TestCase
TestOneGroup.settings = settings(max_examples=200, stateful_step_count=40)
