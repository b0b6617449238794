"""Access to the routes that change something over HTTP."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from order_relay.web.access import Access, is_loopback


def request_from(peer: str | None, **headers: str) -> web.Request:
    """A request as the server would have it from this address."""
    given: dict[str, Any] = {"Host": "localhost:6066"} | headers
    return make_mocked_request("POST", "/order-paid", headers=given).clone(remote=peer or "")


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:6066", "127.0.0.1:6066", "[::1]:6066"])
def test_this_machine_is_let_in_without_a_token(peer: str, host: str) -> None:
    """Loopback, in version 4, 6 and 4 within 6, under each of its names."""
    assert Access(None).refusal(request_from(peer, Host=host)) is None


@pytest.mark.parametrize(
    "peer", ["10.0.0.9", "192.168.0.1", "2001:db8::1", "::ffff:10.0.0.9", None]
)
def test_other_machines_need_a_token(peer: str | None) -> None:
    """403 without API_TOKEN; with it, a request that has it is allowed from any address."""
    refusal = Access(None).refusal(request_from(peer))
    assert refusal is not None
    assert refusal.status == 403
    guarded = Access("s3cret")
    assert guarded.refusal(request_from(peer, Authorization="Bearer s3cret")) is None
    refusal = guarded.refusal(request_from(peer))
    assert refusal is not None
    assert refusal.status == 401


def test_an_empty_token_is_none() -> None:
    """An empty API_TOKEN opens nothing: it counts as not set."""
    refusal = Access("").refusal(request_from("10.0.0.9", Authorization="Bearer "))
    assert refusal is not None
    assert refusal.status == 403


@pytest.mark.parametrize("host", ["", "localhost.evil.example", "0.0.0.0", "127.0.0.1.nip.io"])
def test_names_that_only_look_local(host: str) -> None:
    """What resolves to this machine is not this machine's own name."""
    assert not is_loopback(host)
