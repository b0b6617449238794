"""The ORDER_PAID event: its fields, and which ids and times are valid."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

OrderId: TypeAlias = int | str

MAX_TEXT_ID_LENGTH = 255
# Python's limit for the digits of a number.
_NUMBER = re.compile(r"-?[0-9]{1,4300}", re.ASCII)
# U+FFFD replaces unreadable characters, so two different ids could become the same.
_REPLACEMENT = "\ufffd"

# Times of ISO 8601 that Python's datetime refuses: the end of the day, and a leap second.
_ODD_TIMES = (
    (re.compile(r"(?<=[T ])24(?=:00(?::00(?:[.,]0+)?)?(?:[Z+-]|$))"), "00", timedelta(days=1)),
    (re.compile(r"(?<=:\d\d):60(?=[.,Z+-]|$)", re.ASCII), ":59", timedelta(seconds=1)),
)


class OrderItem(msgspec.Struct, frozen=True, gc=False):
    """One line of an order."""

    productId: OrderId  # noqa: N815 - the names on the wire
    orderQuantity: int  # noqa: N815


class OrderPaid(msgspec.Struct, frozen=True, gc=False):
    """An ORDER_PAID event as the order service writes it.

    Other fields are allowed and are passed on unchanged.

    Ids are whole numbers or text, such as a UUID. ``orderId`` as text has 1 to 255 printable
    characters; 7 and "7" are the same order.

    ``paidAt`` is an ISO 8601 date and time, as Java's ``LocalDateTime`` and ``OffsetDateTime``
    print it: with or without seconds, fraction and zone. ``24:00:00`` is the end of the day, and
    second ``60`` is a leap second.
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
        """Return ``paidAt``; without a time zone if the event has none."""
        if len(self.paidAt) <= len("2025-12-19"):
            raise ValueError(f"paidAt must be an ISO 8601 date and time, not {self.paidAt!r}")
        try:
            return _moment(self.paidAt)
        except (ValueError, OverflowError):
            raise ValueError(
                f"paidAt must be an ISO 8601 date and time, not {self.paidAt[:40]!r}"
            ) from None


def is_order_id(text: str) -> bool:
    """Whether the text is a valid order id."""
    return (
        0 < len(text) <= MAX_TEXT_ID_LENGTH and text.isprintable() and _REPLACEMENT not in text
    ) or _NUMBER.fullmatch(text) is not None


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        for pattern, read_as, more in _ODD_TIMES:
            changed, count = pattern.subn(read_as, text)
            if count:
                return datetime.fromisoformat(changed) + more
        raise
