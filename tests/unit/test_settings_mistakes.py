"""How a mistake in the settings is told: one line, nothing half-done, no secret."""

import errno
import re
from pathlib import Path

import pytest
import trustme

from order_relay.errors import InvalidSettings
from order_relay.settings import load_settings
from order_relay.settings.settings import load_log_format

NAME = "must be 1 to 249 of the characters A-Z a-z 0-9 . _ -"
URL = "must be an http:// or https:// URL"
NO_FILE = "does not point to a file"


pytestmark = pytest.mark.usefixtures("empty_environment")


def _complaint() -> str:
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith("invalid settings: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *[
            ("KAFKA_BOOTSTRAP_SERVERS", value, "host:port")
            for value in [
                "kafka",
                ",",
                ":9092",
                "kafka:",
                "kafka:port",
                "kafka:0",
                "kafka:65536",
                "kafka:-1",
                "kafka:9092,kafka",
                "kafka:\u00b2",
                "kafka:\u0669\u0660\u0669\u0662",
                "PLAINTEXT://kafka:9092",
                "ka fka:9092",
                "kafka\t:9092",
                "kafka?x:9092",
                "::1:9092",
                "[::1:9092",
                "[1.2]:9092",
                "[]:9092",
                "[127.0.0.1]:9092",
                "[::1%a b]:9092",
            ]
        ],
        ("KAFKA_SECURITY_PROTOCOL", "TLS", "must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or"),
        ("KAFKA_SASL_MECHANISM", "GSSAPI", "'SCRAM-SHA-256', 'SCRAM-SHA-512' or 'OAUTHBEARER'"),
        ("KAFKA_SASL_OAUTH_TOKEN_URL", "identity", URL),
        ("KAFKA_SASL_OAUTH_CA_FILE", __file__, "must be a PEM file of certificates"),
        *[
            ("KAFKA_SASL_OAUTH_EXTENSIONS", value, "must be name=value, several separated by")
            for value in ["pool", "pool=", "=1", "po-ol=1", "auth=1", "a=1,,b=2", "a=1 2"]
        ],
        ("DATABASE_SSL_CA_FILE", __file__, "must be a PEM file of certificates"),
        ("DATABASE_SSL_CERT_FILE", "missing.pem", NO_FILE),
        ("KAFKA_SSL_CA_FILE", "missing.pem", NO_FILE),
        ("KAFKA_SSL_CERT_FILE", "missing.pem", NO_FILE),
        ("KAFKA_SSL_KEY_FILE", ".", NO_FILE),
        ("KAFKA_SSL_KEY_FILE", __file__, "needs KAFKA_SSL_CERT_FILE"),
        ("KAFKA_SSL_CA_FILE", __file__, "must be a PEM file of certificates"),
        ("KAFKA_SSL_CERT_FILE", __file__, "must be a certificate, its key and the key's password"),
        ("ORDER_PAID_TOPIC", "order paid", NAME),
        ("ORDER_PAID_TOPIC", "..", NAME),
        ("ORDER_PAID_TOPIC", "x" * 250, NAME),
        ("DLQ_TOPIC", "dlq/1", NAME),
        ("DLQ_TOPIC", "order-paid-events", "must differ from ORDER_PAID_TOPIC"),
        ("CONSUMER_GROUP_ID", "gr\u00fcppe", NAME),
        ("KAFKA_SESSION_TIMEOUT_MS", "999", "1000"),
        ("KAFKA_SESSION_TIMEOUT_MS", "1800001", "1800000"),
        ("KAFKA_SESSION_TIMEOUT_MS", "30s", "must be a valid integer"),
        ("TOPIC_PARTITIONS", "0", "greater than or equal to 1"),
        ("TOPIC_PARTITIONS", "three", "must be a valid integer"),
        ("TOPIC_PARTITIONS", "9" * 20, "less than or equal to"),
        ("TOPIC_REPLICATION_FACTOR", "0", "greater than or equal to 1"),
        ("TOPIC_REPLICATION_FACTOR", "32768", "less than or equal to 32767"),
        ("KAFKA_DECLARE_TOPICS", "maybe", "must be a valid boolean"),
        ("EXTERNAL_LOGGER_URL", "logger", URL),
        ("EXTERNAL_LOGGER_URL", "ftp://logger/", URL),
        ("EXTERNAL_LOGGER_URL", "http://", URL),
        ("EXTERNAL_LOGGER_URL", "http:///logs", URL),
        ("EXTERNAL_LOGGER_URL", "http://logger:port/", URL),
        ("EXTERNAL_LOGGER_URL", "http://logger:70000/", URL),
        ("EXTERNAL_LOGGER_URL", "http://[::1/", URL),
        ("EXTERNAL_LOGGER_URL", "http://log ger/", URL),
        ("EXTERNAL_LOGGER_TIMEOUT_SECONDS", "0", "must be greater than 0"),
        ("EXTERNAL_LOGGER_TIMEOUT_SECONDS", "10s", "must be a valid number"),
        ("EXTERNAL_LOGGER_TIMEOUT_SECONDS", "301", "less than or equal to 300"),
        ("EXTERNAL_LOGGER_CONNECT_TIMEOUT_SECONDS", "-1", "must be greater than 0"),
        ("EXTERNAL_LOGGER_MAX_RATE", "0", "must be greater than or equal to 0.1"),
        ("EXTERNAL_LOGGER_MAX_RATE", "-1", "must be greater than or equal to 0.1"),
        ("EXTERNAL_LOGGER_MAX_RATE", "1000001", "must be less than or equal to 1000000"),
        ("EXTERNAL_LOGGER_MAX_RATE", "nan", "must be a finite number"),
        ("EXTERNAL_LOGGER_MAX_RATE", "abc", "must be a valid number"),
        ("EXTERNAL_LOGGER_BATCH_SIZE", "0", "must be greater than or equal to 1"),
        ("EXTERNAL_LOGGER_BATCH_SIZE", "10001", "must be less than or equal to 10000"),
        ("EXTERNAL_LOGGER_BATCH_BYTES", "0", "must be greater than or equal to 1"),
        ("EXTERNAL_LOGGER_BATCH_LINGER_MS", "-1", "must be greater than or equal to 0"),
        ("EXTERNAL_LOGGER_BATCH_LINGER_MS", "0.5", "must be a valid integer"),
        ("EXTERNAL_LOGGER_BATCH_FORMAT", "csv", "must be 'json_array' or 'ndjson'"),
        ("EXTERNAL_LOGGER_CERT_FILE", "missing.pem", NO_FILE),
        ("EXTERNAL_LOGGER_CERT_FILE", __file__, "must be a certificate and its key"),
        ("EXTERNAL_LOGGER_KEY_FILE", __file__, "needs EXTERNAL_LOGGER_CERT_FILE"),
        ("EXTERNAL_LOGGER_CA_FILE", "missing.pem", NO_FILE),
        ("EXTERNAL_LOGGER_CA_FILE", __file__, "must be a PEM file of certificates"),
        ("CONSUMER_RETRY_MAX_ATTEMPTS", "-1", "greater than or equal to 0"),
        ("CONSUMER_RETRY_INITIAL_INTERVAL_MS", "-1", "greater than or equal to 0"),
        ("CONSUMER_RETRY_INITIAL_INTERVAL_MS", "9" * 400, "less than or equal to"),
        ("CONSUMER_RETRY_MULTIPLIER", "0.5", "greater than or equal to 1"),
        ("CONSUMER_RETRY_MULTIPLIER", "inf", "must be a finite number"),
        ("CONSUMER_RETRY_MAX_INTERVAL_MS", "1e3x", "must be a valid integer"),
        ("MAX_IN_FLIGHT", "0", "greater than or equal to 1"),
        ("MAX_IN_FLIGHT", "1.5", "must be a valid integer"),
        ("MAX_IN_FLIGHT", "100001", "less than or equal to 100000"),
        ("BREAKER_FAILURE_THRESHOLD", "-1", "greater than or equal to 0"),
        ("BREAKER_FAILURE_THRESHOLD", "often", "must be a valid integer"),
        ("BREAKER_PROBE_INTERVAL_SECONDS", "0", "must be greater than or equal to 0.1"),
        ("BREAKER_PROBE_INTERVAL_SECONDS", "1e-9", "must be greater than or equal to 0.1"),
        ("FALLBACK_REPLAY_INTERVAL_SECONDS", "1e-9", "must be greater than or equal to 0.1"),
        ("FALLBACK_BACKOFF_BASE_SECONDS", "1e-9", "must be greater than or equal to 0.1"),
        ("FALLBACK_STATS_INTERVAL_SECONDS", "1e-9", "must be greater than or equal to 0.1"),
        ("FALLBACK_STATS_INTERVAL_SECONDS", "1e300", "must be less than or equal to 31536000"),
        ("DELIVERIES_RETENTION_HOURS", "1e-9", "must be greater than or equal to 0.001"),
        ("BREAKER_PROBE_INTERVAL_SECONDS", "inf", "must be a finite number"),
        ("SHUTDOWN_GRACE_SECONDS", "-1", "greater than or equal to 0"),
        ("SHUTDOWN_GRACE_SECONDS", "inf", "must be a finite number"),
        ("SHUTDOWN_GRACE_SECONDS", "nan", "must be a finite number"),
        ("PRODUCER_RETRIES", "0", "greater than or equal to 1"),
        ("PRODUCER_RETRIES", "99999999999", "less than or equal to"),
        ("PRODUCER_RETRY_BACKOFF_MS", "0", "greater than or equal to 1"),
        ("PRODUCER_REQUEST_TIMEOUT_MS", "900001", "less than or equal to 900000"),
        ("PRODUCER_DELIVERY_TIMEOUT_MS", "1", "greater than or equal to"),
        ("PRODUCER_MAX_IN_FLIGHT", "6", "less than or equal to 5"),
        ("LOG_FORMAT", "yaml", "must be 'text' or 'json'"),
        ("LOG_FORMAT", "JSON", "must be 'text' or 'json'"),
        *[
            (
                "WEB_HOST",
                value,
                "must be an IP address, an IPv6 one without brackets, or a host name",
            )
            for value in [
                "http://0.0.0.0",
                "127.0.0.1:6066",
                "[::1]",
                "::1:6066:",
                "my host",
                "300.1.1.1",
                "0",
                "a..b",
                "gr\u00fcn",
                "x" * 64,
                "a/b",
                "fe80::1%a b",
            ]
        ],
        ("WEB_PORT", "0", "greater than or equal to 1"),
        ("WEB_PORT", "65536", "less than or equal to 65535"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the variable, its value and what is allowed."""
    monkeypatch.setenv(name, value)

    text = _complaint()

    assert f"{name}={value[:200]!r}" in text
    assert allowed in text
    assert len(text) < 700
    assert set(re.findall(r"([A-Z_]{5,})=", text)) == {name}


@pytest.mark.parametrize(
    "url",
    [
        "proxy",
        "https://proxy:3128",
        "socks5://proxy:1080",
        "http://user:hunter2 @proxy:3128",
        "http://user:hunter2@proxy:port",
        "http://proxy:3128/path",
    ],
)
def test_a_bad_proxy_is_told_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy's URL may hold a password: what is allowed is told, and not what was given."""
    monkeypatch.setenv("EXTERNAL_LOGGER_PROXY", url)

    assert _complaint() == (
        "invalid settings: EXTERNAL_LOGGER_PROXY must be a URL like http://[user:password@]host:port"
    )


@pytest.mark.parametrize("missing", ["KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"])
@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_sasl_needs_a_user_and_a_password(
    protocol: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SASL protocol without credentials is told with what it needs."""
    for name in {"KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"} - {missing}:
        monkeypatch.setenv(name, "given")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", protocol)

    assert _complaint() == (
        f"invalid settings: KAFKA_SECURITY_PROTOCOL={protocol} needs KAFKA_SASL_USERNAME and "
        "KAFKA_SASL_PASSWORD"
    )


@pytest.mark.parametrize("missing", ["TOKEN_URL", "CLIENT_ID", "CLIENT_SECRET"])
def test_access_tokens_need_somebody_who_gives_them(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OAUTHBEARER without its settings is told with what it needs."""
    for name in {"TOKEN_URL", "CLIENT_ID", "CLIENT_SECRET"} - {missing}:
        monkeypatch.setenv(f"KAFKA_SASL_OAUTH_{name}", "http://given")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "OAUTHBEARER")

    assert _complaint() == (
        "invalid settings: KAFKA_SECURITY_PROTOCOL=SASL_SSL with KAFKA_SASL_MECHANISM=OAUTHBEARER "
        "needs KAFKA_SASL_OAUTH_TOKEN_URL, KAFKA_SASL_OAUTH_CLIENT_ID and "
        "KAFKA_SASL_OAUTH_CLIENT_SECRET"
    )


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("", "DATABASE_URL must be one of PostgreSQL, as DATABASE_PASSWORD is set"),
        ("sqlite:///x.db", "DATABASE_URL must be one of PostgreSQL, as DATABASE_PASSWORD is set"),
        ("postgresql://u:hunter2@h/d", "DATABASE_URL must hold no password, as DATABASE_PASSWORD"),
    ],
)
def test_a_database_password_needs_a_url_without_one(
    url: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password that goes nowhere, or beside another one, is a mistake."""
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("DATABASE_URL", url)

    text = _complaint()

    assert line in text
    assert "hunter2" not in text


def test_a_key_that_belongs_to_another_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate with another one's key is told at the start."""
    authority = trustme.CA()
    authority.issue_cert("one").cert_chain_pems[0].write_to_path("one.pem")
    authority.issue_cert("two").private_key_pem.write_to_path("two.key")
    for prefix in ("KAFKA_SSL", "DATABASE_SSL"):
        monkeypatch.setenv(f"{prefix}_CERT_FILE", "one.pem")
        monkeypatch.setenv(f"{prefix}_KEY_FILE", "two.key")
        monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d")
        text = _complaint()
        assert f"{prefix}_CERT_FILE='one.pem' with {prefix}_KEY_FILE" in text
        assert "KEY_VALUES_MISMATCH" in text
        monkeypatch.delenv(f"{prefix}_CERT_FILE")
        assert f"{prefix}_KEY_FILE='two.key' needs {prefix}_CERT_FILE" in _complaint()
        monkeypatch.delenv(f"{prefix}_KEY_FILE")


def test_several_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All wrong settings stand in the one line, so that nobody mends them one by one."""
    monkeypatch.setenv("MAX_IN_FLIGHT", "0")
    monkeypatch.setenv("EXTERNAL_LOGGER_URL", "logger")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "TLS")

    text = _complaint()

    assert re.findall(r"[A-Z_]+='\w+'", text) == [
        "KAFKA_SECURITY_PROTOCOL='TLS'",
        "EXTERNAL_LOGGER_URL='logger'",
        "MAX_IN_FLIGHT='0'",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"hunter2", "line 3 must be Name: value"),
        (b": hunter2", "line 3 must be Name: value"),
        (b"X Key: hunter2", "line 3 must be Name: value"),
        (b" X-Key: hunter2", "line 3 must be Name: value"),
        (b"X-Key : hunter2", "line 3 must be Name: value"),
        ("X-K\u00e9y: hunter2".encode(), "line 3 must be Name: value"),
        (b"X-Key: hunter2\x7f", "line 3 must be Name: value, of printable ASCII"),
        (b"X-Key: hunter2\rX-Evil: 1", "line 3 must be Name: value, of printable ASCII"),
        (b"X-Key: hunter2\x0bEvil", "line 3 must be Name: value, of printable ASCII"),
        (b"X-Key: hunter2\tEvil", "line 3 must be Name: value, of printable ASCII"),
        ("X-Key: hunter2\u00e9".encode(), "line 3 must be Name: value, of printable ASCII"),
        *((f"{name}: hunter2".encode(), f"line 3 has a header that is not yours to set: {name}")
          for name in ("Host", "content-length", "Content-Type", "TRANSFER-ENCODING", "Connection",
                       "Idempotency-Key", "traceparent", "Tracestate", "webhook-id",
                       "Webhook-Anything", "Accept-Encoding", "Expect")),
        (b"authorization: hunter2", "must have no Authorization, as EXTERNAL_LOGGER_TOKEN is set"),
        (b"X-Key: hunter2\xff", "not UTF-8"),
        (b"X-Key: hunter2\0", "not text"),
        (b"X-Key: " + b"hunter2" * 10_000, "over 65536 bytes"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_of_headers_is_told_by_its_line(
    line: bytes, problem: str, empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and the line are named, the value never."""
    (empty_environment / "headers").write_bytes(b"# ours\nX-Good: hunter2\n" + line + b"\n")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN", "token")
    monkeypatch.setenv("EXTERNAL_LOGGER_HEADERS_FILE", "headers")

    text = _complaint()

    assert problem in text
    assert "EXTERNAL_LOGGER_HEADERS_FILE='headers'" in text
    assert "hunter2" not in text
    assert "Evil" not in text


def test_a_file_of_headers_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the variable and the path."""
    monkeypatch.setenv("EXTERNAL_LOGGER_HEADERS_FILE", "missing")

    assert "EXTERNAL_LOGGER_HEADERS_FILE='missing' cannot be used (No such file" in _complaint()


@pytest.mark.parametrize(
    "value",
    [
        "hunter2",
        "whsec_",
        f"whsec_{'hunter2+' * 3}"[:-1],
        f"whsec_{'hunter2+' * 11}",
        f"whsec_{'hunter2-' * 4}",
        f"whsec_{'hunter2+' * 4}\n\nX-Evil: 1",
        f"{'hunter2+' * 4}h",
        f"{'hunter2+' * 4},",
        f"{'hunter2+' * 4},{'hunter2/' * 4},{'hunter2a' * 4}",
    ],
)
def test_signing_secrets_are_one_or_two_of_standard_webhooks(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is too short, too long or no base64, or a third one, is refused and never shown."""
    monkeypatch.setenv("EXTERNAL_LOGGER_SIGNING_SECRETS", value)

    text = _complaint()

    assert "EXTERNAL_LOGGER_SIGNING_SECRETS must be " in text
    assert "two separated by a comma" in text
    assert "hunter2" not in text
    assert "Evil" not in text


@pytest.mark.parametrize(
    "value", ["json", "text/", "a/b; c", "a/b\r\nX: 1", "a/b;c=d e", "a/\u00e9", 'a/b;c="d']
)
def test_a_content_type_must_be_one(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no media type, or would end the header's line, is refused."""
    monkeypatch.setenv("EXTERNAL_LOGGER_CONTENT_TYPE", value)

    assert "must be a media type like application/json" in _complaint()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EXTERNAL_LOGGER_TOKEN", "hunter2 hunter2"),
        ("EXTERNAL_LOGGER_TOKEN", "hunter2\nX-Evil: 1"),
        ("EXTERNAL_LOGGER_URL", "http://user:hunter2@logger/"),
        ("EXTERNAL_LOGGER_URL", "http://user:hunter2@logger:70000/"),
        ("EXTERNAL_LOGGER_URL", "http://user:hun/hunter2@logger/"),
        ("EXTERNAL_LOGGER_URL", "user:hunter2@logger"),
        ("KAFKA_BOOTSTRAP_SERVERS", "SASL_SSL://user:hunter2@kafka:9092"),
        ("KAFKA_BOOTSTRAP_SERVERS", "user:hunter2@kafka:9092"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092,user:hunter2==@kafka:9092"),
        ("EXTERNAL_LOGGER_URL", "https://user:hunter2==@logger/logs"),
        ("EXTERNAL_LOGGER_URL", "https://user:s3c=hunter2@logger/logs"),
        ("EXTERNAL_LOGGER_URL", "https://user:'hunter2' @logger:port/logs"),
        ("EXTERNAL_LOGGER_URL", f"https://user:{'hunter2' * 50}@logger/logs"),
        ("EXTERNAL_LOGGER_URL", "https://user:hunter2@hunter2@logger/logs"),
        ("ADVERTISED_URL", "https://user:hunter2==@worker"),
        ("KAFKA_SASL_OAUTH_TOKEN_URL", "https://user:hunter2==@identity"),
        ("DATABASE_URL", "u:hunter2==@host/db"),
        ("DATABASE_URL", "u:hunter2@host://db"),
        ("DATABASE_URL", "mysql://u:hunter2==@host/db"),
        ("DATABASE_URL_FILE", "postgresql://u:hunter2==@host/db"),
    ],
)
def test_no_secret_is_told(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with a secret is told without it, also where a URL holds one."""
    monkeypatch.setenv(name, value)

    text = _complaint()

    assert name in text
    assert "hunter2" not in text
    assert "Evil" not in text


@pytest.mark.parametrize("value", ["foo", "mysql://u:p@h/d"])
def test_the_form_of_a_database_url_is_told_in_full(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of our own example nothing is taken for a secret: who reads it learns the form."""
    monkeypatch.setenv("DATABASE_URL", value)

    assert "postgresql+asyncpg://user:password@host:5432/database" in _complaint()


def test_what_is_shown_of_a_value_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme and what stands behind the password, to find the value by."""
    monkeypatch.setenv("EXTERNAL_LOGGER_URL", "https://u:p@ss@logger/logs")

    assert "EXTERNAL_LOGGER_URL='https://[redacted]@logger/logs' must hold no user" in _complaint()


def test_a_dot_env_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another user is told in one line, whichever way the log is written."""

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)

    assert load_log_format() == "text"
    assert _complaint() == "invalid settings: .env cannot be read: Permission denied"


def test_a_mistake_in_dot_env_is_told_with_its_value(empty_environment: Path) -> None:
    """A bad value in the file is told like one in the environment."""
    (empty_environment / ".env").write_text("MAX_IN_FLIGHT=many\nKAFKA_SASL_PASSWORD=hunter2\n")

    text = _complaint()

    assert "MAX_IN_FLIGHT='many' must be a valid integer" in text
    assert "hunter2" not in text


def test_a_dot_env_that_is_no_text(empty_environment: Path) -> None:
    """A file that is not UTF-8 is told in one line, without what stands in it."""
    (empty_environment / ".env").write_bytes(b"EXTERNAL_LOGGER_TOKEN=caf\xe9\n")

    text = _complaint()

    assert ".env" in text
    assert "UTF-8" in text
    assert "caf" not in text
