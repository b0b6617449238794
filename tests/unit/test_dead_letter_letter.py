"""Letters of the relay and of others, and how a commit stores the redriven ones."""

import random
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.cli.dlq.letters import letter_fields
from order_relay.dead_letters.filters import LetterFilter, parse_moment
from order_relay.dead_letters.letter import Letter, header_value
from order_relay.dead_letters.redriven import (
    MAX_PLANNED_LENGTH,
    Redriven,
    RedriveProgress,
)
from order_relay.delivery.answer import Answer, Verdict
from order_relay.delivery.dead_letters import dead_letter_headers, refused_letter
from order_relay.delivery.progress import Commit
from order_relay.model.headers import Header
from order_relay.model.record import Record

NOW = datetime(2025, 12, 19, 12, tzinfo=UTC)


def relayed(*headers: tuple[str, bytes | None], redrives: bytes | None = None) -> Letter:
    """The relay's letter of a rejected record."""
    own = [*headers, *([("dlq-redrives", redrives)] if redrives is not None else [])]
    record = Record(
        "orders", 2, 41, 0, b"7", b'{"orderId":7}', headers=tuple(own), timestamp_ms=1000
    )
    answer = Answer(Verdict.REJECTED, status=422, detail="no such product")
    letter = refused_letter(record, "rejected", answer, 1, NOW)
    return Letter(
        "orders.DLQ",
        2,
        5,
        b"7",
        b'{"orderId":7}',
        tuple(dead_letter_headers(letter, "g", "order_logging")),
    )


def foreign(*headers: tuple[str, bytes | None], value: bytes | None = b"\xff") -> Letter:
    """A dead letter of another program."""
    return Letter("orders.DLQ", 1, 9, None, value, headers, timestamp_ms=1_734_600_000_000)


def test_a_letter_of_ours_tells_everything() -> None:
    """What the relay wrote is read back."""
    letter = relayed()
    assert (letter.reason, letter.text("dlq-http-status"), letter.redrives) == (
        "rejected",
        "422",
        0,
    )
    assert (letter.failed_at, letter.order_id, letter.event_id) == (NOW, 7, b"orders-2-41")
    assert letter.number("kafka_dlt-original-offset") == 41
    assert letter.home_partition == 2


def test_it_goes_out_as_the_record_came() -> None:
    """The record's own headers, its event id, its consumer, and one redrive more."""
    letter = relayed(("traceparent", b"00-1"), ("event-id", b"paid-7"), ("a", None), redrives=b"1")
    assert letter.redriven_headers("order_logging") == [
        ("traceparent", b"00-1"), ("a", None), ("event-id", b"paid-7"),
        ("dlq-consumer", b"order_logging"), ("dlq-redrives", b"2"),
    ]  # fmt: skip


def test_the_event_id_of_a_letter_without_one() -> None:
    """The record's first position; if that is unknown, the letter's position."""
    spring: tuple[Header, ...] = (
        ("kafka_dlt-original-topic", b"orders"),
        ("kafka_dlt-original-partition", struct.pack(">i", 3)),
        ("kafka_dlt-original-offset", struct.pack(">q", 12)),
        ("event-id", b""),
    )
    assert foreign(*spring).event_id == b"orders-3-12"
    assert foreign(*spring[:2]).event_id == b"orders.DLQ-1-9"
    assert foreign().redriven_headers("order_logging") == [
        ("event-id", b"orders.DLQ-1-9"),
        ("dlq-consumer", b"order_logging"),
        ("dlq-redrives", b"1"),
    ]


@pytest.mark.parametrize("value", [None, b"", b"[1]", b"\xff", b'{"orderId":{}}', b"[" * 5000])
def test_letters_of_others_are_shown_as_they_are(value: bytes | None) -> None:
    """No content of a letter makes reading it fail."""
    letter = foreign(
        ("dlq-redrives", b"many"),
        ("dlq-failed-at", b"yesterday"),
        ("dlq-reason", b"\xff\xfe"),
        ("kafka_dlt-original-partition", b"\xff\xff\xff\xff"),
        ("kafka_dlt-original-offset", b"12"),
        value=value,
    )
    assert (letter.redrives, letter.order_id, letter.reason) == (0, None, "\\xfffe")
    assert letter.failed_at == datetime(2024, 12, 19, 9, 20, tzinfo=UTC)
    assert letter.home_partition == 1
    assert letter.number("kafka_dlt-original-offset") is None
    assert Letter("dlq", 0, 0, None, None).failed_at is None


@pytest.mark.parametrize(
    "failed_at", [b"9999-12-31T23:59:59-05:00", b"0001-01-01T00:00:00+14:00", b"2025-12-32"]
)
@pytest.mark.parametrize("timestamp_ms", [-1, 1_734_600_000_000_000, 2**62, 2**63 - 1])
def test_times_that_no_calendar_has(failed_at: bytes, timestamp_ms: int) -> None:
    """A time that Python cannot express is None; filters and lists work."""
    letter = replace(foreign(("dlq-failed-at", failed_at)), timestamp_ms=timestamp_ms)
    assert letter.failed_at is None
    assert not LetterFilter(since=NOW).finds(letter)
    assert letter_fields(letter, redriven=False)["failed_at"] is None
    told = foreign(("dlq-failed-at", failed_at))
    assert told.failed_at == datetime(2024, 12, 19, 9, 20, tzinfo=UTC)


