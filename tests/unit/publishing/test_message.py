"""An event on its way: its bytes, its key, its id."""

import uuid
from typing import Any

import pytest

from order_relay.errors import InvalidEvent
from order_relay.publishing.message import order_event
from tests.support.publish_ways import body, paid


def test_bytes_stay_as_they_are() -> None:
    """JSON that is given as bytes is not written anew."""
    given = b"  " + body(5) + b"\n"
    event = order_event(given)
    assert (event.payload, event.key) == (given, b"5")
    assert uuid.UUID(event.event_id) != uuid.UUID(order_event(given).event_id)
    assert event.headers == (("event-id", event.event_id.encode()),)


def test_mappings_become_json() -> None:
    """A mapping is encoded at once: later changes do not count."""
    given = paid(5)
    event = order_event(given)
    given["orderId"] = 6
    assert event.payload == body(5)


def test_half_a_character_in_an_unknown_field_is_escaped() -> None:
    """A mapping may hold it where JSON may: the order is published."""
    event = order_event(paid(5, note="\ud800"))
    assert event.payload == body(5)[:-1] + rb',"note":"\ud800"}'


def test_the_key_of_a_text_id_is_the_text() -> None:
    """Events of one order stay in order, whatever its id is."""
    assert order_event(paid(5, orderId="SKU-9")).key == b"SKU-9"


def test_ids_and_keys_that_are_given() -> None:
    """The id that is given wins over the last one among the headers; there is one in the end."""
    headers = [("event-id", b"first"), ("trace", None), ("event-id", b"last")]
    event = order_event(body(), event_id="mine", key=b"k", headers=headers)
    assert (event.event_id, event.key) == ("mine", b"k")
    assert event.headers == (("trace", None), ("event-id", b"mine"))
    assert order_event(body(), headers=headers).event_id == "last"
    assert order_event(body(), headers=[("event-id", None)]).event_id


@pytest.mark.parametrize("event_id", ["x" * 256, "a\nb", "\0", "\udc80"], ids=ascii)
def test_ids_that_cannot_be(event_id: str) -> None:
    """An id is 1 to 255 printable characters."""
    with pytest.raises(InvalidEvent, match="event-id"):
        order_event(body(), event_id=event_id)


@pytest.mark.parametrize("name", ["\ud800", "cut\0off"], ids=ascii)
def test_names_of_headers_that_cannot_be(name: str) -> None:
    """They would be saved under another name, or end the client."""
    with pytest.raises(InvalidEvent, match=r"the header .* in its name"):
        order_event(body(), headers=[("fine", b"1"), (name, b"2")])


@pytest.mark.parametrize(
    "event",
    [{}, paid(orderId=""), paid(userId={1: object()}), b"no"],
    ids=["empty", "an empty id", "no JSON value", "no JSON"],
)
def test_other_things_are_refused(event: Any) -> None:
    """What is no ORDER_PAID event, or cannot be JSON."""
    with pytest.raises(InvalidEvent):
        order_event(event)
