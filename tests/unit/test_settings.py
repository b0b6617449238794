"""The settings: their defaults, and where they come from."""

from base64 import b64encode
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from order_relay.settings import Settings, load_settings

# The names and defaults of the design.
DEFAULTS = {
    "KAFKA_BOOTSTRAP_SERVERS": "localhost:19092,localhost:29092,localhost:39092",
    "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
    "ORDER_PAID_TOPIC": "order-paid-events",
    "DLQ_TOPIC": "order-paid-events.DLQ",
    "TOPIC_PARTITIONS": 3,
    "TOPIC_REPLICATION_FACTOR": 3,
    "KAFKA_DECLARE_TOPICS": True,
    "CONSUMER_GROUP_ID": "logging-consumer-group",
    "EXTERNAL_LOGGER_URL": "http://localhost:3000/logs",
    "EXTERNAL_LOGGER_TIMEOUT_SECONDS": 10.0,
    "EXTERNAL_LOGGER_TOKEN": None,
    "CONSUMER_RETRY_MAX_ATTEMPTS": 3,
    "CONSUMER_RETRY_INITIAL_INTERVAL_MS": 1000,
    "CONSUMER_RETRY_MULTIPLIER": 2.0,
    "CONSUMER_RETRY_MAX_INTERVAL_MS": 10_000,
    "MAX_IN_FLIGHT": 256,
    "BREAKER_FAILURE_THRESHOLD": 20,
    "BREAKER_PROBE_INTERVAL_SECONDS": 5.0,
    "PRODUCER_RETRIES": 3,
    "PRODUCER_RETRY_BACKOFF_MS": 1000,
    "PRODUCER_REQUEST_TIMEOUT_MS": 30_000,
    "PRODUCER_DELIVERY_TIMEOUT_MS": 120_000,
    "PRODUCER_MAX_IN_FLIGHT": 5,
    "WEB_HOST": "127.0.0.1",
    "WEB_PORT": 6066,
    "SHUTDOWN_GRACE_SECONDS": 30.0,
}
SECRETS = (
    "API_TOKEN",
    "EXTERNAL_LOGGER_TOKEN",
    "KAFKA_SASL_OAUTH_CLIENT_SECRET",
    "KAFKA_SASL_PASSWORD",
    "KAFKA_SSL_KEY_PASSWORD",
)
pytestmark = pytest.mark.usefixtures("empty_environment")


def test_the_defaults_are_those_of_the_design() -> None:
    """Without anything set, every setting has the value that the design names."""
    settings = load_settings()

    assert {name: getattr(settings, name.lower()) for name in DEFAULTS} == DEFAULTS


def test_secrets_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are printed or logged show no secret; the list for redacting has them all."""
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
    # A proxy is told its user and password as base64 of both.
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
        *SECRETS,
        "DATABASE_PASSWORD",
        "DATABASE_URL",
        "EXTERNAL_LOGGER_HEADERS",
        "EXTERNAL_LOGGER_PROXY",
        "EXTERNAL_LOGGER_SIGNING_SECRETS",
    }


def test_a_token_from_a_file_loses_its_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Space around the token is a slip that nobody means."""
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN", "  hunter2\n")

    assert load_settings().secrets == ("hunter2",)


def test_headers_are_taken_as_they_stand_in_their_file(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments and blank lines are skipped; credentials are secret without their scheme, too."""
    file = empty_environment / "headers"
    file.write_bytes(
        b"# keys\r\n\r\n \nAuthorization: Basic dTpw\r\nX-A:  b:c d \t\r\nUser-Agent: shop\n"
    )
    monkeypatch.setenv("EXTERNAL_LOGGER_HEADERS_FILE", str(file))

    settings = load_settings()

    assert settings.target_headers == (
        ("Authorization", "Basic dTpw"), ("X-A", "b:c d"), ("User-Agent", "shop"),
    )  # fmt: skip
    assert settings.secrets == ("Basic dTpw", "dTpw", "b:c d", "shop")


def test_dot_env_is_read_and_the_environment_wins(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .env in the working folder counts; a variable of the environment counts more."""
    (empty_environment / ".env").write_text("MAX_IN_FLIGHT=7\nWEB_PORT=7000\nOTHER=1\n")
    monkeypatch.setenv("WEB_PORT", "8000")

    settings = load_settings()

    assert (settings.max_in_flight, settings.web_port) == (7, 8000)


def test_what_is_empty_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable means its default, as in `MAX_IN_FLIGHT= faust ...`."""
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")

    settings = load_settings()
    assert {name: getattr(settings, name.lower()) for name in DEFAULTS} == DEFAULTS


def test_the_database_password_is_a_secret_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The password goes into the URL, encoded; redacting knows it as it is."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://relay@db/relay?target_session_attrs=any")
    monkeypatch.setenv("DATABASE_PASSWORD", "hun/ter@2")

    settings = load_settings()

    url = "postgresql://relay:hun%2Fter%402@db/relay?target_session_attrs=any"
    assert settings.database_url.get_secret_value() == url
    assert set(settings.secrets) == {"hun/ter@2"}
    assert "hun" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "k-1.example.org:9092,10.0.0.1:1,[::1]:65535", None),
        ("EXTERNAL_LOGGER_URL", "https://logger.example.org:8443/v1/logs?team=a%20b", None),
        ("EXTERNAL_LOGGER_URL", "http://[::1]:3000/logs", None),
        ("EXTERNAL_LOGGER_CONTENT_TYPE", "application/cloudevents+json; charset=utf-8", None),
        ("EXTERNAL_LOGGER_CONTENT_TYPE", 'text/json;a="b; \\" c" ; d=e', None),
        ("CONSUMER_RETRY_MAX_ATTEMPTS", "0", 0),
        ("BREAKER_FAILURE_THRESHOLD", "0", 0),
        ("BREAKER_PROBE_INTERVAL_SECONDS", "0.5", 0.5),
        ("SHUTDOWN_GRACE_SECONDS", "0", 0.0),
        ("KAFKA_DECLARE_TOPICS", "false", False),
    ],
)
def test_what_is_allowed_passes(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values at the edge of what is allowed, and of every form that is, are taken as they are."""
    monkeypatch.setenv(name, text)

    assert getattr(load_settings(), name.lower()) == (text if value is None else value)


def test_space_between_servers_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are written in many ways; Kafka's clients get the plain one."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", " a:1, b:2 ,")

    assert load_settings().kafka_bootstrap_servers == "a:1,b:2"


def test_settings_never_change() -> None:
    """Once read, settings are what they are."""
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().max_in_flight = 1
