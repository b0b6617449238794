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
        """Require ``token``; None: allow loopback only.

        Args:
            token: The API token.
            names: Further names of this worker in a Host header.
        """
        self._token = token.encode() if token else None
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    def wrong_name(self, request: web.Request) -> web.Response | None:
        """Return the answer if the Host header is refused; None: it is allowed.

        Allowed are addresses, names without a dot and private suffixes, which no public page can
        have, and every name if the request has the token.
        """
        # Not request.host, which asks the name server where the header is missing.
        host = request.headers.get("Host")
        if host is None:
            return None
        name = _host_name(host).lower().rstrip(".")
        if _address(name) is not None or "." not in name or name.endswith(PRIVATE_SUFFIXES):
            return None
        if name in self._names or (self._token is not None and self.refusal(request) is None):
            return None
        return _refused(
            403,
            f"{name[:80]!r} is not known as a name of this worker: ask by its address, or add the "
            "name to WEB_ALLOWED_HOSTS",
        )

    def sign(self, path: str) -> dict[str, str]:
        """Return the header that lets this worker change something on another one.

        The token is not sent: another program may answer at the address. ``path`` has the query.
        """
        if self._token is None:
            return {}
        moment = str(int(time.time()))
        return {SIGNATURE_HEADER: f"{moment}:{self._signature(moment, path)}"}

    def is_signed(self, request: web.Request) -> bool:
        """Return whether another worker with the same token sent this request just now.

        Without a token, whether it comes from this machine.
        """
        if self._token is None:
            return _unless_local(request) is None
        moment, _, signature = request.headers.get(SIGNATURE_HEADER, "").partition(":")
        if not (moment.isascii() and moment.isdigit() and len(moment) < 12):
            return False
        expected = self._signature(moment, request.path_qs)
        return (
            hmac.compare_digest(signature.encode("utf-8", "surrogateescape"), expected.encode())
            and abs(time.time() - int(moment)) <= SIGNATURE_SECONDS
        )

    def _signature(self, moment: str, path: str) -> str:
        return hmac.new(self._token or b"", f"{moment}\n{path}".encode(), "sha256").hexdigest()

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer if a request may change nothing; None: it may."""
        if self._token is None:
            return _unless_local(request)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), self._token
        ):
            return None
        return _refused(401, "needs the header Authorization: Bearer with the API_TOKEN")


def _refused(status: int, error: str) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.json_response({"error": error}, status=status, headers=headers)


def _unless_local(request: web.Request) -> web.Response | None:
    advice = "set API_TOKEN to let others in"
    if not is_loopback(request.remote or ""):
        return _refused(403, f"without API_TOKEN this is served on loopback only: {advice}")
    if any(name in request.headers for name in FORWARDING_HEADERS):
        return _refused(403, f"without API_TOKEN this is not served through a proxy: {advice}")
    # DNS rebinding: a page in a local browser, whose name was made to resolve to this machine.
    host = request.headers.get("Host")
    if host is not None and not is_loopback(_host_name(host)):
        return _refused(
            403, f"without API_TOKEN the host must be localhost or its address: {advice}"
        )
    # A page of another site in a local browser: it could post, though not read the answer.
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        return _refused(403, f"without API_TOKEN pages of other sites may not post: {advice}")
    return None


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
