"""Sends every ORDER_PAID event to the external logging system.

Environment variables override the values below. They have no prefix: ORDER_PAID_TOPIC,
EXTERNAL_LOGGER_URL and the others in .env.example.
"""

from order_relay import Consumer, HttpPost, OrderPaid

order_logging = Consumer(
    "order_logging",
    topic="order-paid-events",
    group="logging-consumer-group",
    dead_letter_topic="order-paid-events.DLQ",
    event=OrderPaid,
    handler=HttpPost("http://localhost:3000/logs"),
)
