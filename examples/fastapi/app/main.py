"""Pays orders, and publishes an ORDER_PAID event for each one that commits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.schema import CreateTable

from app.orders import Base, Order, PaymentDeclined, charge
from order_relay.publishing import OrderEvents, open_order_events
from order_relay.settings import load_settings


class State(TypedDict):
    """What every request has."""

    events: OrderEvents
    sessions: async_sessionmaker[AsyncSession]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    """Connect to the database and to Kafka; close both when the service ends."""
    settings = load_settings()
    # The orders and the outbox are in one database.
    engine = create_async_engine(settings.database_url.get_secret_value())
    # Makes the outbox table, too.
    async with open_order_events(settings) as events:
        async with engine.begin() as connection:
            for table in Base.metadata.sorted_tables:  # several processes may start at once
                await connection.execute(CreateTable(table, if_not_exists=True))
        yield {"events": events, "sessions": async_sessionmaker(engine)}
    await engine.dispose()


app = FastAPI(title="Order service", lifespan=lifespan)


def order_events(request: Request) -> OrderEvents:
    """Return the ways to publish."""
    events: OrderEvents = request.state.events
    return events


async def new_session(request: Request) -> AsyncIterator[AsyncSession]:
    """Open a session for one request."""
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions
    async with sessions() as session:
        yield session


Events = Annotated[OrderEvents, Depends(order_events)]
Session = Annotated[AsyncSession, Depends(new_session)]


class Item(BaseModel):
    """One line of an order."""

    productId: int  # noqa: N815 - the names of the event
    orderQuantity: int  # noqa: N815


class NewOrder(BaseModel):
    """An order to pay."""

    userId: int  # noqa: N815
    orderItems: list[Item]  # noqa: N815
    card: str

    def order(self) -> Order:
        """Return the order's row."""
        return Order(user_id=self.userId, items=[item.model_dump() for item in self.orderItems])


@app.post("/orders", status_code=201)
async def pay(new: NewOrder, session: Session, events: Events) -> dict[str, int]:
    """Pay an order, with the outbox: the order and its event commit together."""
    async with session.begin():
        session.add(order := new.order())
        await session.flush()  # gives the order its id
        events.outbox.add(session, order.paid_event(), event_id=f"order-{order.id}-paid")
        charge(new.card)  # an error rolls both back
        return {"orderId": order.id}


@app.post("/orders/after-commit", status_code=201)
async def pay_and_publish_after_commit(
    new: NewOrder, session: Session, events: Events
) -> dict[str, int]:
    """Pay an order, without the outbox: a crash right after the commit loses the event.

    The alternative where the orders' database cannot have the outbox table.
    """
    async with session.begin():
        session.add(order := new.order())
        await session.flush()
        events.after_commit.publish(session, order.paid_event(), event_id=f"order-{order.id}-paid")
        charge(new.card)
        return {"orderId": order.id}


@app.exception_handler(PaymentDeclined)
async def declined(_request: Request, _error: Exception) -> JSONResponse:
    """Answer 402: the order was rolled back, and its event with it."""
    return JSONResponse({"detail": "payment declined"}, status_code=402)
