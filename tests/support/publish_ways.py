"""Events, a web server, and reading a topic back, for tests of publishing."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from order_relay.monitoring.metrics import Metrics
from order_relay.publishing.publisher import Publisher
from order_relay.settings import Settings
from order_relay.web.access import Access
from order_relay.web.connections import ConnectionLimits
from order_relay.web.consumer import ServedConsumer
from order_relay.web.order_paid_page import Limits
from order_relay.web.server import WebServer
from tests.support.publish_fakes import Sent
from tests.support.stage import Stage
from tests.support.standing_health import consumer_pages, standing_health

LOOPBACK = "127.0.0.1"
TOPIC = "order-paid-events"


def paid(order_id: int = 123, **changes: Any) -> dict[str, Any]:
    """An ORDER_PAID event."""
    return {
        "eventType": "ORDER_PAID", "orderId": order_id, "userId": 456,
        "paidAt": "2025-12-19T10:30:00", "orderItems": [{"productId": 1, "orderQuantity": 2}],
    } | changes  # fmt: skip


def body(order_id: int = 123, **changes: Any) -> bytes:
    """An ORDER_PAID event as bytes."""
    return msgspec.json.encode(paid(order_id, **changes))


@asynccontextmanager
async def serving(
    publisher: Publisher | None,
    *,
    token: str | None = None,
    pages: ServedConsumer | None = None,
    limits: Limits | None = None,
    connections: ConnectionLimits | None = None,
    on_closed: Callable[[str], None] = lambda _: None,
    on_rejected: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[str]:
    """A worker's web server; gives its address."""
    server = WebServer(
        LOOPBACK,
        0,
        Metrics().registry,
        {"order_logging": pages or consumer_pages(standing_health())},
        publisher=publisher,
        access=Access(token),
        limits=limits,
        connections=connections,
        on_closed=on_closed,
        on_rejected=on_rejected,
    )
    await server.start()
    try:
        yield f"http://{LOOPBACK}:{server.port}"
    finally:
        await server.stop()


def publish_settings(servers: str, database: Path | str, **changes: Any) -> Settings:
    """Settings of a test: this cluster, this database, short waits."""
    url = f"sqlite+aiosqlite:///{database}" if isinstance(database, Path) else database
    values: dict[str, Any] = {
        "kafka_bootstrap_servers": servers, "database_url": url,
        "producer_delivery_timeout_ms": 10_000, "producer_request_timeout_ms": 5_000,
    }  # fmt: skip
    return Settings(_env_file=None, **(values | changes))  # type: ignore[call-arg]


def read_topic(servers: str, topic: str) -> list[Sent]:
    """Everything that a topic holds now, partition by partition in order. Blocks."""
    rows = Stage(servers, topic, "no letters", "no group").read_blocking(topic)
    return [Sent(topic, row.key, row.value, row.headers, row.partition) for row in rows]
