"""A client of the external logger with short limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.delivery.logger_client import HttpLogger

BODY = b'{"eventType":"ORDER_PAID","orderId":1}'


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[HttpLogger]:
    """A started client with short limits."""
    limits = {"timeout_seconds": 5.0, "connect_timeout_seconds": 2.0, "max_connections": 10}
    http = HttpLogger(url, **(limits | options))
    await http.start()
    try:
        yield http
    finally:
        await http.stop()
