"""A notification for every paid order, sent by an HTTP service: an async function as handler."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from aiohttp import ClientSession, ClientTimeout

from order_relay import Consumer, Delivery, OrderPaid, Reject, RetryLater, Unavailable

if TYPE_CHECKING:
    from order_relay.worker.relay_app import RelayApp

notifications = Consumer(
    "notifications", topic="order-paid-events", group="notifications-group", max_in_flight=32
)


class NotificationService:
    """The service, with one session for all calls."""

    session: ClientSession

    async def hold_session(self) -> None:
        """Keep the session open as long as the worker delivers."""
        self.url = os.environ.get(
            "NOTIFICATIONS_SERVICE_URL", "http://localhost:3001/notifications"
        )
        async with ClientSession(timeout=ClientTimeout(total=5)) as self.session:
            await asyncio.Event().wait()


service = NotificationService()


def register(app: RelayApp) -> None:
    """Open the session with the worker: before the first record, closed after the last."""
    app.background.append(service.hold_session)


@notifications.handler
async def notify(order: OrderPaid, delivery: Delivery) -> None:
    """Ask the service to tell the user; it knows a repeated request by its key."""
    body = {"userId": order.userId, "text": f"Order {order.orderId} is paid"}
    headers = {"Idempotency-Key": delivery.idempotency_key}
    async with service.session.post(
        service.url, json=body, headers=headers, allow_redirects=False
    ) as response:
        status, retry_after = response.status, response.headers.get("Retry-After", "")
    if status == 429:
        raise RetryLater(seconds=int(retry_after) if retry_after.isdecimal() else 5)
    if status in (401, 403):
        raise Unavailable(f"HTTP {status}: our credentials")
    if 400 <= status < 500 and status not in (404, 405, 408, 410, 425):
        raise Reject(f"HTTP {status}")
    if not 200 <= status < 300:  # a failed attempt, like any exception; 404: a wrong address
        raise RuntimeError(f"HTTP {status}")
