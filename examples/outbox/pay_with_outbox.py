"""An order service with an outbox: the event's row is committed with the order, or neither is.

``python pay_with_outbox.py``, with KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL as the worker has them.
Kill it whenever you like: what was committed is published when it, or any worker on the same
database, runs again.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from order_relay.fallback.sql.engine import make_engine
from order_relay.publishing import OrderEvents, open_order_events
from order_relay.settings import load_settings


class Base(DeclarativeBase):
    """The service's own tables."""


class Order(Base):
    """A paid order."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    paid_at: Mapped[datetime]


async def pay(session: AsyncSession, events: OrderEvents, user_id: int) -> str:
    """Take an order and its event into the session's transaction; the caller commits."""
    order = Order(user_id=user_id, paid_at=datetime.now(UTC).replace(tzinfo=None))
    session.add(order)
    await session.flush()  # gives the order its id
    event = {
        "eventType": "ORDER_PAID",
        "orderId": order.id,
        "userId": order.user_id,
        "paidAt": order.paid_at.isoformat(),
        "orderItems": [{"productId": 1, "orderQuantity": 2}],
    }
    return events.outbox.add(session, event)


async def main() -> None:
    """Pay three orders, the third in vain."""
    settings = load_settings()
    # The orders and the outbox must be in one database.
    engine = make_engine(settings.database_url.get_secret_value())
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    async with open_order_events(settings) as events:
        for user_id in (1, 2, 3):
            async with AsyncSession(engine) as session:
                event_id = await pay(session, events, user_id)
                if user_id == 3:
                    await session.rollback()
                    print(f"user {user_id}: rolled back, no event")
                else:
                    await session.commit()
                    print(f"user {user_id}: committed with event {event_id}")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
