"""A client of the target with short limits, or with limits that no test reaches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from order_relay.delivery.answer import Answer
from order_relay.handlers.http import HttpHandler
from order_relay.settings import load_settings
from tests.support.raw_server import RawServer, Script

BODY = b'{"eventType":"ORDER_PAID","orderId":1}'
# Far less than the limits of a patient client: a longer post waited for one of them.
POST_SECONDS = 20.0


@asynccontextmanager
async def client(
    url: str, *, max_connections: int = 10, **options: Any
) -> AsyncIterator[HttpHandler]:
    """A started client with short limits; options are settings without EXTERNAL_LOGGER."""
    given = {"url": url, "timeout_seconds": 5.0, "connect_timeout_seconds": 2.0} | options
    settings = load_settings(**{f"external_logger_{name}": value for name, value in given.items()})
    http = HttpHandler(settings, max_connections)
    await http.start()
    try:
        yield http
    finally:
        await http.stop()


def patient_client(url: str, **options: Any) -> AbstractAsyncContextManager[HttpHandler]:
    """A client whose limits never end a post."""
    limits = {"timeout_seconds": 60.0, "connect_timeout_seconds": 60.0}
    return client(url, **(limits | options))


@asynccontextmanager
async def talking(
    *scripts: Script | bytes, **options: Any
) -> AsyncIterator[tuple[RawServer, HttpHandler]]:
    """A server that sends scripted bytes, and its patient client."""
    async with RawServer(*scripts) as server, patient_client(server.url, **options) as http:
        yield server, http


async def post(http: HttpHandler, key: str = "key", body: bytes = BODY) -> Answer:
    """Post; a client that waits for one of its limits fails the test."""
    async with asyncio.timeout(POST_SECONDS):
        return await http.post(body, key)
