"""What a commit remembers of redriven letters, and what there is room for."""

import random

from hypothesis import given
from hypothesis import strategies as st

from order_relay.dead_letters.redriven import (
    MAX_PLANNED_LENGTH,
    RedriveCommit,
    Redriven,
    RedriveProgress,
)


@given(st.data())
def test_whatever_was_redriven_is_remembered(data: st.DataObject) -> None:
    """Over any number of runs, each letter is open until it is redriven, and never again."""
    first = data.draw(st.integers(0, 1000))
    steps = data.draw(st.lists(st.integers(1, 20), max_size=60))
    letters = [first + sum(steps[: n + 1]) for n in range(len(steps))]
    end = (letters[-1] if letters else first) + data.draw(st.integers(1, 5))
    redriven: set[int] = set()
    commit: RedriveCommit | None = None
    for _ in range(data.draw(st.integers(1, 4))):
        known = Redriven(commit, end=end)
        assert {offset for offset in letters if offset in known} == redriven
        progress = RedriveProgress(known, [n for n in letters if n >= known.below], end)
        still_open = [offset for offset in letters if offset not in redriven]
        chosen = data.draw(st.lists(st.sampled_from(still_open), unique=True)) if still_open else []
        assert progress.can_remember(chosen)
        for offset in chosen:
            progress.finish(offset)
        redriven.update(chosen)
        commit = progress.commit()
        assert all(offset in redriven for offset in letters if offset < commit.offset)
        assert commit.offset == min((n for n in letters if n not in redriven), default=end)
        assert commit.metadata.isascii()


def test_letters_of_others_behind_the_end_stay_redriven() -> None:
    """What somebody redrove of letters that came later is not forgotten by an earlier reader."""
    other = RedriveProgress(Redriven(), range(20), 20)
    for offset in (12, 17):
        other.finish(offset)
    ours = RedriveProgress(Redriven(other.commit()), range(10), 10)
    for offset in range(10):
        ours.finish(offset)
    after = Redriven(ours.commit(), end=20)
    assert [n for n in range(20) if n in after] == [*range(10), 12, 17]


def test_a_hundred_thousand_letters_of_alternate_reasons_fit() -> None:
    """A flood of which every second letter is redriven is remembered."""
    progress = RedriveProgress(Redriven(), range(100_000), 100_000)
    odd = range(1, 100_000, 2)
    assert progress.can_remember(odd)
    for offset in odd:
        progress.finish(offset)
    commit = progress.commit()
    assert commit.offset == 0
    assert len(commit.metadata) < MAX_PLANNED_LENGTH
    known = Redriven(commit)
    assert (99_999 in known, 99_998 in known) == (True, False)


def test_what_cannot_be_remembered_is_told_before() -> None:
    """Where a commit has no room for the pattern, the answer is no, and nothing has changed."""
    chance = random.Random(1)
    progress = RedriveProgress(Redriven(), range(100_000), 100_000)
    chosen = [offset for offset in range(1, 100_000) if chance.random() < 0.5]
    before = progress.commit()
    assert not progress.can_remember(chosen)
    assert progress.commit() == before == RedriveCommit(0, "")
    assert progress.can_remember(chosen[:5_000])


def test_commits_that_are_none_of_ours() -> None:
    """Metadata of another tool tells nothing; an offset beyond the end is of an earlier topic."""
    progress = RedriveProgress(Redriven(RedriveCommit(4, "")), range(4, 10), 10)
    progress.finish(8)
    elsewhere = progress.commit().metadata
    assert 8 in Redriven(RedriveCommit(4, elsewhere), end=10)
    for metadata in ("", "relay2:5:7:1,2", "redriven2:5:", "redriven2:5:~~~~", "\0", elsewhere):
        known = Redriven(RedriveCommit(5, metadata), end=10)
        assert [n for n in range(10) if n in known] == [0, 1, 2, 3, 4], metadata
    assert 0 not in Redriven(RedriveCommit(11, ""), end=10)
    assert 0 not in Redriven(RedriveCommit(-1, ""), end=10)
