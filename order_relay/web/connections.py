"""Limits of the web server's connections: their number, and the time without a request.

aiohttp itself accepts any number of connections, and waits an hour for a request on each.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.typedefs import Handler

from order_relay.logs.log_line import LogLine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        connections: Open at a time.
        head_seconds: From opening a connection, or from the first byte of a further request, to
            the end of that request's head.
        idle_seconds: From one request to the next. Longer than load balancers keep an unused
            connection (Google's: 600 s), so that they never use one that is being closed.
    """

    connections: int = 2500
    head_seconds: float = 10.0
    idle_seconds: float = 620.0


class Connections:
    """All open connections. Each waits either for its client or for this server.

    Beyond the limit the connection that has waited longest for its client is closed; that is the
    new one if all others wait for the server. Single bytes do not restart a wait.
    """

    def __init__(
        self, limits: ConnectionLimits, *, on_closed: Callable[[str], None] = lambda _: None
    ) -> None:
        """Call ``on_closed`` for each closed connection, with one of ``CLOSED_REASONS``."""
        self.limits = limits
        self._on_closed = on_closed
        self._open: set[Connection] = set()
        # In the order in which they began to wait. A connection that waits for the server is
        # removed when it is found here, and added again when it waits for its client.
        self._waiting: OrderedDict[Connection, None] = OrderedDict()
        self._crowded = False

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note for each connection when its request has come, and when it is handled."""
        connection = cast(Connection, request.protocol)
        connection.request_began(request.content)
        try:
            return await handler(request)
        finally:
            connection.request_ended()

    def opened(self, connection: Connection) -> None:
        """Add a connection."""
        self._open.add(connection)
        self.waits_anew(connection)
        if len(self._open) > self.limits.connections:
            self._make_room()

    def waits_anew(self, connection: Connection) -> None:
        """Note that a connection begins to wait, for its client or for the server."""
        if connection in self._open:
            self._waiting[connection] = None
            self._waiting.move_to_end(connection)

    def lost(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)
        if len(self._open) <= self.limits.connections // 2:
            self._crowded = False

    def _make_room(self) -> None:
        if not self._crowded:  # once for a burst
            self._crowded = True
            logger.warning(
                LogLine(
                    "Too many connections to the web server, the longest silent ones are closed",
                    connections=self.limits.connections,
                )
            )
        while True:  # ends at the newest at the latest: it waits for its client
            oldest = next(iter(self._waiting))
            if oldest.waits_for_client:
                self.close(oldest, "crowded")
                return
            del self._waiting[oldest]

    def close(self, connection: Connection, reason: str) -> None:
        """Close a connection at once, for one of ``CLOSED_REASONS``."""
        self.lost(connection)
        self._on_closed(reason)
        if connection.transport is not None:
            connection.transport.abort()  # also if an answer is not read


class Connection(web.RequestHandler):
    """One connection."""

    __slots__ = ("_body", "_connections", "_idle", "_limit")

    def __init__(self, connections: Connections, server: web.Server, **options: Any) -> None:
        """Make a connection of ``server``; the options are aiohttp's."""
        super().__init__(server, **options)
        self._connections = connections
        self._body: StreamReader | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._idle = False

    @property
    def waits_for_client(self) -> bool:
        """Whether the client must send, or read an answer, before the server can go on."""
        return self._body is None or not self._body.is_eof()

    def _wait(self, seconds: float) -> None:
        """Limit the wait for the client from now on; 0: a body has a limit of its own."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if seconds and self.transport is not None:  # else the client left before its answer
            close = self._connections.close
            self._limit = self._loop.call_later(seconds, close, self, "silent")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._wait(self._connections.limits.head_seconds)
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self._idle:
            self._idle = False
            self._wait(self._connections.limits.head_seconds)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See ``asyncio.Protocol``."""
        self._wait(0)
        self._connections.lost(self)
        super().connection_lost(exc)

    def request_began(self, body: StreamReader) -> None:
        """Note that the head of a request has come; ``body`` may follow."""
        self._idle = False
        self._wait(0)
        self._body = body
        self._connections.waits_anew(self)

    def request_ended(self) -> None:
        """Note that the request is handled; its answer goes out now."""
        self._idle = True
        self._wait(self._connections.limits.idle_seconds)
        self._body = None
        self._connections.waits_anew(self)
