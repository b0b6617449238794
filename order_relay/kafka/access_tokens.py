"""Access tokens for Kafka (SASL OAUTHBEARER): OAuth's client credentials grant (RFC 6749, 4.4).

librdkafka can fetch tokens itself, aiokafka cannot. With this both clients share one token, one
authority, and one set of error messages.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import quote_plus, urlencode

from yarl import URL

from order_relay.errors import AccessTokenUnavailable
from order_relay.settings import Settings
from order_relay.settings.rules import parse_extensions
from order_relay.settings.secret_files import redact

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
MAX_ANSWER_BYTES = 256 * 1024
# RFC 6749 recommends expires_in, but does not require it.
DEFAULT_LIFETIME_SECONDS = 300.0
# Before librdkafka asks for a new token, which is after four fifths of the lifetime.
RENEW_AFTER_SHARE = 0.75
# Minimum wait after a refused token request. Clients ask for a token with every connection.
PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token, and when it expires in seconds since 1970."""

    value: str = field(repr=False)
    expires_at: float


class AccessTokens:
    """Caches the access token, and renews it before it expires.

    May be called from any thread. All threads get the same token.

    Attributes:
        extensions: The SASL extensions that are sent with the token, by name.
    """

    def __init__(
        self,
        fetch: Callable[[], tuple[str, float]],
        *,
        extensions: dict[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare. Fetches nothing yet.

        Args:
            fetch: Returns a new token and its lifetime in seconds, or raises
                ``AccessTokenUnavailable``.
            extensions: See the attribute.
            clock: Seconds since 1970.
        """
        self.extensions = extensions or {}
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._token = AccessToken("", -math.inf)
        self._ask_at = -math.inf
        self._refused: AccessTokenUnavailable | None = None
        self._told_expired = False

    def current(self) -> AccessToken:
        """Return a valid token. Blocks until the provider answers, some seconds at most.

        If the token cannot be renewed, it stays in use until it expires.

        Raises:
            AccessTokenUnavailable: There is no valid token.
        """
        if not self._lock.acquire(blocking=False):  # another thread asks the provider
            token = self._token
            if self._clock() < token.expires_at:
                return token
            self._lock.acquire()
        try:
            if self._clock() >= self._ask_at:
                self._renew()
            error = self._refused
            if error is None or self._clock() < self._token.expires_at:
                return self._token
            if self._token.value and not self._told_expired:
                self._told_expired = True
                logger.error("Access token expired, Kafka will refuse us: %s", error)
            raise AccessTokenUnavailable(error.url, error.reason)
        finally:
            self._lock.release()

    def _renew(self) -> None:
        now = self._clock()
        try:
            value, lifetime = self._fetch()
        except AccessTokenUnavailable as error:
            if self._refused is None and self._token.value:
                logger.warning("Access token not renewed, the last one is kept: %s", error)
            self._refused = error
            self._ask_at = self._clock() + PAUSE_SECONDS
            return
        if self._refused is not None and self._token.value:
            logger.warning("Access token renewed again")
        self._refused = None
        self._told_expired = False
        self._token = AccessToken(value, now + lifetime)
        self._ask_at = now + lifetime * RENEW_AFTER_SHARE


@functools.lru_cache(maxsize=1)
def access_tokens(settings: Settings) -> AccessTokens:
    """Return the tokens for these settings, which all clients of the process share."""
    extensions = parse_extensions(settings.kafka_sasl_oauth_extensions)
    return AccessTokens(functools.partial(request_token, settings), extensions=extensions)


def request_token(settings: Settings) -> tuple[str, float]:
    """Return a new token of the settings' identity provider, and its lifetime in seconds. Blocks.

    Raises:
        AccessTokenUnavailable: The provider does not answer, or refuses.
    """
    url = settings.kafka_sasl_oauth_token_url or ""
    secret = settings.kafka_sasl_oauth_client_secret
    password = secret.get_secret_value() if secret else ""
    # URL-encoded (RFC 6749, 2.3.1), so that they contain no colon.
    identity = f"{quote_plus(settings.kafka_sasl_oauth_client_id or '')}:{quote_plus(password)}"
    credentials = base64.b64encode(identity.encode()).decode()
    try:
        status, content = _post(URL(url), credentials, settings)
    except (OSError, HTTPException) as error:
        raise AccessTokenUnavailable(url, _explain(error)) from error
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        answer = {}
    if status != 200:
        parts = (answer.get("error"), answer.get("error_description"))
        words = " ".join(": ".join(part for part in parts if isinstance(part, str)).split())
        words = redact(words, (password, quote_plus(password), credentials))[:300]
        raise AccessTokenUnavailable(url, f"answered {status}{f' ({words})' if words else ''}")
    token = answer.get("access_token")
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise AccessTokenUnavailable(url, "the answer has no access_token")
    return token, _lifetime(answer.get("expires_in"))


def _post(url: URL, credentials: str, settings: Settings) -> tuple[int, bytes]:
    scope = settings.kafka_sasl_oauth_scope
    headers = {
        "Authorization": f"Basic {credentials}",
        "Content-Type": "application/x-www-form-urlencoded",
        "Accept": "application/json",
    }
    form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
    host, port = url.raw_host or "", url.port
    connection = HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=settings.kafka_sasl_oauth_ca_file)
        connection = HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        connection.connect()
        with _within_timeout(connection.sock):
            # http.client follows no redirects, which could send the secret elsewhere.
            connection.request("POST", url.raw_path_qs, urlencode(form), headers)
            response = connection.getresponse()
            return response.status, response.read(MAX_ANSWER_BYTES)
    finally:
        connection.close()


@contextmanager
def _within_timeout(connected: socket.socket) -> Iterator[None]:
    """Raise ``TimeoutError`` if all of it takes longer: a socket's own time-out is for each byte.

    Every client waits meanwhile for its turn to ask for the token.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        with suppress(OSError):
            # Not that of a TLS socket, which would make the thread that reads fail in odd ways.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(TIMEOUT_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, HTTPException):
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError(f"no whole answer within {TIMEOUT_SECONDS:g} s")


def _lifetime(expires_in: object) -> float:
    try:
        seconds = float(str(expires_in))  # some providers write the number as text
    except ValueError:
        return DEFAULT_LIFETIME_SECONDS
    return seconds if 0 < seconds < math.inf else DEFAULT_LIFETIME_SECONDS


def _explain(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message} (KAFKA_SASL_OAUTH_CA_FILE)"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
