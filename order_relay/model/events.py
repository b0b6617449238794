"""Decodes the values of a consumer's records to events.

Decoding decides whether a value is a valid event. What is posted is the value, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from order_relay.errors import InvalidEvent
from order_relay.model.order_paid import OrderId, OrderPaid, is_order_id

T = TypeVar("T")

# In JSON: a surrogate pair, a lone surrogate, any other escape.
_ESCAPES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)",
    re.DOTALL,
)
_LONE_LENGTH = len(rb"\ud800")
# First bytes of what some producers write instead of UTF-8 JSON.
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


class Events:
    """Decodes the events of one consumer.

    Attributes:
        subject: Returns an event's id, such as an order's, for the deliveries table; ``None`` if
            there is no valid one.
        subject_error: What the consumer's own ``subject`` raised last; ``None``: nothing yet.
    """

    subject_error: BaseException | None = None

    def __init__(
        self,
        kind: type[msgspec.Struct] | type[bytes],
        *,
        subject: Callable[[Any], OrderId | None] | None = None,
    ) -> None:
        """Decode events of one type.

        Args:
            kind: The struct that each value is decoded to; ``bytes``: no decoding.
            subject: Returns an event's id; by default its ``orderId``, if it has one.
        """
        self._name = "an ORDER_PAID event" if kind is OrderPaid else f"a {kind.__name__}"
        self._decoder = None if kind is bytes else msgspec.json.Decoder(kind)
        self.subject: Callable[[Any], OrderId | None] = (
            partial(self._subject, subject)
            if subject is not None
            else attrgetter("orderId")
            if kind is OrderPaid
            else _order_id
        )

    def _subject(self, subject: Callable[[Any], OrderId | None], event: object) -> OrderId | None:
        try:
            found = subject(event)
        except BaseException as error:  # noqa: BLE001 - the consumer's own code
            self.subject_error = error.with_traceback(None)  # which would keep the event
            return None
        return _checked(found)

    def decode(self, value: bytes | None) -> Any:
        """Decode a record's value, and return the event.

        Args:
            value: The record's value as it came from Kafka.

        Raises:
            InvalidEvent: With reason ``tombstone`` for a null value, ``invalid_utf8`` or
                ``invalid_json`` for bytes that are not UTF-8 JSON, ``invalid_event`` for JSON of
                another shape.
        """
        if value is None:
            raise InvalidEvent("tombstone", "the record has no value")
        if self._decoder is None:
            return value
        try:
            # JSON between systems must be UTF-8 (RFC 8259, 8.1). The decoder does not check the
            # fields that it skips.
            value.decode()
        except UnicodeDecodeError as error:
            detail = _other_form(value) or f"the value is not UTF-8: {error}"
            raise InvalidEvent("invalid_utf8", detail) from error
        try:
            return _decode(self._decoder, value)
        except msgspec.ValidationError as error:
            raise InvalidEvent("invalid_event", f"not {self._name}: {error}") from error
        except RecursionError as error:
            raise InvalidEvent("invalid_json", "the value nests too deeply to be read") from error
        except msgspec.DecodeError as error:
            detail = _other_form(value) or f"the value is not JSON: {error}"
            raise InvalidEvent("invalid_json", detail) from error
        except MemoryError:
            raise  # not the record's fault
        except BaseException as error:  # of the struct's own code, such as its __post_init__
            raise InvalidEvent("invalid_event", f"not {self._name}: {error!r}") from error


def _decode(decoder: msgspec.json.Decoder[Any], value: bytes) -> Any:
    try:
        return decoder.decode(value)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return decoder.decode(without_lone_surrogates(value))


def is_json(value: bytes) -> bool:
    """Whether a value is UTF-8 JSON."""
    try:
        value.decode()
        _decode(_ANY_JSON, value)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return False
    return True


_ANY_JSON = msgspec.json.Decoder(msgspec.Raw)
ORDER_PAID = Events(OrderPaid)


def decode_order_paid(value: bytes | None) -> OrderPaid:
    """Decode an ORDER_PAID event; see ``Events.decode``."""
    event: OrderPaid = ORDER_PAID.decode(value)
    return event


def paid_at_of(event: object) -> str:
    """Return an event's ``paidAt`` as text; empty if there is none."""
    given = _found(attrgetter("paidAt"), event)
    return given if isinstance(given, str) else ""


def paid_moment(event: object) -> datetime | None:
    """Return when an order was paid; ``None`` without a time or without a time zone.

    A time without a zone is the order service's local time, which we do not know.
    """
    moment = _found(OrderPaid.paid_at, event) if isinstance(event, OrderPaid) else None
    return moment if moment is not None and moment.tzinfo is not None else None


def _order_id(event: object) -> OrderId | None:
    return _checked(_found(attrgetter("orderId"), event))


def _checked(found: Any) -> OrderId | None:
    """Return an event's id, if it is a valid one."""
    if isinstance(found, str):
        return str.__str__(found) if is_order_id(found) else None  # of a subclass: the plain text
    # Text of a huge number cannot be made.
    return found if type(found) is int and _found(str, found) is not None else None


def _found(find: Callable[[Any], T], event: object) -> T | None:
    """Return what a consumer's own code finds; if it fails, that must not fail a delivery."""
    try:
        return find(event)
    except BaseException:  # noqa: BLE001 - such as a panic of an extension in Rust
        return None


def without_lone_surrogates(value: bytes) -> bytes:
    r"""Replace each escaped lone surrogate by ``\ufffd``, so that a strict decoder accepts it.

    JSON allows ``"\ud800"``, and JavaScript writes it (RFC 8259, 8.2).
    """
    return _ESCAPES.sub(lambda m: rb"\ufffd" if len(m[0]) == _LONE_LENGTH else m[0], value)


def _other_form(value: bytes) -> str:
    """Say what a value is instead of UTF-8 JSON, if its first bytes show it; else ""."""
    for beginning, form in _OTHER_FORMS:
        if value.startswith(beginning):
            return f"the value begins with {form}"
    return ""
