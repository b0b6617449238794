"""Sold products by day in a SQL table: a plain function, which runs in a thread.

Each event is a transaction of its own. When the function returns, Kafka's record is finished, so
the rows must be committed by then; and an event that fails must not undo another one's rows.
"""

import os
import sqlite3
from contextlib import closing

from order_relay import Consumer, Delivery, OrderPaid, Reject

analytics = Consumer(
    "analytics",
    topic="order-paid-events",
    group="analytics-group",
    event=OrderPaid,
    max_in_flight=4,  # SQLite has one writer at a time
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS counted (idempotency_key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sold (
    day TEXT, product TEXT, quantity INTEGER NOT NULL, PRIMARY KEY (day, product)
) WITHOUT ROWID;
"""
ADD = """
INSERT INTO sold VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET quantity = quantity + excluded.quantity
"""


@analytics.handler
def count(order: OrderPaid, delivery: Delivery) -> None:
    """Add the order's products, all or none, and once however often the event comes."""
    if any(item.orderQuantity <= 0 for item in order.orderItems):
        raise Reject("a quantity is not positive")
    day = order.paid_at().date().isoformat()
    rows = [(day, str(item.productId), item.orderQuantity) for item in order.orderItems]
    path = os.environ.get("ANALYTICS_DATABASE", "analytics.db")
    # A time-out, since a thread cannot be ended: longest wait for another writer, in seconds.
    with closing(sqlite3.connect(path, timeout=5, isolation_level="IMMEDIATE")) as database:
        database.executescript(SCHEMA)
        with database:  # one transaction
            key = (delivery.idempotency_key,)
            if database.execute("INSERT OR IGNORE INTO counted VALUES (?)", key).rowcount:
                database.executemany(ADD, rows)
