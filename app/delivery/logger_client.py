"""The external logger over HTTP: one POST is one attempt, and its outcome is a value."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import aiohttp
from yarl import URL

from app.delivery.retry import Verdict, judge, parse_retry_after

# An answer's body is read so that the connection can be used again. More than this is not worth
# it: the connection is closed instead.
MAX_BODY_BYTES = 64 * 1024
MAX_KEPT_BODY_LENGTH = 1024
# Shorter than the 5 s after which common servers (Node.js) drop idle connections, so that an
# attempt does not begin on one that is being closed.
KEEPALIVE_SECONDS = 4.0
# aiohttp warns above this size that writing raw bytes holds up the event loop.
MAX_RAW_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt.

    Attributes:
        verdict: What it means for the record.
        status: HTTP status; ``None`` when no answer came.
        detail: The body of an error answer (bounded), or what went wrong.
        retry_after_seconds: What Retry-After asked for, 0 to 60.
        error_type: Full name of the error's class when no answer came.
    """

    verdict: Verdict
    status: int | None = None
    detail: str = ""
    retry_after_seconds: float = 0.0
    error_type: str | None = None


SUCCESS = {status: Answer(Verdict.SUCCESS, status) for status in (200, 201, 202, 204)}


class ExternalLogger(Protocol):
    """Where records are delivered."""

    async def post(self, body: bytes, idempotency_key: str) -> Answer:
        """Make one attempt. Ends within the time-out; failures are answers, not errors.

        A cancelled attempt may have reached the logger.
        """


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
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections, ssl=tls, keepalive_timeout=KEEPALIVE_SECONDS
            ),
            timeout=aiohttp.ClientTimeout(
                total=self._timeout_seconds, sock_connect=self._connect_timeout_seconds
            ),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, body: bytes, idempotency_key: str) -> Answer:
        """See ``ExternalLogger.post``."""
        if self._session is None:
            raise RuntimeError("the logger client is not started")
        data: bytes | io.BytesIO = body if len(body) <= MAX_RAW_BYTES else io.BytesIO(body)
        try:
            async with self._session.post(
                self._url,
                data=data,
                headers={"Idempotency-Key": idempotency_key},
                # A redirect would turn the POST into a GET or carry the token elsewhere.
                allow_redirects=False,
            ) as response:
                return await self._read(response)
        except TimeoutError as error:
            limit = f"no answer within {self._timeout_seconds:g} s"
            return _failure(error, str(error) or limit)
        except (aiohttp.ClientError, OSError) as error:
            return _failure(error, str(error) or type(error).__name__)

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        verdict = judge(response.status)
        if verdict is Verdict.SUCCESS:
            # The status alone decides: a body that breaks off does not undo a 2xx.
            try:
                await _read_bounded(response)
            except (aiohttp.ClientError, TimeoutError, OSError):
                response.close()
            return SUCCESS.get(response.status) or Answer(verdict, response.status)
        try:
            body = await _read_bounded(response)
        except (aiohttp.ClientError, TimeoutError, OSError):
            response.close()
            body = b""
        # Redacted first: a cut through a secret would leave half of it.
        text = self._redact(body.decode("utf-8", "replace")).strip()
        return Answer(
            verdict,
            response.status,
            text[:MAX_KEPT_BODY_LENGTH],
            parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
        )


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """Read the body; close the connection when it is longer than is worth reading."""
    length = response.content_length
    if length is not None and length <= MAX_BODY_BYTES:
        return await response.read()
    chunks = []
    size = 0
    async for chunk in response.content.iter_chunked(8192):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            response.close()
            break
    return b"".join(chunks)


def _failure(error: BaseException, detail: str) -> Answer:
    kind = type(error)
    return Answer(
        Verdict.RETRYABLE, detail=detail, error_type=f"{kind.__module__}.{kind.__qualname__}"
    )
