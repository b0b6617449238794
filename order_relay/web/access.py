"""Access control over HTTP: by token, by the client's address, and by the Host header.

A request that changes something needs the token; without a configured token it must come from this
machine. A request that reads must name this worker in its Host header, against DNS rebinding: a
page in a browser, whose own name was made to resolve to a worker, could read the worker's pages.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Collection

from aiohttp import web

from order_relay.web.request_body import Refused

# Added by a proxy. Behind one every client seems to be on this machine.
FORWARDING_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
# Of a request that one worker sends to another.
SIGNATURE_HEADER = "X-Order-Relay-Signature"
SIGNATURE_SECONDS = 60
# Reserved for private networks (RFC 6761, RFC 6762, ICANN): no public page has such a name.
PRIVATE_SUFFIXES = (".localhost", ".local", ".internal")


class Access:
    """Allows or refuses requests."""

    def __init__(self, token: str | None, names: Collection[str] = ()) -> None:
        """Require ``token`` (None: allow loopback only); ``names`` are allowed as hosts, too."""
        self._token = token.encode() if token else None
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    def check_name(self, request: web.Request) -> None:
        """Check the Host header.

        Allowed are addresses, names without a dot and private suffixes, which no public page can
        have, and every name if the request has the token.

        Raises:
            Refused: It is another name.
        """
        # Not request.host, which asks the name server where the header is missing.
        host = request.headers.get("Host")
        if host is None:
            return
        name = _host_name(host).lower().rstrip(".")
        if _address(name) is not None or "." not in name or name.endswith(PRIVATE_SUFFIXES):
            return
        if name not in self._names and not self._has_token(request):
            raise Refused(
                403,
                f"{name[:80]!r} is not known as a name of this worker: ask by its address, or add "
                "the name to WEB_ALLOWED_HOSTS",
            )

    def sign(self, path: str) -> dict[str, str]:
        """Return the header that lets this worker change something on another one.

        The token is not sent: another program may answer at the address. ``path`` has the query.
        """
        if self._token is None:
            return {}
        moment = str(int(time.time()))
        return {SIGNATURE_HEADER: f"{moment}:{self._signature(moment, path)}"}

    def check_signed(self, request: web.Request) -> None:
        """Check that another worker with the same token sent this request just now.

        Without a token, that it comes from this machine.

        Raises:
            Refused: It does not.
        """
        if self._token is None:
            _check_local(request)
            return
        moment, _, signature = request.headers.get(SIGNATURE_HEADER, "").partition(":")
        if not (
            moment.isascii()
            and moment.isdigit()
            and len(moment) < 12
            and abs(time.time() - int(moment)) <= SIGNATURE_SECONDS
            and _is_same(signature, self._signature(moment, request.path_qs).encode())
        ):
            raise Refused(
                403, "this is for other workers: all need the same API_TOKEN and the right time"
            )

    def _signature(self, moment: str, path: str) -> str:
        return hmac.new(self._token or b"", f"{moment}\n{path}".encode(), "sha256").hexdigest()

    def check(self, request: web.Request) -> None:
        """Raise ``Refused`` if a request may change nothing."""
        if self._token is None:
            _check_local(request)
        elif not self._has_token(request):
            raise Refused(401, "needs the header Authorization: Bearer with the API_TOKEN")

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return (
            self._token is not None
            and scheme.lower() == "bearer"
            and _is_same(given.strip(), self._token)
        )


def _is_same(given: str, expected: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected)


def _check_local(request: web.Request) -> None:
    advice = "set API_TOKEN to let others in"
    if not is_loopback(request.remote or ""):
        raise Refused(403, f"without API_TOKEN this is served on loopback only: {advice}")
    if any(name in request.headers for name in FORWARDING_HEADERS):
        raise Refused(403, f"without API_TOKEN this is not served through a proxy: {advice}")
    # DNS rebinding: a page in a local browser, whose name was made to resolve to this machine.
    host = request.headers.get("Host")
    if host is not None and not is_loopback(_host_name(host)):
        raise Refused(403, f"without API_TOKEN the host must be localhost or its address: {advice}")
    # A page of another site in a local browser: it could post, though not read the answer.
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, f"without API_TOKEN pages of other sites may not post: {advice}")


def is_loopback(host: str) -> bool:
    """Return whether this is a loopback address, or the name localhost."""
    if host.lower().rstrip(".") == "localhost":
        return True
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and bool((mapped or address).is_loopback)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """Return a Host header without its port: ``[::1]:6066`` is ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
