"""The service's own table, and what stands for a payment provider."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DECLINED_CARD = "declined"


class PaymentDeclined(Exception):
    """The payment provider refused the card."""


class Base(DeclarativeBase):
    """The service's own tables."""


class Order(Base):
    """A paid order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    paid_at: Mapped[datetime] = mapped_column(
        default=lambda: datetime.now(UTC).replace(tzinfo=None)
    )
    items: Mapped[list[dict[str, Any]]] = mapped_column(JSON)

    def paid_event(self) -> dict[str, Any]:
        """Return the order's ORDER_PAID event; the order must have its id."""
        return {
            "eventType": "ORDER_PAID",
            "orderId": self.id,
            "userId": self.user_id,
            "paidAt": self.paid_at.isoformat(),
            "orderItems": self.items,
        }


def charge(card: str) -> None:
    """Charge a card; a real service calls its payment provider here.

    Raises:
        PaymentDeclined: The card is the one that is always declined.
    """
    if card == DECLINED_CARD:
        raise PaymentDeclined
