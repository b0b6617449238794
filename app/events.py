"""The ORDER_PAID event: its shape, and the check every record's value goes through.

The relay posts a record's value byte for byte; decoding only decides whether the value is an
ORDER_PAID event at all, and reads when the order was paid.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from app.errors import InvalidEvent


class OrderItem(msgspec.Struct, frozen=True, gc=False):
    """One line of an order."""

    productId: int  # noqa: N815 - the names on the wire
    orderQuantity: int  # noqa: N815


class OrderPaid(msgspec.Struct, frozen=True, gc=False):
    """An ORDER_PAID event as the order service writes it.

    Fields that are not named here are allowed and pass through untouched.

    ``paidAt`` is an ISO 8601 date and time, as Java's ``LocalDateTime`` and ``OffsetDateTime``
    print it: with or without seconds, fraction and zone.
    """

    eventType: Literal["ORDER_PAID"]  # noqa: N815
    orderId: int  # noqa: N815
    userId: int  # noqa: N815
    paidAt: str  # noqa: N815
    orderItems: list[OrderItem]  # noqa: N815

    def __post_init__(self) -> None:
        self.paid_at()

    def paid_at(self) -> datetime:
        """Return ``paidAt``; naive where the event gives no zone."""
        if len(self.paidAt) <= len("2025-12-19"):
            raise ValueError(f"paidAt must be an ISO 8601 date and time, not {self.paidAt!r}")
        try:
            return datetime.fromisoformat(self.paidAt)
        except ValueError:
            raise ValueError(
                f"paidAt must be an ISO 8601 date and time, not {self.paidAt[:40]!r}"
            ) from None


_decoder = msgspec.json.Decoder(OrderPaid)


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
        raise InvalidEvent("invalid_utf8", f"the value is not UTF-8: {error}") from error
    try:
        return _decoder.decode(value)
    except msgspec.ValidationError as error:
        raise InvalidEvent("invalid_event", f"not an ORDER_PAID event: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:  # nested too deeply to be ours
        raise InvalidEvent("invalid_json", f"the value is not JSON: {error}") from error
