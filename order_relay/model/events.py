"""Events of a consumer: every record's value is decoded before its handler sees it.

Decoding decides whether the value is an event at all; the relay posts the value byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec

from order_relay.errors import InvalidEvent
from order_relay.model.order_paid import OrderId, OrderPaid, is_order_id

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


class Events:
    """Reads the events of one consumer.

    Attributes:
        subject: Returns what an event is about, an order's id for the deliveries table; ``None``
            where it does not tell.
    """

    def __init__(
        self,
        kind: type[msgspec.Struct] | type[bytes],
        *,
        subject: Callable[[Any], OrderId | None] | None = None,
    ) -> None:
        """Read events of a kind.

        Args:
            kind: A struct that each value is decoded to; ``bytes``: values as they come.
            subject: By default an event's ``orderId``, where it has one.
        """
        self._name = "an ORDER_PAID event" if kind is OrderPaid else f"a {kind.__name__}"
        self._decoder = None if kind is bytes else msgspec.json.Decoder(kind)
        self.subject: Callable[[Any], OrderId | None] = (
            partial(_checked, subject)
            if subject is not None
            else attrgetter("orderId")
            if kind is OrderPaid
            else _order_id
        )

    def decode(self, value: bytes | None) -> Any:
        """Check that a record's value is an event.

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
        if self._decoder is None:
            return value
        try:
            # RFC 8259 section 8.1: JSON exchanged between systems is UTF-8. The decoder alone would
            # let invalid sequences pass in fields that it skips.
            value.decode()
        except UnicodeDecodeError as error:
            detail = _other_form(value) or f"the value is not UTF-8: {error}"
            raise InvalidEvent("invalid_utf8", detail) from error
        try:
            try:
                return self._decoder.decode(value)
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                return self._decoder.decode(without_lone_surrogates(value))
        except msgspec.ValidationError as error:
            raise InvalidEvent("invalid_event", f"not {self._name}: {error}") from error
        except RecursionError as error:
            raise InvalidEvent("invalid_json", "the value nests too deeply to be read") from error
        except msgspec.DecodeError as error:
            detail = _other_form(value) or f"the value is not JSON: {error}"
            raise InvalidEvent("invalid_json", detail) from error


ORDER_PAID = Events(OrderPaid)


def decode_order_paid(value: bytes | None) -> OrderPaid:
    """Check that a record's value is an ORDER_PAID event; see ``Events.decode``."""
    event: OrderPaid = ORDER_PAID.decode(value)
    return event


def paid_at_of(event: object) -> str:
    """Return ``paidAt`` as an event gives it; empty where it has none."""
    given = getattr(event, "paidAt", "")
    return given if isinstance(given, str) else ""


def paid_moment(event: object) -> datetime | None:
    """Return when an order was paid; ``None`` where its event gives no moment, or one without zone.

    A time without a zone is the order service's local time, of which we know nothing.
    """
    if not isinstance(event, OrderPaid):
        return None
    moment = event.paid_at()
    return moment if moment.tzinfo is not None else None


def _order_id(event: object) -> OrderId | None:
    return _checked(attrgetter("orderId"), event)


def _checked(subject: Callable[[Any], Any], event: object) -> OrderId | None:
    """Return what an event is about, where that is an id."""
    try:
        found = subject(event)
    except Exception:  # noqa: BLE001 - a consumer's own function must not fail a delivery
        return None
    if isinstance(found, str):
        return found if is_order_id(found) else None
    return found if type(found) is int else None


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
