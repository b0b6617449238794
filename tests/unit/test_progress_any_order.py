"""A partition's progress through reads, deliveries, commits and owners in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from order_relay.delivery.progress import MAX_METADATA_LENGTH, Commit, PartitionProgress


class OneGroup(RuleBasedStateMachine):
    """A partition through reads, deliveries in any order, commits, re-reads and new owners."""

    @initialize(first=st.integers(0, 3))
    def start(self, first: int) -> None:
        self.log: list[int] = []
        self.next_offset = first
        self.progress = PartitionProgress(0)
        self.position = 0  # index in the log of the record that is read next
        self.seen = 0  # how much of the log this owner has read
        self.told = -1  # where the consumer said that it stands
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
        """The consumer tells where it stands: behind markers and gaps that hold no record."""
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
