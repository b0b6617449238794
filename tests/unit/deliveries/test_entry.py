"""What an entry says about an order, and about its delivered events."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from order_relay.deliveries.entries import (
    MAX_EARLIER_EVENT_IDS,
    MAX_ERROR_CHARACTERS,
    Entry,
    decode_entry,
    encode_entry,
    make_entry,
)
from order_relay.delivery.outcome import Outcome
from order_relay.model.record import Record
from tests.support.fakes import record

DELIVERED = Outcome(delivered=True, attempts=2, order_id=7)
BURIED = Outcome(delivered=False, attempts=4, order_id=7, reason="retries_exhausted")


def _after(*events: tuple[str, Outcome]) -> Entry:
    """The entry of an order after these outcomes."""
    entry: Entry | None = None
    for offset, (event_id, outcome) in enumerate(events):
        one = record(offset, "7", headers=[("event-id", event_id.encode())])
        entry = make_entry(one, 7, outcome, 1000 + offset, entry)
    assert entry is not None
    return entry


def _named(event_id: str) -> Record:
    """A record of the order with an event id of its own."""
    return record(99, "7", headers=[("event-id", event_id.encode())])


def _placed(offset: int, later_ms: int = 0) -> Record:
    """A record of the order without one."""
    one = record(offset, "7")
    return msgspec.structs.replace(one, timestamp_ms=one.timestamp_ms + later_ms)


def test_an_entry_holds_what_the_outcome_and_the_record_say() -> None:
    """State, attempts, times, position, event id and last error are there."""
    outcome = Outcome(
        False, 4, 7, "2025-12-19T10:30:00", 500, "retries_exhausted", 503, "503 Service Unavailable"
    )
    one = record(41, "7", partition=2, headers=[("event-id", b"paid-7")])
    assert make_entry(one, 7, outcome, 900, None) == Entry(
        order_id=7,
        state="dead_lettered",
        event_id="paid-7",
        attempts=4,
        topic="order-paid-events",
        partition=2,
        offset=41,
        finished_ms=900,
        started_ms=500,
        published_ms=one.timestamp_ms,
        paid_at="2025-12-19T10:30:00",
        last_error="503 Service Unavailable",
        http_status=503,
        dead_letter_reason="retries_exhausted",
    )


def test_a_delivered_event_stays_known_after_others_of_its_order() -> None:
    """Later events of an order do not remove what was delivered."""
    entry = _after(("a", DELIVERED), ("b", BURIED), ("c", DELIVERED))
    assert [entry.has_delivered(_named(event_id)) for event_id in "abcd"] == [
        True, False, True, False,
    ]  # fmt: skip


def test_a_dead_lettered_event_is_not_delivered_until_it_is() -> None:
    """A redriven event is sent again; once delivered, it counts once."""
    assert not _after(("a", BURIED)).has_delivered(_named("a"))
    entry = _after(("a", BURIED), ("a", DELIVERED))
    assert entry.has_delivered(_named("a"))
    assert entry.earlier_event_ids == ()


def test_a_record_without_an_event_id_is_known_when_it_is_read_again() -> None:
    """Its position and timestamp identify it, also after others of its order."""
    first = make_entry(_placed(3), 7, DELIVERED, 1000, None)
    assert first.has_delivered(_placed(3))
    later = make_entry(_placed(5), 7, BURIED, 1001, first)
    assert [later.has_delivered(_placed(offset)) for offset in (3, 4, 5)] == [True, False, False]


def test_a_record_of_a_topic_made_anew_is_another() -> None:
    """It has a delivered one's position, and counts as delivered only once it is."""
    first = make_entry(_placed(3), 7, DELIVERED, 1000, None)
    again = _placed(3, later_ms=1)
    assert not first.has_delivered(again)
    assert not make_entry(_placed(5), 7, DELIVERED, 1001, first).has_delivered(again)
    buried = make_entry(again, 7, BURIED, 1002, first)
    assert not buried.has_delivered(again)
    # Nor does its dead letter, redriven with its id.
    assert not buried.has_delivered(_named("order-paid-events-0-3"))
    assert make_entry(again, 7, DELIVERED, 1003, buried).has_delivered(again)


def test_the_original_of_a_redriven_record_is_known() -> None:
    """Its copy has its id, and is later; a record of a topic made anew is later yet."""
    first = make_entry(_placed(3), 7, BURIED, 1000, None)
    copy = msgspec.structs.replace(
        _placed(9, later_ms=50), headers=(("event-id", b"order-paid-events-0-3"),)
    )
    entry = make_entry(copy, 7, DELIVERED, 1001, first)
    assert entry.has_delivered(_placed(3))
    assert entry.has_delivered(copy)
    assert not entry.has_delivered(_placed(3, later_ms=51))
    assert not make_entry(copy, 7, BURIED, 1002, first).has_delivered(_placed(3))


def test_a_record_without_id_and_time_is_never_known() -> None:
    """It cannot be told from one of a recreated topic."""
    timeless = msgspec.structs.replace(_placed(3), timestamp_ms=-1)
    assert not make_entry(timeless, 7, DELIVERED, 1000, None).has_delivered(timeless)


def test_an_entry_stays_small() -> None:
    """Neither a long error nor many events of one order make an entry large."""
    loud = Outcome(delivered=False, attempts=1, order_id=7, last_error="x" * 10_000)
    entry = _after(*((str(n), DELIVERED) for n in range(100)), ("loud", loud))
    assert len(entry.last_error) == MAX_ERROR_CHARACTERS
    assert len(entry.earlier_event_ids) == MAX_EARLIER_EVENT_IDS
    assert entry.earlier_event_ids[-1] == "99"


@given(
    st.builds(
        Entry,
        order_id=st.integers(-(2**63), 2**63 - 1),
        state=st.sampled_from(["delivered", "dead_lettered"]),
        event_id=st.text(),
        attempts=st.integers(0, 2000),
        topic=st.text(max_size=5),
        partition=st.integers(0, 100_000),
        offset=st.integers(0, 2**63 - 1),
        finished_ms=st.integers(0, 2**53),
        last_error=st.text(),
        http_status=st.none() | st.integers(100, 599),
        earlier_event_ids=st.lists(st.text(), max_size=5).map(tuple),
    )
)
def test_an_entry_survives_the_changelog(entry: Entry) -> None:
    """It is read as it was written, and it is JSON."""
    written = encode_entry(entry)
    assert decode_entry(written) == entry
    assert json.loads(written)["orderId"] == entry.order_id


def test_fields_of_a_newer_version_pass() -> None:
    """A worker of an older version reads what a newer one wrote; other bytes are ignored."""
    newer = json.loads(encode_entry(_after(("a", DELIVERED)))) | {"colour": "green"}
    assert decode_entry(json.dumps(newer).encode()) == _after(("a", DELIVERED))
    odd = [json.dumps(newer | {"finishedMs": value}).encode() for value in (-1, 2**63)]
    for other in (b"", b"{}", b"[1]", b"\xff", b'{"orderId":1}', *odd):
        assert decode_entry(other) is None