def test_header_values() -> None:
    """Spring's numbers, text, and bytes that are neither."""
    assert header_value("kafka_dlt-original-timestamp", struct.pack(">q", 5)) == 5
    assert header_value("mine", struct.pack(">i", 5)) == "\\x00000005"
    assert header_value("mine", "한".encode()) == "한"
    assert header_value("mine", None) is None


def test_filters() -> None:
    """Each works alone and combined."""
    letter = relayed(("event-id", b"paid-7"))
    hour = timedelta(hours=1)
    for fits in (
        LetterFilter(),
        LetterFilter(reason="rejected", http_status=422, key="7", event_id="paid-7"),
        LetterFilter(since=NOW, until=NOW + hour),
    ):
        assert fits.finds(letter), fits
    for other in (
        LetterFilter(reason="tombstone"),
        LetterFilter(http_status=400),
        LetterFilter(key="8"),
        LetterFilter(event_id="paid"),
        LetterFilter(since=NOW + hour),
        LetterFilter(until=NOW),
    ):
        assert not other.finds(letter), other
    assert LetterFilter(key="7").finds(foreign(value=b'{"orderId":7}'))
    assert not LetterFilter(key="None").finds(foreign(value=b"not json"))
    assert LetterFilter(key="None").finds(foreign(value=b'{"orderId":"None"}'))
    assert LetterFilter(reason="").finds(foreign())
    assert not LetterFilter(since=NOW).finds(Letter("dlq", 0, 0, None, None))
    assert not LetterFilter()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("90min", NOW - timedelta(minutes=90)),
        ("1w", NOW - timedelta(days=7)),
        ("2025-12-19", NOW.replace(hour=0)),
        ("2025-12-19T10:30:00", datetime(2025, 12, 19, 10, 30, tzinfo=UTC)),
        ("2025-12-19T10:30:00+09:00", datetime(2025, 12, 19, 1, 30, tzinfo=UTC)),
        ("2025-12-19T10:30:00Z", datetime(2025, 12, 19, 10, 30, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    """ISO 8601, UTC where no zone is named, or a time span before now."""
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "yesterday", "999999w", "2025-13-01", "2 h"])
def test_invalid_moments(text: str) -> None:
    """One line says what is allowed."""
    with pytest.raises(ValueError, match=r"must be ISO 8601 such as .*, or a time span such as"):
        parse_moment(text, NOW)


@given(st.data())
def test_whatever_was_redriven_is_remembered(data: st.DataObject) -> None:
    """Over any number of runs, a letter is open until it is redriven, and never again."""
    first = data.draw(st.integers(0, 1000))
    steps = data.draw(st.lists(st.integers(1, 20), max_size=60))
    letters = [first + sum(steps[: n + 1]) for n in range(len(steps))]
    end = (letters[-1] if letters else first) + data.draw(st.integers(1, 5))
    redriven: set[int] = set()
    commit: Commit | None = None
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
    """A reader that started earlier keeps what another one redrove of later letters."""
    other = RedriveProgress(Redriven(), range(20), 20)
    for offset in (12, 17):
        other.finish(offset)
    ours = RedriveProgress(Redriven(other.commit()), range(10), 10)
    for offset in range(10):
        ours.finish(offset)
    after = Redriven(ours.commit(), end=20)
    assert [n for n in range(20) if n in after] == [*range(10), 12, 17]


def test_a_hundred_thousand_letters_of_alternate_reasons_fit() -> None:
    """A commit has room for them if every second one is redriven."""
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
    """If a commit has no room for the pattern, the answer is no, and nothing changes."""
    chance = random.Random(1)
    progress = RedriveProgress(Redriven(), range(100_000), 100_000)
    chosen = [offset for offset in range(1, 100_000) if chance.random() < 0.5]
    before = progress.commit()
    assert not progress.can_remember(chosen)
    assert progress.commit() == before == Commit(0, "")
    assert progress.can_remember(chosen[:5_000])


def test_commits_of_other_tools_are_ignored() -> None:
    """Metadata of other tools is ignored; an offset beyond the end is of an earlier topic."""
    progress = RedriveProgress(Redriven(Commit(4, "")), range(4, 10), 10)
    progress.finish(8)
    elsewhere = progress.commit().metadata
    assert 8 in Redriven(Commit(4, elsewhere), end=10)
    for metadata in ("", "relay2:5:7:1,2", "redriven2:5:", "redriven2:5:~~~~", "\0", elsewhere):
        known = Redriven(Commit(5, metadata), end=10)
        assert [n for n in range(10) if n in known] == [0, 1, 2, 3, 4], metadata
    assert 0 not in Redriven(Commit(11, ""), end=10)
    assert 0 not in Redriven(Commit(-1, ""), end=10)
