"""Consumers of events from Kafka: what a consumer file imports.

    from order_relay import Consumer, Delivery, OrderPaid, Reject, RetryLater, Unavailable, HttpPost

Importing it loads neither Faust nor a client (docs/how-to/add-a-consumer.md).
"""

from order_relay.errors import InvalidConsumer, Reject, RetryLater, Unavailable
from order_relay.model.consumer import Consumer, Delivery, HttpPost
from order_relay.model.order_paid import OrderItem, OrderPaid

__all__ = [
    "Consumer",
    "Delivery",
    "HttpPost",
    "InvalidConsumer",
    "OrderItem",
    "OrderPaid",
    "Reject",
    "RetryLater",
    "Unavailable",
]
