"""Who may do what over HTTP: by token, by address, and by the name that is asked for.

Who changes something needs the token; without one, this machine only. Who reads must ask for a
name that is ours: a page in somebody's browser, whose name was made to resolve to a worker, could
read it as if it were its own (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from aiohttp import web

# What a proxy adds: behind one everybody seems to come from this machine.
FORWARDING_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
# Reserved for private networks (RFC 6761, RFC 6762, ICANN): no page of the internet has them.
OWN_ENDINGS = (".localhost", ".local", ".internal")


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
    """Decides about requests."""

    def __init__(self, token: str | None, names: Collection[str] = ()) -> None:
        """With a ``token`` let in who brings it; without one, loopback only.

        Further ``names`` are ours, too.
        """
        self._token = token.encode() if token else None
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    def wrong_name(self, request: web.Request) -> Refusal | None:
        """Return why a page may not be read under the name that is asked for; None: it may.

        Nobody can make an address, a name without a dot or one of the endings that no registry
        sells lead here from a page of their own. Who brings the token is no such page.
        """
        # Browsers say it; not request.host, which asks the name server where a client does not.
        host = request.headers.get("Host")
        if host is None:
            return None
        name = _host_name(host).lower().rstrip(".")
        if _is_address(name) or "." not in name or name.endswith(OWN_ENDINGS):
            return None
        if name in self._names or (self._token is not None and self.refusal(request) is None):
            return None
        return Refusal(
            403,
            f"{name[:80]!r} is not known as a name of this worker: ask by its address, or add the "
            "name to WEB_ALLOWED_HOSTS",
        )

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
    # A page in a local browser, whose name was made to resolve to this machine.
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


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """Return a Host header without its port: ``[::1]:6066`` is ``::1``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
