"""The ORDER_PAID event: what is accepted, and what is refused and why."""

import gzip
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.errors import InvalidEvent
from order_relay.model.events import decode_order_paid
from order_relay.model.order_paid import OrderItem, OrderPaid
from tests.support.orders import order_value

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_the_documented_message_is_read() -> None:
    """The message of the design is an event with all its fields."""
    event = decode_order_paid(
        b'{"eventType":"ORDER_PAID","orderId":123,"userId":456,"paidAt":"2025-12-19T10:30:00",'
        b'"orderItems":[{"productId":1,"orderQuantity":2}]}'
    )

    assert event == OrderPaid("ORDER_PAID", 123, 456, "2025-12-19T10:30:00", [OrderItem(1, 2)])
    assert event.paid_at() == datetime(2025, 12, 19, 10, 30)  # noqa: DTZ001 - it has no zone


@given(st.dictionaries(st.text(min_size=1).map("x-".__add__), JSON_VALUES, max_size=4))
def test_unknown_fields_pass(unknown: dict[str, object]) -> None:
    """Unknown fields change nothing, whatever they contain."""
    assert decode_order_paid(order_value(7, **unknown)) == decode_order_paid(order_value(7))


@pytest.mark.parametrize("text", [rb"\ud800", rb"\uDC00", rb"\ud83d\ud83d\ude00", rb"\\\ud800x"])
@pytest.mark.parametrize("place", [b'"x":"%s"', b'"%s":1', b'"x":[{"y":"%s"}]'])
def test_half_a_character_in_an_unknown_field_passes(text: bytes, place: bytes) -> None:
    """JSON allows the escape of a lone surrogate, and JavaScript writes it."""
    assert decode_order_paid(order_value(7)[:-1] + b"," + place % text + b"}").orderId == 7


@pytest.mark.parametrize(
    "order_id", ["1", "7f3a5c1e-0d7e-4b57-9a53-0c1d6a2b9e01", "SKU 4/7", "주문-1", "x" * 255]
)
def test_ids_may_be_text(order_id: str) -> None:
    """Ids of orders, users and products may be text, such as UUIDs, or numbers."""
    items = [{"productId": "SKU-1", "orderQuantity": 2}]
    event = decode_order_paid(order_value(1, orderId=order_id, userId="u-1", orderItems=items))

    assert (event.orderId, event.userId) == (order_id, "u-1")
    assert event.orderItems == [OrderItem("SKU-1", 2)]


@pytest.mark.parametrize("spaces", [b" ", b"\n", b"\r\n\t"])
def test_space_around_the_json_passes(spaces: bytes) -> None:
    """Space that JSON allows does not make an event invalid."""
    assert decode_order_paid(spaces + order_value(7) + spaces).orderId == 7


