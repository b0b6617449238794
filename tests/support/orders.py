"""ORDER_PAID records for tests."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

Headers = tuple[tuple[str, bytes | None], ...]


def order_value(order_id: int, **fields: object) -> bytes:
    """An ORDER_PAID event as the order service writes it, with further fields or others."""
    event = {
        "eventType": "ORDER_PAID", "orderId": order_id, "userId": 1000 + order_id % 97,
        "paidAt": "2025-12-19T10:30:00", "orderItems": [{"productId": 1, "orderQuantity": 2}],
        **fields,
    }  # fmt: skip
    return json.dumps(event, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Order:
    """A record to be published.

    Attributes:
        key: Its key.
        value: Its value.
        headers: Its headers.
        partition: Where it goes; ``None``: by its key.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


def order(
    order_id: int,
    *,
    key: str | None = None,
    event_id: str | None = None,
    partition: int | None = None,
    **fields: object,
) -> Order:
    """A valid order; the key is the order's id unless given.

    The key is also written into the value, where the sink finds it (unknown fields pass).
    """
    text = str(order_id) if key is None else key
    headers: Headers = (("event-id", event_id.encode()),) if event_id is not None else ()
    return Order(text.encode(), order_value(order_id, key=text, **fields), headers, partition)


def orders(count: int, *, keys: int | None = None, first: int = 1) -> list[Order]:
    """Valid orders with ids from ``first``; over ``keys`` keys in turn, or a key each."""
    return [order(first + n, key=None if keys is None else f"key-{n % keys}") for n in range(count)]


@dataclass(frozen=True, slots=True)
class Published:
    """A record that Kafka has acknowledged, and where.

    Attributes:
        event_id: The ``Idempotency-Key`` that every attempt for it must carry.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    topic: str
    partition: int
    offset: int
    event_id: str


def event_ids(published: Iterable[Published]) -> list[str]:
    """The event ids, in order of publishing."""
    return [record.event_id for record in published]
