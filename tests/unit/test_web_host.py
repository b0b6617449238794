"""Where the worker's web server listens, and the addresses that are made of it."""

import socket

import pytest

from order_relay.errors import InvalidSettings
from order_relay.settings import load_settings
from order_relay.worker.relay_app import make_app

pytestmark = pytest.mark.usefixtures("empty_environment")


@pytest.mark.parametrize(
    ("host", "in_a_url"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "[::]"),
        ("::1", "[::1]"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
        ("worker-1.example.com", "worker-1.example.com"),
        ("relay_worker", "relay_worker"),
    ],
)
def test_every_address_makes_an_application(host: str, in_a_url: str) -> None:
    """Addresses of either kind and names: other workers get a URL of it, and so does Faust."""
    settings = load_settings(web_host=host)
    every = host in ("0.0.0.0", "::")

    other = socket.gethostname() if every else in_a_url
    assert str(settings.own_url) == f"http://{other}:6066"
    assert str(make_app(settings).conf.canonical_url) == f"http://{in_a_url}:6066"


@pytest.mark.parametrize("host", ["::0", "0:0:0:0:0:0:0:0"])
def test_every_way_to_write_every_address(host: str) -> None:
    """Others get the machine's name, not an address that means themselves."""
    assert load_settings(web_host=host).own_url.host == socket.gethostname()


def test_the_names_of_the_server() -> None:
    """Pages may be read under its own names and those that are allowed."""
    settings = load_settings(
        web_host="::",
        advertised_url="http://relay-1.example.com:6066",
        web_allowed_hosts=" relay.example.com, orders.example.org",
    )

    names = {"relay.example.com", "orders.example.org", "relay-1.example.com"}
    assert names | {socket.gethostname()} <= set(settings.web_names)


@pytest.mark.parametrize("hosts", ["relay.example.com:443", "http://relay", ", ,", "a b"])
def test_allowed_names_are_names(hosts: str) -> None:
    """A port or a scheme would never be found in a name."""
    with pytest.raises(InvalidSettings, match=r"WEB_ALLOWED_HOSTS.*host names without ports"):
        load_settings(web_allowed_hosts=hosts)
