"""An event to publish, and a row's: bytes, keys and ids."""

import math
import uuid
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from order_relay.errors import InvalidEvent
from order_relay.fallback.store import FallbackRow, Status
from order_relay.fallback.sweep import with_event_id
from order_relay.publishing.message import order_event
from tests.support.publish_fakes import START
from tests.support.publish_ways import body, paid


def test_bytes_stay_as_they_are() -> None:
    """JSON given as bytes is not encoded again; the key is the order's id, as text, too."""
    given = b"  " + body(5) + b"\n"
    event = order_event(given)
    assert (event.payload, event.key) == (given, b"5")
    assert order_event(paid(5, orderId="SKU-9")).key == b"SKU-9"
    assert uuid.UUID(event.event_id) != uuid.UUID(order_event(given).event_id)
    assert event.headers == (("event-id", event.event_id.encode()),)


def test_mappings_become_json() -> None:
    """A mapping, of any class, is encoded at once; later changes are ignored.

    It may hold half a character where JSON may: the order is published.
    """
    given = paid(5)
    event = order_event(given)
    given["orderId"] = 6
    assert event.payload == order_event(MappingProxyType(paid(5))).payload == body(5)
    odd = order_event(paid(5, note="\ud800"))
    assert odd.payload == body(5)[:-1] + rb',"note":"\ud800"}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have(number: float) -> None:
    """They would become null."""
    with pytest.raises(InvalidEvent, match="cannot be JSON"):
        order_event(paid(5, items=[{"amount": number}]))
    assert order_event(paid(5, note=None)).payload.endswith(b'"note":null}')


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"event_id": uuid.UUID(int=7)}, "event_id must be text"),
        ({"event_id": 7}, "event_id must be text"),
        ({"event_id": b"7"}, "event_id must be text"),
        ({"event_id": ""}, "event_id must be text"),
        ({"headers": {"a": b"1"}}, "headers must be pairs"),
        ({"headers": [("a", b"1", 2)]}, "headers must be pairs"),
        ({"headers": 7}, "headers must be pairs"),
        ({"headers": [(b"a", b"1")]}, "name must be text"),
        # Kafka would take text, but the fallback table would not.
        ({"key": "1"}, "^the key must be bytes, not str$"),
        ({"key": 1}, "^the key must be bytes, not int$"),
        ({"headers": [("fine", b"1"), ("x", "y")]}, "^the header 'x' must be bytes, not str$"),
        ({"headers": [("event-id", "7")]}, "^the header 'event-id' must be bytes, not str$"),
        # An id is 1 to 255 printable characters.
        *(({"event_id": text}, "event-id") for text in ("x" * 256, "a\nb", "\0", "\udc80")),
        # These names would be saved as others, or end the client.
        *(({"headers": [("fine", b"1"), (name, b"2")]}, "the header .* in its name")
          for name in ("\ud800", "cut\0off")),
    ],
    ids=ascii,
)  # fmt: skip
def test_wrong_arguments(given: dict[str, Any], message: str) -> None:
    """Each is an ``InvalidEvent`` that says what is wrong."""
    with pytest.raises(InvalidEvent, match=message):
        order_event(body(), **given)


def test_ids_and_keys_that_are_given() -> None:
    """The argument wins over the last header; the event has one id."""
    headers = [("event-id", b"first"), ("trace", None), ("event-id", b"last")]
    event = order_event(body(), event_id="mine", key=b"k", headers=headers)
    assert (event.event_id, event.key) == ("mine", b"k")
    assert event.headers == (("trace", None), ("event-id", b"mine"))
    assert order_event(body(), headers=headers).event_id == "last"
    assert order_event(body(), headers=[("event-id", None)]).event_id


@pytest.mark.parametrize(
    "event",
    [{}, paid(orderId=""), paid(userId={1: object()}), b"no"],
    ids=["empty", "an empty id", "no JSON value", "no JSON"],
)
def test_other_things_are_refused(event: Any) -> None:
    """What is not an ORDER_PAID event, or not JSON."""
    with pytest.raises(InvalidEvent):
        order_event(event)


ROW = FallbackRow(
    1, "orders", b"1", b"{}", (("x", b"y"),), None, 0, 3, Status.PENDING, START, None, START, START
)


def test_a_row_has_the_same_event_id_each_time() -> None:
    """Its header's, which stays as it is, or one made of columns that attempts do not change."""
    headers = (("event-id", b"7"), ("x", b"y"))
    assert with_event_id(replace(ROW, headers=headers)) == headers
    later = replace(ROW, retry_count=2, error_message="refused")
    assert with_event_id(ROW) == with_event_id(later)
    assert dict(with_event_id(ROW))["x"] == b"y"
    # An empty one, last, does not count.
    (made,) = with_event_id(replace(ROW, headers=(("event-id", b"7"), ("event-id", b""))))
    assert len(made[1] or b"") == 36


def test_two_rows_get_two_ids() -> None:
    """Equal payloads are two events; so are equal ids of two databases."""
    others = (
        replace(ROW, id=2), replace(ROW, topic="o"), replace(ROW, key=None),
        replace(ROW, payload=b"1"), replace(ROW, created_at=START.replace(microsecond=1)),
    )  # fmt: skip
    ids = {dict(with_event_id(row))["event-id"] for row in (ROW, *others)}
    assert len(ids) == 6
