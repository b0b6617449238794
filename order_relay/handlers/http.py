"""Delivers records over HTTP: one POST is one attempt, and its result is a value."""

from __future__ import annotations

import errno
import hmac
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime

from yarl import URL

from order_relay.delivery.answer import JSON, Answer, Verdict, judge, parse_retry_after
from order_relay.delivery.dead_letters import full_name
from order_relay.handlers.http_client.addresses import ProxyRefusal, host_of, parse_proxy
from order_relay.handlers.http_client.certificates import CertificateFiles
from order_relay.handlers.http_client.client import ConnectionNotMade, HttpClient
from order_relay.handlers.http_client.connection import NotHttp, Response
from order_relay.model.trace_context import TraceContext
from order_relay.settings import Settings
from order_relay.settings.secret_files import redact

MAX_KEPT_BODY_LENGTH = 1024
# Errors that are this host's fault: no file descriptor, memory or port left; no name server.
LOCAL_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
LOCAL_DNS_ERRNOS = {socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM}
# nginx checks client certificates after the handshake (``ssl_verify_client``). Its own statuses 495
# and 496 reach us as 400 with one of these pages, unless ``error_page`` says otherwise.
CERTIFICATE_STATUSES = frozenset({495, 496})
CERTIFICATE_PAGES = (
    b"<html>\r\n<head><title>400 The SSL certificate error</title>",
    b"<html>\r\n<head><title>400 No required SSL certificate was sent</title>",
)
# What nginx and Go's net/http answer if the URL says http and the port speaks TLS.
PLAIN_HTTP_PAGES = (
    b"<html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title>",
    b"Client sent an HTTP request to an HTTPS server.",
)
CERTIFICATE_HINT = " (our client certificate: EXTERNAL_LOGGER_CERT_FILE, or a consumer's cert_file)"

DEFAULTS = (("User-Agent", "order-relay"), ("Accept", "*/*"))
SUCCESS = {status: Answer(Verdict.SUCCESS, status) for status in (200, 201, 202, 204)}


