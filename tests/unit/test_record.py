"""A record's event id, and its Idempotency-Key."""

import hashlib
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from order_relay.model.record import Record
from tests.support.fakes import record

EVENT_IDS = st.binary(min_size=1, max_size=400) | st.text(string.printable, min_size=1).map(
    str.encode
)


def _with_id(event_id: bytes) -> Record:
    return record(5, headers=[("event-id", event_id)])


def test_the_last_header_of_a_name_counts() -> None:
    """Of headers with one name the last counts, as Kafka's lastHeader has it."""
    found = record(5, headers=[("a", b"1"), ("b", b"2"), ("a", b"3"), ("n", b"4"), ("n", None)])

    assert found.header("a") == b"3"
    assert found.header("n") is None
    assert found.header("c") is None


def test_the_event_id_is_the_header() -> None:
    """The event-id header is the event's id, byte for byte."""
    assert _with_id(b"\x00 caf\xe9").event_id() == b"\x00 caf\xe9"


@pytest.mark.parametrize("headers", [[], [("event-id", None)], [("event-id", b"")], [("id", b"1")]])
def test_without_the_header_the_place_is_the_id(headers: list[tuple[str, bytes | None]]) -> None:
    """Without a usable header the id is topic, partition and offset, as the record prints them."""
    found = record(7, partition=2, headers=headers)
    assert (found.event_id(), str(found)) == (b"order-paid-events-2-7", "order-paid-events[2]@7")


@given(
    st.tuples(st.sampled_from(["a", "a-1", "a-1-1"]), st.integers(0, 20), st.integers(0, 20)),
    st.tuples(st.sampled_from(["a", "a-1", "a-1-1"]), st.integers(0, 20), st.integers(0, 20)),
)
def test_no_two_places_share_an_id(one: tuple[str, int, int], two: tuple[str, int, int]) -> None:
    """Records of different places have different ids, also with dashes in the topic's name."""
    ids = [Record(*place, 1, None, None).event_id() for place in (one, two)]

    assert (ids[0] == ids[1]) == (one == two)


@given(EVENT_IDS)
def test_the_key_can_stand_in_a_header(event_id: bytes) -> None:
    """The key of any id is visible ASCII (RFC 9110, 5.5) and short."""
    key = _with_id(event_id).idempotency_key()

    assert 0 < len(key) <= 768
    assert all(0x21 <= ord(character) <= 0x7E for character in key)


@given(st.text(string.ascii_letters + string.digits + "-_.:/=+@", min_size=1, max_size=256))
def test_a_usual_id_is_its_own_key(event_id: str) -> None:
    """Usual ids (UUIDs, names with dashes) are sent as they are."""
    assert _with_id(event_id.encode()).idempotency_key() == event_id


@given(EVENT_IDS, EVENT_IDS)
@example(b"%41", b"A")
@example(b"a b", b"a%20b")
@example(b"%", b"%25")
@example(b"x" * 256, b"x" * 257)
@example(b"x" * 2000, b"x" * 2001)
@example(b"x" * 2000, hashlib.sha256(b"x" * 2000).hexdigest().encode())
def test_no_two_ids_share_a_key(one: bytes, two: bytes) -> None:
    """Two events never share an Idempotency-Key: the target would drop one of them."""
    keys = [_with_id(event_id).idempotency_key() for event_id in (one, two)]

    assert (keys[0] == keys[1]) == (one == two)


@pytest.mark.parametrize(
    ("event_id", "place"),
    [
        (b"order-paid-events-0-5", (0, 5)),
        (b"order-paid-events-12-340@1766140200000", (12, 340)),
        (b"order-paid-events-0-05", None),
        (b"order-paid-events-0-5-1", None),
        (b"order-paid-events-0", None),
        (b"x-order-paid-events-0-5", None),
        (b"other-0-5", None),
        (b"", None),
    ],
)
def test_an_id_like_ours_claims_a_place(event_id: bytes, place: tuple[int, int] | None) -> None:
    """Only an id in the relay's own form for the topic claims a position."""
    claiming = _with_id(event_id)

    assert claiming.claimed_position() == place
    assert claiming.with_own_id().idempotency_key() == "order-paid-events-0-5"
    assert record(5).claimed_position() is None


def test_all_copies_of_an_event_share_the_key() -> None:
    """The key does not depend on a copy's position if the event has its id."""
    first = record(5)
    copy = record(99, partition=2, headers=[("event-id", first.event_id())])

    assert copy.idempotency_key() == first.idempotency_key() == "order-paid-events-0-5"
