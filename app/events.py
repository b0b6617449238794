"""The ORDER_PAID event: its shape, and the check every record's value goes through.

The relay posts a record's value byte for byte; decoding only decides whether the value is an
ORDER_PAID event at all, and reads when the order was paid.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

from app.errors import InvalidEvent

OrderId: TypeAlias = int | str

MAX_TEXT_ID_LENGTH = 255
# As long as Python reads numbers.
_NUMBER = re.compile(r"-?[0-9]{1,4300}", re.ASCII)
# U+FFFD stands for what cannot be read: two ids must not become one.
_REPLACEMENT = "\ufffd"

# ISO 8601 has them, Python's datetime does not: the end of the day, and a leap second.
_ODD_TIMES = (
    (re.compile(r"(?<=[T ])24(?=:00(?::00(?:[.,]0+)?)?(?:[Z+-]|$))"), "00", timedelta(days=1)),
    (re.compile(r"(?<=:\d\d):60(?=[.,Z+-]|$)", re.ASCII), ":59", timedelta(seconds=1)),
)
# In JSON: a surrogate pair, a lone surrogate, any other escape.
_ESCAPES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)",
    re.DOTALL,
)
_LONE_LENGTH = len(rb"\ud800")
# What producers write instead of UTF-8 JSON, by its first bytes.
_OTHER_FORMS = (
    (b"\xef\xbb\xbf", "a byte order mark, which JSON must not have (RFC 8259, 8.1)"),
    (b"\xff\xfe", "a byte order mark of UTF-16 or UTF-32: it must be UTF-8"),
    (b"\xfe\xff", "a byte order mark of UTF-16: it must be UTF-8"),
    (b"\x00\x00\xfe\xff", "a byte order mark of UTF-32: it must be UTF-8"),
    (b"{\x00", "JSON in UTF-16 or UTF-32: it must be UTF-8"),
    (b"\x00{", "JSON in UTF-16: it must be UTF-8"),
    (b"\x00\x00\x00{", "JSON in UTF-32: it must be UTF-8"),
    (b"\x1f\x8b", "gzip's header: Kafka's own compression is read, a compressed value is not"),
    (b"\x00", "a schema registry's prefix (00 and the schema's id): it must be JSON alone"),
)


class OrderItem(msgspec.Struct, frozen=True, gc=False):
    """One line of an order."""

    productId: OrderId  # noqa: N815 - the names on the wire
    orderQuantity: int  # noqa: N815


class OrderPaid(msgspec.Struct, frozen=True, gc=False):
    """An ORDER_PAID event as the order service writes it.

    Fields that are not named here are allowed and pass through untouched.

    Ids are whole numbers or text, such as a UUID. ``orderId`` as text has 1 to 255 printable
    characters; 7 and "7" are the same order.

    ``paidAt`` is an ISO 8601 date and time, as Java's ``LocalDateTime`` and ``OffsetDateTime``
    print it: with or without seconds, fraction and zone. ``24:00:00`` is the end of the day,
    a second ``60`` a leap second.
    """

    eventType: Literal["ORDER_PAID"]  # noqa: N815
    orderId: OrderId  # noqa: N815
    userId: OrderId  # noqa: N815
    paidAt: str  # noqa: N815
    orderItems: list[OrderItem]  # noqa: N815

    def __post_init__(self) -> None:
        if type(self.orderId) is str and not is_order_id(self.orderId):
            raise ValueError(
                f"orderId must be a whole number, or 1 to {MAX_TEXT_ID_LENGTH} printable characters"
            )
        self.paid_at()

    def paid_at(self) -> datetime:
        """Return ``paidAt``; naive where the event gives no zone."""
        if len(self.paidAt) <= len("2025-12-19"):
            raise ValueError(f"paidAt must be an ISO 8601 date and time, not {self.paidAt!r}")
        try:
            return _moment(self.paidAt)
        except (ValueError, OverflowError):
            raise ValueError(
                f"paidAt must be an ISO 8601 date and time, not {self.paidAt[:40]!r}"
            ) from None


_decoder = msgspec.json.Decoder(OrderPaid)


def is_order_id(text: str) -> bool:
    """Whether it is an order's id, as keys and people write it."""
    return (
        0 < len(text) <= MAX_TEXT_ID_LENGTH and text.isprintable() and _REPLACEMENT not in text
    ) or _NUMBER.fullmatch(text) is not None


def decode_order_paid(value: bytes | None) -> OrderPaid:
    """Check that a record's value is an ORDER_PAID event.

    Args:
        value: The record's value as it came from Kafka.

    Returns:
        The event.

    Raises:
        InvalidEvent: With reason ``tombstone`` for a null value, ``invalid_utf8`` or
            ``invalid_json`` for bytes that are not UTF-8 JSON, ``invalid_event`` for JSON of
            another shape.
    """
    if value is None:
        raise InvalidEvent("tombstone", "the record has no value")
    try:
        # RFC 8259 section 8.1: JSON exchanged between systems is UTF-8. The decoder alone would
        # let invalid sequences pass in fields that it skips.
        value.decode()
    except UnicodeDecodeError as error:
        detail = _other_form(value) or f"the value is not UTF-8: {error}"
        raise InvalidEvent("invalid_utf8", detail) from error
    try:
        try:
            return _decoder.decode(value)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return _decoder.decode(without_lone_surrogates(value))
    except msgspec.ValidationError as error:
        raise InvalidEvent("invalid_event", f"not an ORDER_PAID event: {error}") from error
    except RecursionError as error:
        raise InvalidEvent("invalid_json", "the value nests too deeply to be read") from error
    except msgspec.DecodeError as error:
        detail = _other_form(value) or f"the value is not JSON: {error}"
        raise InvalidEvent("invalid_json", detail) from error


def without_lone_surrogates(value: bytes) -> bytes:
    r"""Return JSON that a strict reader takes, with ``\ufffd`` for each escape of half a character.

    JSON allows ``"\ud800"``, and JavaScript writes it (RFC 8259, 8.2).
    """
    return _ESCAPES.sub(lambda m: rb"\ufffd" if len(m[0]) == _LONE_LENGTH else m[0], value)


def _other_form(value: bytes) -> str:
    """Return what the value is instead of UTF-8 JSON, where its beginning tells; else ""."""
    for beginning, form in _OTHER_FORMS:
        if value.startswith(beginning):
            return f"the value begins with {form}"
    return ""


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        for pattern, read_as, more in _ODD_TIMES:
            changed, count = pattern.subn(read_as, text)
            if count:
                return datetime.fromisoformat(changed) + more
        raise