ORDER, DEEP = order_value(1), b"[" * 200_000
WRONG: dict[str, list[Any]] = {
    # A lone surrogate: two orders must not become one.
    "eventType": ["ORDER_PAID\ud800", "ORDER_SHIPPED", None],
    "orderId": ["7\ud800", "", "a\nb", "x" * 256, "\ufffd", True, 1.5],
    "userId": [None],
    "orderItems": [None, {}, [{"productId": 1}], [{"productId": 1, "orderQuantity": "2"}]],
    "paidAt": [
        "2025-12-19T10:30:00\ud800", 1_766_140_200, "", "yesterday at noon", "2025-12-19",
        "2025-13-19T10:30:00", "2025-12-19T24:00:01", "2025-12-19T24:30", "2025-12-19T10:30:61",
        "2025-12-19T10:60:00", "9999-12-31T24:00:00", "x" * 100_000,
    ],
}  # fmt: skip
REFUSED: dict[str, list[tuple[bytes | None, str]]] = {
    "tombstone": [(None, "no value")],
    "invalid_utf8": [
        (b"\xff\xfe", "UTF-16 or UTF-32"),
        # Latin-1 in an unknown field.
        (order_value(1, note="caf").replace(b"caf", b"caf\xe9"), "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),  # a surrogate
        (ORDER.decode().encode("utf-16"), "UTF-16"),
        (b"\x00\x00\x00\x00\xe9" + ORDER, "schema registry"),
        (gzip.compress(ORDER, mtime=0), "gzip"),
    ],
    "invalid_json": [
        *((value, "not JSON") for value in (b"", b"order", b"{", ORDER[:-1], ORDER + b"x",
                                            ORDER + order_value(2), b'{"orderId":NaN}',
                                            rb'{"x":"\ud800"')),
        (b"\xef\xbb\xbf" + ORDER, "byte order mark"),  # not JSON (RFC 8259, 8.1)
        (ORDER.decode().encode("utf-16-le"), "UTF-16"),
        (ORDER.decode().encode("utf-16-be"), "UTF-16"),
        (ORDER.decode().encode("utf-32-be"), "UTF-32"),
        (b"\x00\x00\x00\x00\x2a" + ORDER, "schema registry"),
        # JSON that nests too deeply must not break the reader.
        (b'{"x":' * 200_000, "nests too deeply"),
        (ORDER[:-1] + b',"x":' + DEEP, "nests too deeply"),
        (ORDER[:-1] + b',"x":' + b'{"x":' * 200_000, "nests too deeply"),
    ],
    "invalid_event": [
        *((value, "Expected `object`|missing") for value in (b"null", b"1", b'"ORDER_PAID"', b"[]",
                                                             b"{}")),
        (DEEP, "Expected `object`, got `array`"),
        (ORDER.replace(b"[{", DEEP + b"[{"), "Expected `object`, got `array`"),
        *((order_value(1, **{name: value}), name) for name in WRONG for value in WRONG[name]),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "reason", "cause"),
    [(value, reason, cause) for reason, values in REFUSED.items() for value, cause in values],
    ids=lambda value: repr(value)[:40],
)
def test_values_that_are_not_events_are_refused(
    value: bytes | None, reason: str, cause: str
) -> None:
    """Each has a reason for the dead letter, and a text that names what the producer wrote."""
    with pytest.raises(InvalidEvent, match=cause) as caught:
        decode_order_paid(value)
    assert (caught.value.reason, str(caught.value)) == (reason, caught.value.detail)


@pytest.mark.parametrize("missing", ["eventType", "orderId", "userId", "paidAt", "orderItems"])
def test_every_field_is_needed(missing: str) -> None:
    """An event has all five fields, and the refusal names the one that is missing."""
    fields = json.loads(order_value(1))
    del fields[missing]

    with pytest.raises(InvalidEvent, match=missing) as caught:
        decode_order_paid(json.dumps(fields).encode())
    assert caught.value.reason == "invalid_event"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        # As Java prints LocalDateTime (without seconds and fractions that are 0) ...
        ("2025-12-19T10:30", datetime(2025, 12, 19, 10, 30)),  # noqa: DTZ001 - as printed
        ("2025-12-19T10:30:07.5", datetime(2025, 12, 19, 10, 30, 7, 500_000)),  # noqa: DTZ001
        ("2025-12-19T10:30:07.123456789", datetime(2025, 12, 19, 10, 30, 7, 123_456)),  # noqa: DTZ001
        # ... the end of the day and leap seconds, as ISO 8601 has them ...
        ("2025-12-31T24:00", datetime(2026, 1, 1)),  # noqa: DTZ001
        ("2025-12-19T24:00:00", datetime(2025, 12, 20)),  # noqa: DTZ001
        ("2025-12-19T24:00:00.000Z", datetime(2025, 12, 20, tzinfo=timezone.utc)),  # noqa: UP017
        ("2016-12-31T23:59:60", datetime(2017, 1, 1)),  # noqa: DTZ001
        (
            "2017-01-01T08:59:60.5+09:00",
            datetime(2017, 1, 1, 9, 0, 0, 500_000, tzinfo=timezone(timedelta(hours=9))),
        ),
        # ... and OffsetDateTime.
        ("2025-12-19T10:30:00Z", datetime(2025, 12, 19, 10, 30, tzinfo=timezone.utc)),  # noqa: UP017
        (
            "2025-12-19T10:30+09:00",
            datetime(2025, 12, 19, 10, 30, tzinfo=timezone(timedelta(hours=9))),
        ),
    ],
)
def test_paid_at_is_read_as_java_prints_it(text: str, moment: datetime) -> None:
    """Date and time pass in every form in which Java prints them, with the zone kept."""
    paid_at = decode_order_paid(order_value(1, paidAt=text)).paid_at()

    assert paid_at == moment
    assert paid_at.utcoffset() == moment.utcoffset()


@given(st.binary(max_size=200) | JSON_VALUES.map(msgspec.json.encode))
def test_only_refusals_are_raised(value: bytes) -> None:
    """Any bytes give an event, or a refusal with a known reason."""
    refusals = []
    try:
        decode_order_paid(value)
    except InvalidEvent as error:
        refusals.append(error.reason)

    assert set(refusals) <= {"invalid_utf8", "invalid_json", "invalid_event"}
