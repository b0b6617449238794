"""The event id of rows that were written without one."""

from dataclasses import replace

from order_relay.fallback.store import FallbackRow, Status
from order_relay.fallback.sweep import with_event_id
from tests.support.publish_fakes import START

ROW = FallbackRow(
    1, "orders", b"1", b"{}", (("x", b"y"),), None, 0, 3, Status.PENDING, START, None, START, START
)


def test_its_own_event_id_stays() -> None:
    """A row with an event id keeps its headers as they are."""
    headers = (("event-id", b"7"), ("x", b"y"))
    assert with_event_id(replace(ROW, headers=headers)) == headers


def test_a_row_without_one_gets_the_same_each_time() -> None:
    """The made id depends on what never changes, not on attempts."""
    later = replace(ROW, retry_count=2, error_message="refused")
    assert with_event_id(ROW) == with_event_id(later)
    assert dict(with_event_id(ROW))["x"] == b"y"


def test_two_rows_get_two_ids() -> None:
    """Equal payloads are two events; so are equal ids of two databases."""
    others = (
        replace(ROW, id=2), replace(ROW, topic="o"), replace(ROW, key=None),
        replace(ROW, payload=b"1"), replace(ROW, created_at=START.replace(microsecond=1)),
    )  # fmt: skip
    ids = {dict(with_event_id(row))["event-id"] for row in (ROW, *others)}
    assert len(ids) == 6


def test_an_empty_event_id_is_none() -> None:
    """An empty header, or one that an empty one follows, does not count."""
    empty = replace(ROW, headers=(("event-id", b"7"), ("event-id", b"")))
    (header,) = with_event_id(empty)
    assert len(header[1] or b"") == 36
