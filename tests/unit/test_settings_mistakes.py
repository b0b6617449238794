"""How a mistake in the settings is reported: in one line, without secrets."""

import errno
import re
from pathlib import Path

import pytest
import trustme

from order_relay.errors import InvalidSettings
from order_relay.settings import Settings, load_settings
from order_relay.settings.settings import MAX_INT, load_log_format

# The smallest and the largest value of each number; 0 is too small where the first is ABOVE_0.
ABOVE_0 = "greater than 0"
NUMBERS: dict[str, tuple[float | str, float]] = {
    "TOPIC_PARTITIONS": (1, 100_000), "TOPIC_REPLICATION_FACTOR": (1, 32767),
    "KAFKA_SESSION_TIMEOUT_MS": (1000, 1_800_000),
    "EXTERNAL_LOGGER_TIMEOUT_SECONDS": (ABOVE_0, 300),
    "EXTERNAL_LOGGER_CONNECT_TIMEOUT_SECONDS": (ABOVE_0, 300),
    "EXTERNAL_LOGGER_MAX_RATE": (0.1, 1_000_000), "EXTERNAL_LOGGER_BATCH_SIZE": (1, 10_000),
    "EXTERNAL_LOGGER_BATCH_BYTES": (1, MAX_INT), "EXTERNAL_LOGGER_BATCH_LINGER_MS": (0, 60_000),
    "CONSUMER_RETRY_MAX_ATTEMPTS": (0, 1000), "CONSUMER_RETRY_INITIAL_INTERVAL_MS": (0, MAX_INT),
    "CONSUMER_RETRY_MULTIPLIER": (1, 1000), "CONSUMER_RETRY_MAX_INTERVAL_MS": (0, MAX_INT),
    "DLQ_AUTO_REDRIVE_RATE": (0.1, 1_000_000), "MAX_IN_FLIGHT": (1, 100_000),
    "BREAKER_FAILURE_THRESHOLD": (0, MAX_INT), "BREAKER_PROBE_INTERVAL_SECONDS": (0.1, 86_400),
    "SHUTDOWN_GRACE_SECONDS": (0, 86_400), "PRODUCER_RETRIES": (1, MAX_INT),
    "PRODUCER_RETRY_BACKOFF_MS": (1, 300_000), "PRODUCER_REQUEST_TIMEOUT_MS": (1, 900_000),
    "PRODUCER_DELIVERY_TIMEOUT_MS": (10, MAX_INT), "PRODUCER_MAX_IN_FLIGHT": (1, 5),
    "FALLBACK_REPLAY_INTERVAL_SECONDS": (0.1, 86_400), "FALLBACK_MAX_RETRY": (1, 1000),
    "FALLBACK_BACKOFF_BASE_SECONDS": (0.1, 86_400),
    "FALLBACK_STATS_INTERVAL_SECONDS": (0.1, 31_536_000), "FALLBACK_RETENTION_DAYS": (0, 36_500),
    "WEB_PORT": (1, 65535), "DELIVERIES_RETENTION_HOURS": (0.001, 87_600),
    "DELIVERIES_MAX_ENTRIES": (1, 10**30),
}  # fmt: skip
NAME = "must be 1 to 249 of the characters A-Z a-z 0-9 . _ -"
URL = "must be an http:// or https:// URL"
NO_FILE = "does not point to a file"
HOST = "must be an IP address, an IPv6 one without brackets, or a host name"
PEM = "must be a PEM file of certificates"
SERVERS = (
    "kafka", ",", ":9092", "kafka:", "kafka:port", "kafka:0", "kafka:65536", "kafka:-1",
    "kafka:9092,kafka", "kafka:\u00b2", "kafka:\u0669\u0660\u0669\u0662", "PLAINTEXT://kafka:9092",
    "ka fka:9092", "kafka\t:9092", "kafka?x:9092", "::1:9092", "[::1:9092", "[1.2]:9092", "[]:9092",
    "[127.0.0.1]:9092", "[::1%a b]:9092",
)  # fmt: skip
HOSTS = (
    "http://0.0.0.0", "127.0.0.1:6066", "[::1]", "::1:6066:", "my host", "300.1.1.1", "0", "a..b",
    "gr\u00fcn", "x" * 64, "a/b", "fe80::1%a b",
)  # fmt: skip
URLS = (
    "logger", "ftp://logger/", "http://", "http:///logs", "http://logger:port/",
    "http://logger:70000/", "http://[::1/", "http://log ger/",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("empty_environment")


def complaint() -> str:
    """The one line that says what is wrong with the settings; it has no secret."""
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    text = str(caught.value)
    assert text.startswith("invalid settings: ")
    assert "\n" not in text
    assert "hunter2" not in text
    assert "Evil" not in text
    return text


def _check(name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    text = complaint()
    assert f"{name}={value[:200]!r}" in text
    assert allowed in text
    assert len(text) < 700
    assert set(re.findall(r"([A-Z_]{5,})=", text)) == {name}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_bounds_is_told_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the variable, its value and the bound; the bounds themselves are allowed."""
    smallest, largest = NUMBERS[name]
    kind = Settings.model_fields[name.lower()].annotation
    if smallest == ABOVE_0:
        _check(name, "0", ABOVE_0, monkeypatch)
        _check(name, "-1", ABOVE_0, monkeypatch)
    else:
        assert isinstance(smallest, int | float)
        below = smallest - 1 if kind is int or smallest == 0 else smallest * 0.99
        _check(name, str(below), f"greater than or equal to {smallest}", monkeypatch)
        monkeypatch.setenv(name, str(smallest))
        assert getattr(load_settings(), name.lower()) == smallest
    if name != "DELIVERIES_MAX_ENTRIES":  # without an upper bound
        _check(name, f"{largest + 1:.0f}", f"less than or equal to {largest}", monkeypatch)
        _check(name, "9" * 400 if kind is int else "1e300", "less than or equal", monkeypatch)
    monkeypatch.setenv(name, str(largest))
    assert getattr(load_settings(), name.lower()) == largest
    for value, allowed in (
        {"1.5": "a valid integer", "many": "a valid integer", "1e3x": "a valid integer"}
        if kind is int
        else {"nan": "a finite number", "inf": "a finite number", "10s": "a valid number"}
    ).items():
        _check(name, value, f"must be {allowed}", monkeypatch)


def test_all_numbers_are_tried() -> None:
    """A new number needs its bounds here."""
    kinds = {name.upper(): str(field.annotation) for name, field in Settings.model_fields.items()}
    assert [name for name, kind in kinds.items() if "int" in kind or "float" in kind] == [*NUMBERS]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(("KAFKA_BOOTSTRAP_SERVERS", value, "host:port") for value in SERVERS),
        ("KAFKA_SECURITY_PROTOCOL", "TLS", "must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or"),
        ("KAFKA_SASL_MECHANISM", "GSSAPI", "'SCRAM-SHA-256', 'SCRAM-SHA-512' or 'OAUTHBEARER'"),
        ("KAFKA_SASL_OAUTH_TOKEN_URL", "identity", URL),
        *(("KAFKA_SASL_OAUTH_EXTENSIONS", value, "must be name=value, several separated by")
          for value in ["pool", "pool=", "=1", "po-ol=1", "auth=1", "a=1,,b=2", "a=1 2"]),
        *((f"{name}_CA_FILE", __file__, PEM)
          for name in ["KAFKA_SASL_OAUTH", "KAFKA_SSL", "DATABASE_SSL", "EXTERNAL_LOGGER"]),
        ("KAFKA_SSL_CA_FILE", "missing.pem", NO_FILE),
        ("EXTERNAL_LOGGER_CA_FILE", "missing.pem", NO_FILE),
        ("DATABASE_SSL_CERT_FILE", "missing.pem", NO_FILE),
        ("KAFKA_SSL_CERT_FILE", "missing.pem", NO_FILE),
        ("EXTERNAL_LOGGER_CERT_FILE", "missing.pem", NO_FILE),
        ("KAFKA_SSL_KEY_FILE", ".", NO_FILE),
        ("KAFKA_SSL_KEY_FILE", __file__, "needs KAFKA_SSL_CERT_FILE"),
        ("EXTERNAL_LOGGER_KEY_FILE", __file__, "needs EXTERNAL_LOGGER_CERT_FILE"),
        ("KAFKA_SSL_CERT_FILE", __file__, "must be a certificate, its key and the key's password"),
        ("EXTERNAL_LOGGER_CERT_FILE", __file__, "must be a certificate and its key"),
        *(("ORDER_PAID_TOPIC", value, NAME) for value in ["order paid", "..", "x" * 250]),
        ("DLQ_TOPIC", "dlq/1", NAME),
        ("DLQ_TOPIC", "order-paid-events", "must differ from ORDER_PAID_TOPIC"),
        *(("DLQ_AUTO_REDRIVE", value, "waits such as 10m,1h,6h")
          for value in ["10", "1.5h", "0s", "10m;1h", "-1h", ",", "1w", "1s," * 21]),
        ("CONSUMER_GROUP_ID", "gr\u00fcppe", NAME),
        ("KAFKA_DECLARE_TOPICS", "maybe", "must be true or false"),
        *(("EXTERNAL_LOGGER_URL", value, URL) for value in URLS),
        ("EXTERNAL_LOGGER_BATCH_FORMAT", "csv", "must be 'json_array' or 'ndjson'"),
        ("LOG_FORMAT", "yaml", "must be 'text' or 'json'"),
        ("LOG_FORMAT", "JSON", "must be 'text' or 'json'"),
        ("TRACING", "on", "must be 'off' or 'otlp'"),
        *(("WEB_HOST", value, HOST) for value in HOSTS),
        *(("WEB_ALLOWED_HOSTS", value, "host names without ports")
          for value in ["relay.example.com:443", "http://relay", ", ,", "a b"]),
        *(("EXTERNAL_LOGGER_CONTENT_TYPE", value, "must be a media type like application/json")
          for value in ["json", "text/", "a/b; c", "a/b\r\nX: 1", "a/b;c=d e", "a/\u00e9",
                        'a/b;c="d']),
    ],
)  # fmt: skip
def test_a_bad_setting_is_told_in_one_line(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the variable, its value and what is allowed."""
    _check(name, value, allowed, monkeypatch)


@pytest.mark.parametrize("oauth", [False, True])
@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_sasl_needs_credentials(
    protocol: str, oauth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one is missing, the line names the protocol and all it needs."""
    needed = {"KAFKA_SASL_USERNAME": "us", "KAFKA_SASL_PASSWORD": "hunter2"}
    line = f"KAFKA_SECURITY_PROTOCOL={protocol} needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
    if oauth:
        monkeypatch.setenv("KAFKA_SASL_MECHANISM", "OAUTHBEARER")
        needed = {f"KAFKA_SASL_OAUTH_{name}": "http://hunter2"
                  for name in ("TOKEN_URL", "CLIENT_ID", "CLIENT_SECRET")}  # fmt: skip
        line = (
            f"KAFKA_SECURITY_PROTOCOL={protocol} with KAFKA_SASL_MECHANISM=OAUTHBEARER needs "
            "KAFKA_SASL_OAUTH_TOKEN_URL, KAFKA_SASL_OAUTH_CLIENT_ID and "
            "KAFKA_SASL_OAUTH_CLIENT_SECRET"
        )
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", protocol)
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    load_settings()
    for missing, value in needed.items():
        monkeypatch.delenv(missing)
        assert complaint() == f"invalid settings: {line}"
        monkeypatch.setenv(missing, value)


def test_a_key_that_belongs_to_another_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate with another one's key is refused."""
    authority = trustme.CA()
    authority.issue_cert("one").cert_chain_pems[0].write_to_path("one.pem")
    authority.issue_cert("two").private_key_pem.write_to_path("two.key")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d")
    for prefix in ("KAFKA_SSL", "DATABASE_SSL", "EXTERNAL_LOGGER"):
        monkeypatch.setenv(f"{prefix}_CERT_FILE", "one.pem")
        monkeypatch.setenv(f"{prefix}_KEY_FILE", "two.key")
        text = complaint()
        assert f"{prefix}_CERT_FILE='one.pem' with {prefix}_KEY_FILE" in text
        assert "KEY_VALUES_MISMATCH" in text
        monkeypatch.delenv(f"{prefix}_CERT_FILE")
        assert f"{prefix}_KEY_FILE='two.key' needs {prefix}_CERT_FILE" in complaint()
        monkeypatch.delenv(f"{prefix}_KEY_FILE")


def test_several_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All wrong settings are in the one line, so that they can be fixed at once."""
    monkeypatch.setenv("MAX_IN_FLIGHT", "0")
    monkeypatch.setenv("EXTERNAL_LOGGER_URL", "logger")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "TLS")

    assert re.findall(r"[A-Z_]+='\w+'", complaint()) == [
        "KAFKA_SECURITY_PROTOCOL='TLS'",
        "EXTERNAL_LOGGER_URL='logger'",
        "MAX_IN_FLIGHT='0'",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        *((line, "line 3 must be Name: value, of printable ASCII")
          for line in (b"hunter2", b": hunter2", b"X Key: hunter2", b" X-Key: hunter2",
                       b"X-Key : hunter2", "X-K\u00e9y: hunter2".encode(), b"X-Key: hunter2\x7f",
                       b"X-Key: hunter2\rX-Evil: 1", b"X-Key: hunter2\x0bEvil",
                       b"X-Key: hunter2\tEvil", "X-Key: hunter2\u00e9".encode())),
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
    line: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and the line are named, the value never."""
    Path("headers").write_bytes(b"# ours\nX-Good: hunter2\n" + line + b"\n")
    monkeypatch.setenv("EXTERNAL_LOGGER_TOKEN", "token")
    monkeypatch.setenv("EXTERNAL_LOGGER_HEADERS_FILE", "headers")

    text = complaint()

    assert problem in text
    assert "EXTERNAL_LOGGER_HEADERS_FILE='headers'" in text


PROXY = "EXTERNAL_LOGGER_PROXY must be a URL like http://[user:password@]host:port"
SIGNING = (
    "EXTERNAL_LOGGER_SIGNING_SECRETS must be whsec_ and base64 of 24 to 64 bytes, or two separ"
)
EXAMPLE = "postgresql+asyncpg://user:password@host:5432/database"


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("EXTERNAL_LOGGER_TOKEN", ["hunter2 hunter2", "hunter2\nX-Evil: 1"], "visible ASCII"),
        ("EXTERNAL_LOGGER_URL", ["http://user:hunter2@logger/",
                                 "https://user:hunter2==@logger/logs",
                                 "https://user:s3c=hunter2@logger/logs",
                                 "https://user:hunter2@hunter2@logger/logs"], "must hold no user"),
        ("EXTERNAL_LOGGER_URL", ["http://user:hunter2@logger:70000/",
                                 "http://user:hun/hunter2@logger/", "user:hunter2@logger",
                                 "https://user:'hunter2' @logger:port/logs",
                                 f"https://user:{'hunter2' * 50}@log ger/logs"], "must be an http"),
        # The scheme and what follows the password, to find the value by.
        ("EXTERNAL_LOGGER_URL", ["https://u:hunter@2@logger/logs"],
         "EXTERNAL_LOGGER_URL='https://[redacted]@logger/logs' must hold no user"),
        ("ADVERTISED_URL", ["https://user:hunter2==@worker"], "must hold no user"),
        ("KAFKA_SASL_OAUTH_TOKEN_URL", ["https://user:hunter2==@identity"], "must hold no user"),
        ("KAFKA_BOOTSTRAP_SERVERS", ["SASL_SSL://user:hunter2@kafka:9092",
                                     "user:hunter2@kafka:9092",
                                     "kafka:9092,user:hunter2==@kafka:9092"], "must be host:port"),
        # Nothing of our own example is redacted: it shows the form.
        ("DATABASE_URL", ["foo", "u:hunter2==@host/db", "u:hunter2@host://db",
                          "postgresql://u:hunter2@host:port/db", "mysql://u:hunter2==@host/db"],
         EXAMPLE),
        ("DATABASE_URL", ["mysql://u:hunter2==@host/db"], "has the unknown driver 'mysql': use"),
        ("DATABASE_URL_FILE", ["postgresql://u:hunter2==@host/db"], "cannot be used (No such file"),
        ("EXTERNAL_LOGGER_HEADERS_FILE", ["missing"],
         "EXTERNAL_LOGGER_HEADERS_FILE='missing' cannot be used (No such file"),
        ("EXTERNAL_LOGGER_PROXY", ["proxy", "https://proxy:3128", "socks5://proxy:1080",
                                   "http://user:hunter2 @proxy:3128",
                                   "http://user:hunter2@proxy:port", "http://proxy:3128/path"],
         PROXY),
        ("EXTERNAL_LOGGER_SIGNING_SECRETS",
         ["hunter2", "whsec_", f"whsec_{'hunter2+' * 3}"[:-1], f"whsec_{'hunter2+' * 11}",
          f"whsec_{'hunter2-' * 4}", f"whsec_{'hunter2+' * 4}\n\nX-Evil: 1", f"{'hunter2+' * 4}h",
          f"{'hunter2+' * 4},", f"{'hunter2+' * 4},{'hunter2/' * 4},{'hunter2a' * 4}"], SIGNING),
    ],
)  # fmt: skip
def test_no_secret_is_told(
    name: str, values: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in a secret is reported without it, also if a URL has one."""
    for value in values:
        monkeypatch.setenv(name, value)
        text = complaint()
        assert name in text
        assert said in text
        assert "hunter" not in text


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
    """A password that is not used, or beside another one, is a mistake."""
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("DATABASE_URL", url)

    assert line in complaint()


@pytest.mark.parametrize(
    "proxy",
    ["http://us:hunter2@proxy:port", "http://us:hunter2@[::1", "socks5://us:hunter2@proxy:1080"],
)
def test_a_proxy_of_the_environment_that_cannot_be_used(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named without its password."""
    monkeypatch.setenv("EXTERNAL_LOGGER_URL", "https://logger.test/logs")
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    told = complaint()

    assert "HTTPS_PROXY must be a URL like http://[user:password@]host:port" in told
    assert "hunter2" not in told


def test_a_file_of_tls_beside_one_in_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is unclear which is meant."""
    trustme.CA().cert_pem.write_to_path("ca.pem")
    monkeypatch.setenv("DATABASE_SSL_CA_FILE", "ca.pem")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d?sslrootcert=other.pem")

    assert "must not have sslrootcert, as DATABASE_SSL_CA_FILE is set" in complaint()


def test_a_dot_env_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another user is reported in one line."""

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)

    assert load_log_format() == "text"
    assert complaint() == "invalid settings: .env cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"MAX_IN_FLIGHT=many\nKAFKA_SASL_PASSWORD=hunter2\n", "MAX_IN_FLIGHT='many' must be a va"),
        (b"EXTERNAL_LOGGER_TOKEN=hunter2\xe9\n", "invalid settings: .env must be UTF-8 text: "),
        # python-dotenv would skip these, and a default would be used.
        (b'MAX_IN_FLIGHT=7\nAPI_TOKEN="hunter2\n', ".env, line 2 must be NAME=value; a value that"),
        (b"\n# a note\nAPI_TOKEN: hunter2\n", ".env, line 3 must be NAME=value"),
        (b"API TOKEN=hunter2\n", ".env, line 1 must be NAME=value"),
    ],
)
def test_a_mistake_in_dot_env(content: bytes, said: str) -> None:
    """A bad value is reported as one of the environment is, and so is a file that is not text."""
    Path(".env").write_bytes(content)

    found = complaint()
    assert said in found
    assert "hunter2" not in found


def test_a_dot_env_that_is_no_file() -> None:
    """It would be ignored."""
    Path(".env").mkdir()

    assert complaint() == "invalid settings: .env must be a file"
