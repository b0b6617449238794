"""Delivers records over HTTP: one POST is one attempt, and its result is a value."""

from __future__ import annotations

import errno
import hmac
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from yarl import URL

from order_relay.delivery.answer import JSON, Answer, Verdict, judge, parse_retry_after
from order_relay.delivery.dead_letters import full_name
from order_relay.handlers.http_client.addresses import ProxyRefusal, host_of, parse_proxy
from order_relay.handlers.http_client.client import ConnectionNotMade, HttpClient
from order_relay.handlers.http_client.connection import NotHttp, Response
from order_relay.model.trace_context import TraceContext

MAX_KEPT_BODY_LENGTH = 1024
# Errors that are this host's fault: no file descriptor, memory or port left; no name server.
LOCAL_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
LOCAL_DNS_ERRNOS = {socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM}

DEFAULTS = (("User-Agent", "order-relay"), ("Accept", "*/*"))
SUCCESS = {status: Answer(Verdict.SUCCESS, status) for status in (200, 201, 202, 204)}


class HttpHandler:
    """Posts records to a URL, over connections that are kept open."""

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
        """Prepare; ``start`` creates the client.

        Args:
            url: Where to POST.
            timeout_seconds: Maximum time of an attempt.
            connect_timeout_seconds: Maximum time for a new connection.
            max_connections: Maximum concurrent requests.
            content_type: Content type of every body; overrides that of ``post``.
            token: Sent as ``Authorization: Bearer``.
            headers: Names and values of further headers, checked by ``parse_headers``.
            signing_keys: Keys that sign every POST by Standard Webhooks. During a rotation there
                are two: receivers may know either.
            ca_file: PEM file of the authorities to trust instead of the system's.
            certificate_file: PEM file of our own certificate, for a target that asks for one.
            key_file: PEM file of its key.
            proxy: URL of an HTTP proxy.
            keep_bodies: Whether to keep the body of a 2xx, for the results of single records.
            redact: Removes secrets from text that the target sends.
        """
        target = URL(url)
        is_https = target.scheme == "https"
        through = parse_proxy(proxy) if proxy is not None else None
        self._new_client = partial(
            HttpClient,
            host_of(target),
            target.port or 80,
            timeout_seconds=timeout_seconds,
            connect_timeout_seconds=connect_timeout_seconds,
            max_connections=max_connections,
            proxy=through,
            keep_bodies=keep_bodies,
        )
        self._tls_files = (ca_file, certificate_file, key_file) if is_https else None
        given = {name.lower() for name, _ in headers}
        lines = [("Host", target.host_port_subcomponent), *headers]
        lines += [(name, text) for name, text in DEFAULTS if name.lower() not in given]
        if token is not None:
            lines.append(("Authorization", f"Bearer {token}"))
        is_forwarded = through is not None and not is_https
        self._head = (
            f"POST {target.origin() if is_forwarded else ''}{target.raw_path_qs} HTTP/1.1\r\n"
            + "".join(f"{name}: {text}\r\n" for name, text in lines)
            + (through.headers if through is not None and is_forwarded else "")
        )
        self._timeout_seconds = timeout_seconds
        self._content_type = content_type
        self._signing_keys = signing_keys
        self._keep_bodies = keep_bodies
        self._redact = redact
        self._client: HttpClient | None = None

    def redact(self, text: str) -> str:
        """See ``PostHandler.redact``."""
        return self._redact(text)

    async def start(self) -> None:
        """Create the client; it does not connect yet.

        Raises:
            OSError: A file for TLS cannot be used.
        """
        tls = None
        if self._tls_files is not None:
            ca_file, certificate_file, key_file = self._tls_files
            tls = ssl.create_default_context(cafile=ca_file)
            if certificate_file is not None:
                tls.load_cert_chain(certificate_file, key_file)
        self._client = self._new_client(tls=tls)

    async def connect(self) -> None:
        """Connect once and post nothing; to be called between ``start`` and ``stop``.

        Raises:
            ConnectionNotMade: No connection; the text says why.
        """
        if self._client is not None:
            await self._client.connect()

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
        # Neither a TraceContext nor the key contains a line break.
        more = "".join(f"{name}: {value}\r\n" for name, value in trace.headers()) if trace else ""
        if self._signing_keys:
            more += _signature_headers(self._signing_keys, idempotency_key, body)
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
            return Answer(verdict, response.status, body=text.encode(), is_cut=response.is_cut)
        # Redacted before it is cut: a cut could leave half of a secret.
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
        if is_local_failure(cause):
            verdict, failure = Verdict.LOCAL, "local"
        elif isinstance(cause, ssl.SSLError):
            failure = "tls"
            if _is_certificate_error(cause):
                verdict = Verdict.OUTAGE
        elif isinstance(error, ConnectionNotMade):
            failure = "connect"
            if isinstance(cause, ProxyRefusal) and judge(cause.status) is Verdict.OUTAGE:
                verdict = Verdict.OUTAGE
        elif isinstance(error, TimeoutError):
            failure = "timeout"
        limit = f"no answer within {self._timeout_seconds:g} s"
        text = str(error) or (limit if failure == "timeout" else type(error).__name__)
        return Answer(
            verdict,
            # It may quote the target. Redacted before it is cut, too.
            detail=self._redact(text)[:MAX_KEPT_BODY_LENGTH],
            error_type=full_name(cause),
            failure=failure,
        )


def _is_certificate_error(error: ssl.SSLError) -> bool:
    """Whether we do not trust the target's certificate, or it does not accept ours."""
    reason = error.reason or ""
    return (
        isinstance(error, ssl.SSLCertVerificationError)
        or "CERTIFICATE" in reason
        or "UNKNOWN_CA" in reason
    )


def is_local_failure(error: BaseException | None) -> bool:
    """Whether the error is this host's fault, not the target's."""
    seen: set[int] = set()  # ``raise error from error`` makes a circle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError):
            local = LOCAL_DNS_ERRNOS if isinstance(error, socket.gaierror) else LOCAL_ERRNOS
            if error.errno in local:
                return True
        error = error.__cause__ or error.__context__
    return False


def _signature_headers(keys: Sequence[bytes], message_id: str, body: bytes) -> str:
    """Return the header lines that sign a body, by Standard Webhooks.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    timestamp = int(time.time())
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = " ".join(
        f"v1,{b64encode(hmac.digest(key, signed, 'sha256')).decode()}" for key in keys
    )
    return (
        f"webhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
        f"webhook-signature: {signatures}\r\n"
    )
