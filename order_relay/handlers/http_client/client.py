"""A pool of connections to one host."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Callable

from order_relay.handlers.http_client.addresses import Addresses, Proxy, tunnel
from order_relay.handlers.http_client.connection import Connection, Response, UnusableConnection
from order_relay.logs.log_line import LogLine

# Shorter than the 5 s after which common servers (Node.js) close idle connections, so that no
# request is sent on one that is being closed.
IDLE_SECONDS = 4.0
# Maximum life of a connection. Together with the time that addresses are cached, a host that moves
# is followed within a minute. The random part avoids that all reconnect at the same time.
LIFE_SECONDS = (30.0, 45.0)
# How long connections are not reused after unsolicited bytes, which could have been taken for the
# answer to the next request.
USE_ONCE_SECONDS = 60.0
# Answers that one of several instances behind a balancer may give, while the others work. The next
# request then goes elsewhere: such a connection is closed, one in this time, or is used last.
INSTANCE_STATUSES = frozenset({401, 403, 404, 408, 429, *range(500, 600)})
REPLACE_SECONDS = 0.1
# How long ``connect`` waits for a refusal: with TLS 1.3 a server judges our certificate only after
# our side of the handshake is complete.
REFUSAL_SECONDS = 0.5
# Interval at which the deadlines of all connects and requests are checked.
SWEEP_SECONDS = 0.25
# Maximum intervals that deadlines count from one check to the next. If more time passed, the
# process or its event loop stood still, which is not the target's fault.
COUNTED_INTERVALS = 2
# Longer than any connect may take. asyncio's default limit for the TLS handshake, 60 s, would count
# a standstill.
HANDSHAKE_SECONDS = 86_400.0

logger = logging.getLogger(__name__)


class ConnectionNotMade(Exception):
    """No connection to the host; ``__cause__`` has the error."""


class HttpClient:
    """Sends requests to one host, over connections that are kept open.

    If a reused connection ends before the first byte of the answer, the server had closed it after
    its last answer. Then the request is sent once more, on a new connection. So requests must be
    idempotent.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        max_connections: int,
        tls: Callable[[], ssl.SSLContext] | None = None,
        proxy: Proxy | None = None,
        keep_bodies: bool = False,
    ) -> None:
        """Create a client without connections.

        Args:
            host: Name or address.
            port: TCP port.
            timeout_seconds: Maximum time from the start of a request to the end of its answer.
            connect_timeout_seconds: Maximum time for a new connection, including DNS, TLS and the
                proxy's answer.
            max_connections: Maximum concurrent requests; others wait.
            tls: Returns the TLS context for a new connection; ``None``: no TLS.
            proxy: The proxy for all connections.
            keep_bodies: Whether to keep the body of a 2xx.
        """
        self._host = host
        self._port = port
        through = f" through proxy {proxy.host}:{proxy.port}" if proxy else ""
        self._place = f"{host}:{port}{through}"
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._tls = tls
        self._proxy = proxy
        self._keep_bodies = keep_bodies
        self._addresses = Addresses(*((proxy.host, proxy.port) if proxy else (host, port)))
        self._loop = asyncio.get_running_loop()
        self._max_connections = max_connections
        self._requests = 0
        self._freed = asyncio.Event()
        self._connections: set[Connection] = set()
        self._free: list[Connection] = []
        self._replace_at = float("-inf")
        self._use_once_until = float("-inf")
        # Connects under way, with their deadlines.
        self._connecting: dict[asyncio.Timeout, float] = {}
        self._sweep_seconds = min(timeout_seconds / 20, connect_timeout_seconds / 20, SWEEP_SECONDS)
        self._sweeping = False
        self._swept_at = 0.0
        # The clock of deadlines, in seconds. Sweeps advance it, so that it stops in a standstill.
        self._clock = 0.0

    async def send(self, request: bytes) -> Response:
        """Send a request and return its answer.

        Raises:
            ConnectionNotMade: No connection to the host.
            NotHttp: The received bytes are not an HTTP answer.
            TimeoutError: No answer in time.
            OSError: The connection broke.
        """
        while self._requests >= self._max_connections:
            self._freed.clear()
            await self._freed.wait()
        self._requests += 1
        connection = None
        try:
            deadline = self._clock + self._timeout_seconds
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
                connection.abandon()
            raise
        finally:
            self._requests -= 1
            self._freed.set()

    async def connect(self) -> float:
        """Make a connection and close it, without a request.

        Returns:
            The seconds that connecting took.

        Raises:
            ConnectionNotMade: No connection to the host, or one that it ended at once.
        """
        began = self._loop.time()
        connection = await self._connect(self._clock + self._timeout_seconds)
        took = self._loop.time() - began
        if self._tls is None:
            connection.close()
            return took
        refusal = connection.send(b"", float("inf"))  # sends nothing, and notices the end
        try:
            await asyncio.wait({refusal}, timeout=REFUSAL_SECONDS)
        finally:
            connection.close()
        if refusal.done() and (error := refusal.exception()) is not None:
            closed = isinstance(error, ConnectionError)
            text = "closed after the TLS handshake" if closed else str(error)
            raise ConnectionNotMade(f"no connection to {self._place}: {text}") from error
        return took

    def close(self) -> None:
        """Close all connections; the caller cancels requests under way."""
        for connection in list(self._connections):
            connection.close()
        self._connections.clear()
        self._free.clear()

    # --- what connections call ------------------------------------------------------------------

    def free(self, connection: Connection, status: int) -> None:
        """Take back a connection whose answer, of this status, was read to its end."""
        now = self._loop.time()
        failed = status in INSTANCE_STATUSES
        if failed and now >= self._replace_at:
            self._replace_at = now + REPLACE_SECONDS
            connection.close()
            return
        if now < self._use_once_until:
            connection.close()
            return
        connection.free_since = now
        if failed:
            self._free.insert(0, connection)
        else:
            self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def unsolicited(self, data: bytes) -> None:
        """Handle bytes that came without a request: they are not an answer (RFC 9112, 9.2)."""
        if data[:12] in (b"HTTP/1.1 408", b"HTTP/1.0 408"):
            return  # the server closes an idle connection
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
        """Return a usable free connection, the one that worked last first."""
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
        limit = asyncio.timeout(None)
        self._connecting[limit] = min(deadline, self._clock + self._connect_timeout_seconds)
        self._start_sweeping()
        try:
            async with limit:
                connection = await self._open()
        except TimeoutError as error:
            seconds = min(self._connect_timeout_seconds, self._timeout_seconds)
            text = f"no connection to {self._place} within {seconds:g} s"
            if self._addresses.are_known:
                raise ConnectionNotMade(text) from error
            # The resolver gives up later than we do.
            cause = socket.gaierror(socket.EAI_AGAIN, "no answer from a name server")
            raise ConnectionNotMade(f"{text}: {cause}") from cause
        except OSError as error:
            text = str(error) or "closed during the TLS handshake"
            raise ConnectionNotMade(f"no connection to {self._place}: {text}") from error
        finally:
            self._connecting.pop(limit, None)
        if connection.is_open:  # otherwise it was lost already
            self._connections.add(connection)
            self._start_sweeping()
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
                ssl=self._tls() if self._tls else None,
                # Certificates have no dot at the end of a name (RFC 6066, 3).
                server_hostname=self._host.rstrip(".") if self._tls else None,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    # --- time limits ----------------------------------------------------------------------------

    def _start_sweeping(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._swept_at = self._loop.time()
            self._loop.call_later(self._sweep_seconds, self._sweep)

    def _sweep(self) -> None:
        """Time out late connects and requests, and close idle connections."""
        now = self._loop.time()
        # By the time of the last sweep: answers that arrived in a standstill are read first.
        for limit, deadline in list(self._connecting.items()):
            if self._clock >= deadline:
                del self._connecting[limit]
                limit.reschedule(now)
        for connection in list(self._connections):
            if connection.is_busy:
                if self._clock >= connection.deadline:
                    connection.expire()
            elif now >= connection.free_since + IDLE_SECONDS:
                connection.close()
        self._clock += min(now - self._swept_at, COUNTED_INTERVALS * self._sweep_seconds)
        self._swept_at = now
        self._sweeping = bool(self._connections or self._connecting)
        if self._sweeping:
            self._loop.call_later(self._sweep_seconds, self._sweep)
