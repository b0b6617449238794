"""An order service with Flask: it publishes an ORDER_PAID event for each order that commits."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from flask import Flask, request
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from app.orders import Base, Order, PaymentDeclined, charge
from order_relay.errors import InvalidEvent
from order_relay.publishing import order_events_thread
from order_relay.settings import load_settings


def create_app() -> Flask:
    """Make the application: once in each process, after a server has forked."""
    settings = load_settings()
    # The orders and the outbox are in one database.
    engine = create_engine(settings.database_url.get_secret_value())
    # Makes the outbox table, too. It stays open: the end of the process closes it.
    events = ExitStack().enter_context(order_events_thread(settings))
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:  # several processes may start at once
            connection.execute(CreateTable(table, if_not_exists=True))
    app = Flask(__name__)

    @app.post("/orders")
    def pay() -> tuple[dict[str, Any], int]:
        new = request.get_json()
        with Session(engine) as session, session.begin():
            session.add(order := Order(user_id=new["userId"], items=new["orderItems"]))
            session.flush()  # gives the order its id
            events.outbox.add(session, order.paid_event(), event_id=f"order-{order.id}-paid")
            charge(new["card"])  # an error rolls both back
            return {"orderId": order.id}, 201

    @app.errorhandler(PaymentDeclined)
    def declined(_error: PaymentDeclined) -> tuple[dict[str, str], int]:
        return {"detail": "payment declined"}, 402

    @app.errorhandler(InvalidEvent)
    def invalid(error: InvalidEvent) -> tuple[dict[str, str], int]:
        return {"detail": str(error)}, 422

    return app
