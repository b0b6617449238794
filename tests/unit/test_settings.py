"""The settings: their sources, what is allowed, and what is derived from them."""

import socket
from base64 import b64encode
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from order_relay.settings import Settings, load_settings
from order_relay.worker.relay_app import RelayApp

SECRETS = (
    "API_TOKEN", "EXTERNAL_LOGGER_TOKEN", "KAFKA_SASL_OAUTH_CLIENT_SECRET", "KAFKA_SASL_PASSWORD",
    "KAFKA_SSL_KEY_PASSWORD",
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("empty_environment")


def test_secrets_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed or logged settings show no secret; the list for redaction has all secrets."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"hunter2-{name}")
    monkeypatch.setenv("EXTERNAL_LOGGER_PROXY", "http://us:hunter2-PROXY@proxy:3128")
    old, new = "hunter2/" * 5, f"{'hunter2+' * 5}hg=="
    monkeypatch.setenv("EXTERNAL_LOGGER_SIGNING_SECRETS", f" whsec_{old}, {new} ")
    monkeypatch.setenv(
        "EXTERNAL_LOGGER_HEADERS", "# ours\nX-Key:hunter2-X\nX-None:\nx-key: hunter2 Y"
    )

    settings = load_settings()

    assert "hunter2" not in f"{settings} {settings!r} {settings.model_dump()}"
    # A proxy gets its user and password as base64 of both.
    credentials = b64encode(b"us:hunter2-PROXY").decode()
    assert sorted(settings.secrets) == sorted(
        [
            *(f"hunter2-{name}" for name in (*SECRETS, "PROXY", "X")),
            "hunter2 Y",
            credentials,
            old,
            new,
        ]
    )
    kinds = {field: str(info.annotation) for field, info in Settings.model_fields.items()}
    assert {field.upper() for field, kind in kinds.items() if SecretStr.__name__ in kind} == {
        *SECRETS, "DATABASE_PASSWORD", "DATABASE_URL", "EXTERNAL_LOGGER_HEADERS",
        "EXTERNAL_LOGGER_PROXY", "EXTERNAL_LOGGER_SIGNING_SECRETS",
    }  # fmt: skip


@pytest.mark.parametrize("proxy", ["http://us:s3cret@proxy:3128", "us:s3cret@proxy:3128"])
def test_the_environment_names_the_proxy(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS_PROXY counts, unless NO_PROXY names the host, or the host is this machine."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "example.com,.internal")
    for url, found in (
        ("https://logger.test/logs", "http://us:s3cret@proxy:3128"),
        ("https://logger.internal/logs", None),
        ("https://localhost:9/logs", None),
        ("https://127.0.0.1:9/logs", None),
        ("https://[::1]:9/logs", None),
    ):
        monkeypatch.setenv("EXTERNAL_LOGGER_URL", url)
        settings = load_settings()
        assert (settings.target_proxy and settings.target_proxy.get_secret_value()) == found
        assert ("s3cret" in settings.secrets) == (found is not None)
    monkeypatch.setenv("EXTERNAL_LOGGER_URL", "https://logger.test/logs")
    monkeypatch.setenv("EXTERNAL_LOGGER_PROXY", "http://other:3128")
    assert load_settings().target_proxy == SecretStr("http://other:3128")


def test_a_token_from_a_file_loses_its_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Space around the token is never meant."""
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN", "  hunter2\n")

    assert load_settings().secrets == ("hunter2",)


def test_headers_are_taken_as_they_stand_in_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments and blank lines are skipped.

    Credentials are secret without their scheme, too. Short values are not: redacting ``eu`` or
    ``0`` would make other text unreadable.
    """
    Path("headers").write_bytes(
        b"# keys\r\n\r\n \nAuthorization: Basic dTpw\r\nX-A:  b:c d  e \t\r\nX-Region: eu-w1\n"
    )
    monkeypatch.setenv("EXTERNAL_LOGGER_HEADERS_FILE", "headers")

    settings = load_settings()

    assert settings.target_headers == (
        ("Authorization", "Basic dTpw"), ("X-A", "b:c d  e"), ("X-Region", "eu-w1"),
    )  # fmt: skip
    assert settings.secrets == ("Basic dTpw", "dTpw", "b:c d  e")


def test_dot_env_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A .env in the working folder counts; a variable of the environment counts more."""
    Path(".env").write_text("MAX_IN_FLIGHT=7\nWEB_PORT=7000\nOTHER=1\n")
    monkeypatch.setenv("WEB_PORT", "8000")

    settings = load_settings()

    assert (settings.max_in_flight, settings.web_port) == (7, 8000)


def test_what_is_empty_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable means its default, as in `MAX_IN_FLIGHT= faust ...`."""
    defaults = load_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")

    assert load_settings() == defaults


@pytest.mark.parametrize("url", ["postgresql://relay@db/relay?target_session_attrs=any"])
@pytest.mark.parametrize(("password", "in_url"), [("hun/ter@2", ":hun%2Fter%402"), ("", "")])
def test_the_database_password_is_a_secret_wherever_it_stands(
    url: str, password: str, in_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is encoded in the URL; the redaction has it as it is."""
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_PASSWORD", password)

    settings = load_settings()

    assert settings.database_url.get_secret_value() == url.replace("@", f"{in_url}@", 1)
    assert set(settings.secrets) == {password} - {""}
    assert "relay" not in repr(settings.database_url)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "k-1.example.org:9092,10.0.0.1:1,[::1]:65535", None),
        # Lists may have spaces and empty parts; Kafka's clients get neither.
        ("KAFKA_BOOTSTRAP_SERVERS", " a:1, b:2 ,", "a:1,b:2"),
        ("EXTERNAL_LOGGER_URL", "https://logger.example.org:8443/v1/logs?team=a%20b", None),
        ("EXTERNAL_LOGGER_URL", "http://[::1]:3000/logs", None),
        ("EXTERNAL_LOGGER_CONTENT_TYPE", "application/cloudevents+json; charset=utf-8", None),
        ("EXTERNAL_LOGGER_CONTENT_TYPE", 'text/json;a="b; \\" c" ; d=e', None),
        ("BREAKER_PROBE_INTERVAL_SECONDS", "0.5", 0.5),
        ("KAFKA_DECLARE_TOPICS", "false", False),
    ],
)
def test_what_is_allowed_passes(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of every allowed form are used as they are."""
    monkeypatch.setenv(name, text)

    assert getattr(load_settings(), name.lower()) == (text if value is None else value)


def test_settings_never_change() -> None:
    """Settings are frozen once read."""
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().max_in_flight = 1


@pytest.mark.parametrize(
    ("host", "in_a_url"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "[::]"),
        ("::0", "[::]"),
        ("0:0:0:0:0:0:0:0", "[::]"),
        ("::1", "[::1]"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
        ("worker-1.example.com", "worker-1.example.com"),
        ("relay_worker", "relay_worker"),
    ],
)
def test_every_address_makes_an_application(host: str, in_a_url: str) -> None:
    """IPv4, IPv6 and names: other workers get a URL of it, and so does Faust.

    For an address that means all interfaces, others get the machine's name.
    """
    settings = load_settings(web_host=host)
    every = host == "0.0.0.0" or not host.strip("0:")

    other = socket.gethostname() if every else in_a_url
    assert str(settings.own_url) == f"http://{other}:6066"
    assert str(RelayApp(settings).conf.canonical_url) == f"http://{in_a_url}:6066"


def test_the_names_of_the_server() -> None:
    """Pages may be read under its own names and the allowed ones."""
    settings = load_settings(
        web_host="::",
        advertised_url="http://relay-1.example.com:6066",
        web_allowed_hosts=" relay.example.com, orders.example.org",
    )

    names = {"relay.example.com", "orders.example.org", "relay-1.example.com"}
    assert names | {socket.gethostname()} <= set(settings.web_names)
