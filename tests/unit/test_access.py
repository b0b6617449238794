"""Access to the routes that change something over HTTP."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from order_relay.web.access import Access
from order_relay.web.request_body import Refused

HERE = ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"]
NAMES = ["localhost", "LOCALHOST:6066", "127.0.0.1:6066", "[::1]:6066"]
ELSEWHERE = ["10.0.0.9", "192.168.0.1", "2001:db8::1", "::ffff:10.0.0.9", None]
RIGHT = {"Authorization": "Bearer s3cret"}


def request_from(peer: str | None, **headers: str) -> web.Request:
    """A request as the server would have it from this address."""
    given: dict[str, Any] = {"Host": "localhost:6066"} | headers
    return make_mocked_request("POST", "/order-paid", headers=given).clone(remote=peer or "")


@pytest.mark.parametrize(
    ("token", "peer", "headers", "status"),
    [
        # Loopback, in version 4, 6 and 4 within 6, under each of its names.
        *((None, peer, {"Host": host}, None) for peer in HERE for host in NAMES),
        (None, "127.0.0.1", {"Origin": "http://localhost:6066"}, None),
        *((None, peer, {}, 403) for peer in ELSEWHERE),
        *(("s3cret", peer, RIGHT, None) for peer in ELSEWHERE),
        *(("s3cret", peer, {}, 401) for peer in [*ELSEWHERE, "127.0.0.1"]),
        *(("s3cret", "127.0.0.1", {"Authorization": given}, 401)
          for given in ["Bearer", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret"]),
        # An empty token gives no access: it counts as not set.
        ("", "10.0.0.9", {"Authorization": "Bearer "}, 403),
        # Through a proxy, or from another site's page.
        *((None, "127.0.0.1", headers, 403)
          for headers in [{"X-Forwarded-For": "10.0.0.9"}, {"Forwarded": "for=10.0.0.9"},
                          {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:1"},
                          {"Origin": "null"}]),
        # What resolves to this machine is not this machine's own name.
        *((None, "127.0.0.1", {"Host": host}, 403)
          for host in ["", "evil.example", "localhost.evil.example", "0.0.0.0",
                       "127.0.0.1.nip.io"]),
    ],
)  # fmt: skip
def test_who_may_change_something(
    token: str | None, peer: str | None, headers: dict[str, str], status: int | None
) -> None:
    """With the token, from anywhere; without one, from this machine."""
    found = None
    try:
        Access(token).check(request_from(peer, **headers))
    except Refused as refused:
        found = refused.status
    assert found == status