class HttpHandler:
    """Posts records to a consumer's URL, over connections that are kept open."""

    def __init__(self, settings: Settings, max_connections: int) -> None:
        """Prepare; ``start`` creates the client.

        Args:
            settings: The consumer's settings.
            max_connections: Maximum concurrent requests.
        """
        self._settings = settings
        self._max_connections = max_connections
        self._secrets = settings.secrets
        target = self._target = URL(settings.external_logger_url)
        proxy, token = settings.target_proxy, settings.external_logger_token
        self._proxy = parse_proxy(proxy.get_secret_value()) if proxy is not None else None
        headers = settings.target_headers
        given = {name.lower() for name, _ in headers}
        lines = [("Host", target.host_port_subcomponent), *headers]
        # A 2xx of a batch has the results of its records.
        self._keep_bodies = settings.external_logger_batch_size > 1
        defaults = (*DEFAULTS, ("Accept-Encoding", "identity")) if self._keep_bodies else DEFAULTS
        lines += [(name, text) for name, text in defaults if name.lower() not in given]
        if token is not None:
            lines.append(("Authorization", f"Bearer {token.get_secret_value()}"))
        forwarding = self._proxy if target.scheme != "https" else None
        self._head = (
            f"POST {target.origin() if forwarding else ''}{target.raw_path_qs} HTTP/1.1\r\n"
            + "".join(f"{name}: {text}\r\n" for name, text in lines)
            + (forwarding.headers if forwarding else "")
        )
        self._content_type = settings.external_logger_content_type
        self._signing_keys = settings.signing_keys
        self._client: HttpClient | None = None

    def redact(self, text: str) -> str:
        """See ``PostHandler.redact``."""
        return redact(text, self._secrets)

    async def start(self) -> None:
        """Create the client; it does not connect yet.

        Raises:
            OSError: A file for TLS cannot be used.
        """
        settings, tls = self._settings, None
        if self._target.scheme == "https":
            tls = CertificateFiles(
                settings.external_logger_ca_file,
                settings.external_logger_cert_file,
                settings.external_logger_key_file,
            ).context
        self._client = HttpClient(
            host_of(self._target),
            self._target.port or 80,
            timeout_seconds=settings.external_logger_timeout_seconds,
            connect_timeout_seconds=settings.external_logger_connect_timeout_seconds,
            max_connections=self._max_connections,
            tls=tls,
            proxy=self._proxy,
            keep_bodies=self._keep_bodies,
        )

    async def connect(self) -> float:
        """Connect once and post nothing; to be called between ``start`` and ``stop``.

        Returns:
            The seconds that connecting took.

        Raises:
            ConnectionNotMade: No connection, or the target ends it at once; the text says why.
        """
        try:
            return await self._started.connect()
        except ConnectionNotMade as error:
            text = f"{error}{_certificate_hint(error.__cause__)}"
            raise ConnectionNotMade(text) from error.__cause__

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
        client = self._started
        # Neither a TraceContext nor the key contains a line break.
        more = "".join(f"{name}: {value}\r\n" for name, value in trace.headers()) if trace else ""
        if self._signing_keys:
            more += _signature_headers(self._signing_keys, idempotency_key, body)
        head = (
            f"{self._head}Content-Type: {self._content_type or content_type}\r\n"
            f"Idempotency-Key: {idempotency_key}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            response = await client.send(head.encode() + body)
        except (ConnectionNotMade, NotHttp, OSError, MemoryError) as error:
            return self._failure(error)
        if not self._keep_bodies and (success := SUCCESS.get(response.status)) is not None:
            return success
        return self._judge(response)

    @property
    def _started(self) -> HttpClient:
        if self._client is None:
            raise RuntimeError("the HTTP handler is not started")
        return self._client

    def _judge(self, response: Response) -> Answer:
        verdict = judge(response.status, retry_after=response.retry_after is not None)
        if verdict is Verdict.SUCCESS:
            return Answer(verdict, response.status, body=response.body, is_cut=response.is_cut)
        if _is_about_tls(response, uses_tls=self._target.scheme == "https"):
            verdict = Verdict.OUTAGE
        # Redacted before it is cut: a cut could leave half of a secret.
        text = self.redact(response.body.decode("utf-8", "replace")).strip()
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
        limit = f"no answer within {self._settings.external_logger_timeout_seconds:g} s"
        text = str(error) or (limit if failure == "timeout" else type(error).__name__)
        text += _certificate_hint(cause)
        return Answer(
            verdict,
            # It may quote the target. Redacted before it is cut, too.
            detail=self.redact(text)[:MAX_KEPT_BODY_LENGTH],
            error_type=full_name(cause),
            failure=failure,
        )


def _is_about_tls(response: Response, *, uses_tls: bool) -> bool:
    """Whether a 4xx is about our certificate, or our lack of TLS, and not about the order."""
    if uses_tls and response.status in CERTIFICATE_STATUSES:
        return True
    pages = CERTIFICATE_PAGES if uses_tls else PLAIN_HTTP_PAGES
    return response.status == 400 and response.body.startswith(pages)


def _is_certificate_error(error: ssl.SSLError) -> bool:
    """Whether we do not trust the target's certificate, or it does not accept ours."""
    reason = error.reason or ""
    return (
        isinstance(error, ssl.SSLCertVerificationError)
        or "CERTIFICATE" in reason
        or "UNKNOWN_CA" in reason
    )


def _certificate_hint(error: BaseException | None) -> str:
    """Name the setting if this is an alert: by it the target refuses our certificate."""
    if not isinstance(error, ssl.SSLError) or "_ALERT_" not in (error.reason or ""):
        return ""
    return CERTIFICATE_HINT if _is_certificate_error(error) else ""


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
