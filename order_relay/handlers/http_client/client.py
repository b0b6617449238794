"""Connections to one host, kept and used again."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque

from order_relay.handlers.http_client.addresses import Addresses
from order_relay.handlers.http_client.connection import Connection, Response, UnusableConnection
from order_relay.handlers.http_client.proxy import Proxy, tunnel
from order_relay.logs.log_line import LogLine

# Shorter than the 5 s after which common servers (Node.js) drop idle connections, so that an
# attempt does not begin on one that is being closed.
IDLE_SECONDS = 4.0
# Longest life: a name that moves is followed within a minute, with what its addresses are known
# for. Each ends at a moment of its own, so that not all are made anew at once.
LIFE_SECONDS = (30.0, 45.0)
# After an answer that nobody asked for, which could have been taken for that to the next request.
USE_ONCE_SECONDS = 60.0
# Deadlines of requests are looked at this often, all at once.
SWEEP_SECONDS = 0.25

logger = logging.getLogger(__name__)


class ConnectionNotMade(Exception):
    """No connection to the host; ``__cause__`` says why."""


class HttpClient:
    """Sends whole requests to one host, over connections that are kept.

    A request that went over a connection which had been used, and which ended before a byte of the
    answer came, is sent once more, over a new connection: the server had closed it after its last
    answer. So requests must bear repetition.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        max_connections: int,
        tls: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        keep_bodies: bool = False,
    ) -> None:
        """Prepare; nothing is connected.

        Args:
            host: Name or address.
            port: TCP port.
            timeout_seconds: From the request's beginning to the end of its answer.
            connect_timeout_seconds: Longest wait for a new connection, its name's addresses, TLS
                and the proxy's answer included.
            max_connections: Requests at a time; others wait.
            tls: Speak TLS by it; ``None``: without.
            proxy: Where connections go through.
            keep_bodies: Whether answers 2xx have their body.
        """
        self._host = host
        self._port = port
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._tls = tls
        self._proxy = proxy
        self._keep_bodies = keep_bodies
        self._addresses = Addresses(*((proxy.host, proxy.port) if proxy else (host, port)))
        self._loop = asyncio.get_running_loop()
        self._max_connections = max_connections
        self._requests = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._connections: set[Connection] = set()
        self._free: list[Connection] = []
        self._use_once_until = float("-inf")
        self._sweep_seconds = min(timeout_seconds / 20, SWEEP_SECONDS)
        self._sweeping = False

    async def send(self, request: bytes) -> Response:
        """Send a request, and return its answer.

        Raises:
            ConnectionNotMade: No connection.
            NotHttp: The bytes that came are not an HTTP answer.
            TimeoutError: No answer in time.
            OSError: The connection broke.
        """
        while self._requests >= self._max_connections:
            await self._wait_for_place()
        self._requests += 1
        connection = None
        try:
            deadline = self._loop.time() + self._timeout_seconds
            connection = self._take()
            if connection is not None:
                try:
                    return await connection.send(request, deadline)
                except UnusableConnection:
                    pass
            connection = await self._connect(deadline)
            return await connection.send(request, deadline)
        except asyncio.CancelledError:
            if connection is not None:
                connection.close()
            raise
        finally:
            self._requests -= 1
            self._wake_one()

    async def _wait_for_place(self) -> None:
        place: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # woken, and cancelled before it went on
                self._wake_one()
            raise

    def _wake_one(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return

    def close(self) -> None:
        """Close all connections; requests under way are the caller's to cancel."""
        for connection in list(self._connections):
            connection.close()
        self._connections.clear()
        self._free.clear()

    # --- what connections call ------------------------------------------------------------------

    def free(self, connection: Connection) -> None:
        """See ``Pool``."""
        now = self._loop.time()
        if now < self._use_once_until:
            connection.close()
            return
        connection.free_since = now
        self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        """See ``Pool``."""
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def unasked(self, data: bytes) -> None:
        """See ``Pool``."""
        if data[:12] in (b"HTTP/1.1 408", b"HTTP/1.0 408"):
            return  # a server that has waited for a request long enough says so
        now = self._loop.time()
        if now >= self._use_once_until:
            logger.warning(
                LogLine(
                    "Bytes from the target that are no answer to any request",
                    host=self._host,
                    used_once_for_seconds=round(USE_ONCE_SECONDS),
                )
            )
        self._use_once_until = now + USE_ONCE_SECONDS

    # --- connections ----------------------------------------------------------------------------

    def _take(self) -> Connection | None:
        """Return a free connection that can be used: the one that was used last."""
        free = self._free
        while free:
            connection = free.pop()
            now = self._loop.time()
            if (
                now < connection.free_since + IDLE_SECONDS
                and now < connection.ends_at
                and now >= self._use_once_until
                and connection.is_quiet
            ):
                return connection
            connection.close()
        return None

    async def _connect(self, deadline: float) -> Connection:
        try:
            async with asyncio.timeout_at(
                min(deadline, self._loop.time() + self._connect_timeout_seconds)
            ):
                connection = await self._open()
        except TimeoutError as error:
            limit = min(self._connect_timeout_seconds, self._timeout_seconds)
            raise ConnectionNotMade(f"no connection within {limit:g} s") from error
        except OSError as error:
            raise ConnectionNotMade(
                f"no connection to {self._host}:{self._port}: {error}"
            ) from error
        if connection.is_open:  # else it was lost before we knew of it
            self._connections.add(connection)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(self._sweep_seconds, self._sweep)
        return connection

    async def _open(self) -> Connection:
        ends_at = self._loop.time() + random.uniform(*LIFE_SECONDS)  # noqa: S311
        connection = Connection(self, self._loop, ends_at, keep_bodies=self._keep_bodies)
        sock = await self._addresses.connect()
        try:
            if self._proxy is not None and self._tls is not None:
                await tunnel(self._loop, sock, self._host, self._port, self._proxy)
            await self._loop.create_connection(
                lambda: connection,
                sock=sock,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    def _sweep(self) -> None:
        """End requests that are late, and connections that are idle."""
        now = self._loop.time()
        for connection in list(self._connections):
            if connection.is_busy:
                if now >= connection.deadline:
                    connection.expire()
            elif now >= connection.free_since + IDLE_SECONDS:
                connection.close()
        self._sweeping = bool(self._connections)
        if self._sweeping:
            self._loop.call_later(self._sweep_seconds, self._sweep)
