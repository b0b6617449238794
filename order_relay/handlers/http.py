"""The target over HTTP: one POST is one attempt, and its outcome is a value."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from yarl import URL

from order_relay.delivery.answer import JSON, Answer
from order_relay.delivery.retry import Verdict, judge, parse_retry_after
from order_relay.handlers.http_client.client import ConnectionNotMade, HttpClient
from order_relay.handlers.http_client.connection import NotHttp, Response
from order_relay.handlers.http_client.proxy import proxy_for
from order_relay.handlers.webhook_signature import Signer
from order_relay.model.trace_context import TraceContext

MAX_KEPT_BODY_LENGTH = 1024
# No file descriptor, no memory, no port left; no name server that answers.
LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
LACKS_NAME_SERVER = {socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM}

DEFAULTS = (("User-Agent", "order-relay"), ("Accept", "*/*"))
SUCCESS = {status: Answer(Verdict.SUCCESS, status) for status in (200, 201, 202, 204)}


class HttpHandler:
    """The target at a URL, over connections that are kept."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        max_connections: int,
        content_type: str | None = None,
        token: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        signing_keys: Sequence[bytes] = (),
        ca_file: Path | None = None,
        certificate_file: Path | None = None,
        key_file: Path | None = None,
        proxy: str | None = None,
        keep_bodies: bool = False,
        redact: Callable[[str], str] = lambda text: text,
    ) -> None:
        """Prepare the client; ``start`` makes it.

        Args:
            url: Where to POST.
            timeout_seconds: Longest attempt as a whole.
            connect_timeout_seconds: Longest wait for a new connection.
            max_connections: Connections at a time.
            content_type: Of every body, instead of what ``post`` is told.
            token: Sent as ``Authorization: Bearer``.
            headers: Names and values of further headers, as ``parse_headers`` has passed them.
            signing_keys: Keys that every POST is signed with, see ``Signer``.
            ca_file: PEM file of the authorities to trust instead of the system's.
            certificate_file: PEM file of our own certificate, for a target that asks for one.
            key_file: PEM file of its key.
            proxy: URL of an HTTP proxy; ``None``: by HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
            keep_bodies: Whether answers 2xx have their body: it may hold results of single records.
            redact: Takes secrets out of text that the target sends back.
        """
        self._url = URL(url)
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._max_connections = max_connections
        self._content_type = content_type
        self._token = token
        self._headers = headers
        self._signer = Signer(signing_keys, time.time) if signing_keys else None
        self._ca_file = ca_file
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._proxy = proxy
        self._keep_bodies = keep_bodies
        self._redact = redact
        self._client: HttpClient | None = None

    def redact(self, text: str) -> str:
        """See ``PostHandler.redact``."""
        return self._redact(text)

    async def start(self) -> None:
        """Make the client; no connection is made yet."""
        url = self._url
        proxy = proxy_for(url, self._proxy)
        tls = self._tls() if url.scheme == "https" else None
        self._client = HttpClient(
            url.host or "",
            url.port or 80,
            timeout_seconds=self._timeout_seconds,
            connect_timeout_seconds=self._connect_timeout_seconds,
            max_connections=self._max_connections,
            tls=tls,
            proxy=proxy,
            keep_bodies=self._keep_bodies,
        )
        given = {name.lower() for name, _ in self._headers}
        headers = [("Host", url.host_port_subcomponent), *self._headers]
        headers += [(name, text) for name, text in DEFAULTS if name.lower() not in given]
        if self._token is not None:
            headers.append(("Authorization", f"Bearer {self._token}"))
        head = f"POST {url.raw_path_qs if proxy is None or tls else url} HTTP/1.1\r\n" + "".join(
            f"{name}: {text}\r\n" for name, text in headers
        )
        self._head = head if proxy is None or tls else head + proxy.headers

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_file)
        if self._certificate_file is not None:
            context.load_cert_chain(self._certificate_file, self._key_file)
        return context

    async def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def post(
        self,
        body: bytes,
        idempotency_key: str,
        trace: TraceContext | None = None,
        *,
        content_type: str = JSON,
    ) -> Answer:
        """See ``PostHandler.post``."""
        if self._client is None:
            raise RuntimeError("the HTTP handler is not started")
        # A TraceContext holds nothing that could end a header's line, nor does the key.
        more = "".join(f"{name}: {value}\r\n" for name, value in trace.headers()) if trace else ""
        if self._signer is not None:
            more += self._signer.headers(idempotency_key, body)
        head = (
            f"{self._head}Content-Type: {self._content_type or content_type}\r\n"
            f"Idempotency-Key: {idempotency_key}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            response = await self._client.send(head.encode() + body)
        except (ConnectionNotMade, NotHttp, OSError, MemoryError) as error:
            return self._failure(error)
        if not self._keep_bodies and (success := SUCCESS.get(response.status)) is not None:
            return success
        return self._judge(response)

    def _judge(self, response: Response) -> Answer:
        verdict = judge(response.status, retry_after=response.retry_after is not None)
        text = response.body.decode("utf-8", "replace")
        if verdict is Verdict.SUCCESS:
            return Answer(verdict, response.status, body=text.encode())
        # Redacted first: a cut through a secret would leave half of it.
        text = self._redact(text).strip()
        return Answer(
            verdict,
            response.status,
            text[:MAX_KEPT_BODY_LENGTH],
            parse_retry_after(response.retry_after, datetime.now(UTC)),
        )

    def _failure(self, error: BaseException) -> Answer:
        cause = error.__cause__ or error
        verdict, failure = Verdict.RETRYABLE, "reset"
        if is_lack_of_ours(cause):
            verdict, failure = Verdict.LOCAL, "local"
        elif isinstance(cause, ssl.SSLError):
            failure = "tls"
            if _is_about_a_certificate(cause):
                verdict = Verdict.OUTAGE
        elif isinstance(error, ConnectionNotMade):
            failure = "connect"
        elif isinstance(error, TimeoutError):
            failure = "timeout"
        limit = f"no answer within {self._timeout_seconds:g} s"
        text = str(error) or (limit if failure == "timeout" else type(error).__name__)
        kind = type(cause)
        return Answer(
            verdict,
            # It may hold what came instead of an answer. Redacted before it is cut, too.
            detail=self._redact(text)[:MAX_KEPT_BODY_LENGTH],
            error_type=f"{kind.__module__}.{kind.__qualname__}",
            failure=failure,
        )


def _is_about_a_certificate(error: ssl.SSLError) -> bool:
    """Whether theirs is not what we trust, or they want another one of us: no record's fault."""
    reason = error.reason or ""
    return (
        isinstance(error, ssl.SSLCertVerificationError)
        or "CERTIFICATE" in reason
        or "UNKNOWN_CA" in reason
    )


def is_lack_of_ours(error: BaseException | None) -> bool:
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
