"""Where the worker's web server listens, and the addresses that are made of it."""

import socket

import pytest

from app.main import create_app
from app.settings import load_settings

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
    assert str(create_app(settings).conf.canonical_url) == f"http://{in_a_url}:6066"


@pytest.mark.parametrize("host", ["::0", "0:0:0:0:0:0:0:0"])
def test_every_way_to_write_every_address(host: str) -> None:
    """Others get the machine's name, not an address that means themselves."""
    assert load_settings(web_host=host).own_url.host == socket.gethostname()
