"""Who may change something over HTTP: who has the token; without one, this machine only."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass

from aiohttp import web

# What a proxy adds: behind one everybody seems to come from this machine.
FORWARDING_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request is not let in.

    Attributes:
        status: 401 or 403.
        error: Why, on one line.
    """

    status: int
    error: str


class Access:
    """Decides about requests that change something."""

    def __init__(self, token: str | None) -> None:
        """With a ``token`` let in who brings it; without one, loopback only."""
        self._token = token.encode() if token else None

    def refusal(self, request: web.Request) -> Refusal | None:
        """Return why a request is not let in; None: it is."""
        if self._token is None:
            return _unless_local(request)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), self._token
        ):
            return None
        return Refusal(401, "needs the header Authorization: Bearer with the API_TOKEN")


def _unless_local(request: web.Request) -> Refusal | None:
    advice = "set API_TOKEN to let others in"
    if not is_loopback(request.remote or ""):
        return Refusal(403, f"without API_TOKEN this is served on loopback only: {advice}")
    if any(name in request.headers for name in FORWARDING_HEADERS):
        return Refusal(403, f"without API_TOKEN this is not served through a proxy: {advice}")
    # A page in a local browser, whose name was made to resolve to this machine. Browsers say it;
    # not request.host, which asks the name server where a client does not.
    host = request.headers.get("Host")
    if host is not None and not is_loopback(_host_name(host)):
        return Refusal(
            403, f"without API_TOKEN the host must be localhost or its address: {advice}"
        )
    # Another site's page in a local browser: it cannot read what is answered, and yet could post.
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        return Refusal(403, f"without API_TOKEN pages of other sites may not post: {advice}")
    return None


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is this machine's own."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _host_name(host: str) -> str:
    """Return a Host header without its port: ``[::1]:6066`` is ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
