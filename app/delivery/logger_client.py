"""The external logger over HTTP: one POST is one attempt, and its outcome is a value."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp.http import HttpProcessingError, RawResponseMessage
from yarl import URL

from app.delivery.answer import Answer
from app.delivery.retry import Verdict, judge, parse_retry_after
from app.trace_context import TraceContext

# An answer's body is read so that the connection can be used again. More than this is not worth
# it: the connection is closed instead.
MAX_BODY_BYTES = 64 * 1024
MAX_KEPT_BODY_LENGTH = 1024
# Shorter than the 5 s after which common servers (Node.js) drop idle connections, so that an
# attempt does not begin on one that is being closed.
KEEPALIVE_SECONDS = 4.0


# No file descriptor, no memory, no port left; no name server that answers.
LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
LACKS_NAME_SERVER = {socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM}

SUCCESS = {status: Answer(Verdict.SUCCESS, status) for status in (200, 201, 202, 204)}


class HttpLogger:
    """The external logger at a URL, over one keep-alive session."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        max_connections: int,
        token: str | None = None,
        ca_file: Path | None = None,
        redact: Callable[[str], str] = lambda text: text,
    ) -> None:
        """Prepare the client; ``start`` opens the session.

        Args:
            url: Where to POST.
            timeout_seconds: Longest attempt as a whole.
            connect_timeout_seconds: Longest wait for a new connection.
            max_connections: Connections at a time.
            token: Sent as ``Authorization: Bearer``.
            ca_file: PEM file of the authorities to trust instead of the system's.
            redact: Takes secrets out of text that the logger sends back.
        """
        self._url = URL(url)
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._connect_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_seconds
        )
        self._max_connections = max_connections
        self._token = token
        self._ca_file = ca_file
        self._redact = redact
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the session; no connection is made yet."""
        tls: ssl.SSLContext | bool = True
        if self._ca_file is not None:
            tls = ssl.create_default_context(cafile=str(self._ca_file))
        headers = {"Content-Type": "application/json", "User-Agent": "order-relay"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        self._connector = aiohttp.TCPConnector(
            limit=self._max_connections, ssl=tls, keepalive_timeout=KEEPALIVE_SECONDS
        )
        self._session = aiohttp.ClientSession(connector=self._connector)
        # Never sent: it names the host to the connector, and holds the headers of every attempt.
        self._template = aiohttp.ClientRequest(
            "POST",
            self._url,
            headers=headers,
            # Bodies of error answers are kept as they come.
            skip_auto_headers=("Accept-Encoding",),
            loop=asyncio.get_running_loop(),
            session=self._session,
        )
        lines = [f"POST {self._url.raw_path_qs} HTTP/1.1"]
        lines += [
            f"{name}: {value}"
            for name, value in self._template.headers.items()
            if name != "Content-Length"
        ]
        self._head = "\r\n".join(lines)

    async def stop(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(
        self, body: bytes, idempotency_key: str, trace: TraceContext | None = None
    ) -> Answer:
        """See ``ExternalLogger.post``."""
        if self._session is None:
            raise RuntimeError("the logger client is not started")
        head = None
        answer_body = b""
        request = self._request(body, idempotency_key, trace)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                connection = await self._connect()
                try:
                    head, content = await self._exchange(connection, request)
                    answer_body = await _read_bounded(content)
                except BaseException:
                    connection.close()
                    raise
                # Closed rather than kept where the answer was not read to its end.
                connection.release()
        except (
            TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError, MemoryError
        ) as error:  # fmt: skip
            # Once there is a status it decides: a body that breaks off does not undo it.
            if head is None:
                limit = f"no answer within {self._timeout_seconds:g} s"
                text = str(error) or (limit if isinstance(error, TimeoutError) else "")
                # It may hold what came instead of an answer.
                return _failure(error, self._redact(text or type(error).__name__))
        return self._judge(head, answer_body)

    async def _connect(self) -> aiohttp.connector.Connection:
        try:
            return await self._connector.connect(self._template, [], self._connect_timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(
                f"no connection within {self._connect_timeout_seconds:g} s"
            ) from error

    def _request(self, body: bytes, idempotency_key: str, trace: TraceContext | None) -> bytes:
        # A TraceContext holds nothing that could end a header's line, nor does the key.
        more = "".join(f"{name}: {value}\r\n" for name, value in trace.headers()) if trace else ""
        return (
            f"{self._head}\r\nIdempotency-Key: {idempotency_key}\r\n{more}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    async def _exchange(
        self, connection: aiohttp.connector.Connection, request: bytes
    ) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        """Send one request; returns the head of its answer, and the body to be read.

        aiohttp's connections and parser without its request and response objects, which take
        more time than everything else the relay does for a record (docs/performance.md).
        """
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:
            raise aiohttp.ClientConnectionError("the connection was closed")
        protocol.set_response_params(read_until_eof=True, auto_decompress=False)
        transport.write(request)
        while True:
            head, content = await protocol.read()
            if not 100 <= head.code < 200 or head.code == 101:
                return head, content

    def _judge(self, head: RawResponseMessage, body: bytes) -> Answer:
        retry_after = head.headers.get("Retry-After")
        verdict = judge(head.code, retry_after=retry_after is not None)
        if verdict is Verdict.SUCCESS:
            return SUCCESS.get(head.code) or Answer(verdict, head.code)
        # Redacted first: a cut through a secret would leave half of it.
        text = self._redact(body.decode("utf-8", "replace")).strip()
        return Answer(
            verdict,
            head.code,
            text[:MAX_KEPT_BODY_LENGTH],
            parse_retry_after(retry_after, datetime.now(UTC)),
        )


async def _read_bounded(content: aiohttp.StreamReader) -> bytes:
    """Read a body to its end, or as far as is worth it."""
    body = b""
    while not content.at_eof() and len(body) <= MAX_BODY_BYTES:
        body += await content.readany()
    return body


def _failure(error: BaseException, detail: str) -> Answer:
    kind = type(error)
    verdict, failure = Verdict.RETRYABLE, "reset"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        verdict, failure = Verdict.OUTAGE, "tls"  # a certificate that does not match
    elif _is_lack_of_ours(error):
        verdict, failure = Verdict.LOCAL, "local"
    elif isinstance(error, aiohttp.ClientSSLError):
        failure = "tls"
    elif isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        failure = "connect"
    elif isinstance(error, TimeoutError):
        failure = "timeout"
    return Answer(
        verdict,
        detail=detail,
        error_type=f"{kind.__module__}.{kind.__qualname__}",
        failure=failure,
    )


def _is_lack_of_ours(error: BaseException | None) -> bool:
    """Whether this host lacks something to send with, whatever the target does."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError):
            lacks = LACKS_NAME_SERVER if isinstance(error, socket.gaierror) else LACKS
            if error.errno in lacks:
                return True
        error = error.__cause__ or error.__context__
    return False
