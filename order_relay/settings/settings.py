"""All settings of the relay, read once from the environment and ``.env``.

No other module reads the environment. ``.env.example`` lists every key, its default and its unit.
"""

from __future__ import annotations

import os
import socket
from base64 import b64encode
from pathlib import Path
from typing import Any, Literal, Self

from dotenv.parser import parse_stream
from pydantic import (
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from sqlalchemy import make_url
from yarl import URL

from order_relay.errors import InvalidSettings
from order_relay.settings import rules
from order_relay.settings.rules import (
    Authorities,
    ContentType,
    Extensions,
    Host,
    HostNames,
    HttpUrl,
    Name,
    ProxyUrl,
    RequestHeaders,
    Servers,
    SigningSecrets,
    Token,
    Waits,
)
from order_relay.settings.secret_files import (
    ENV_FILE,
    EnvironmentSettings,
    describe,
    secret_fields,
)

# The largest 32-bit signed value, which is the largest of Kafka's clients' settings.
MAX_INT = 2**31 - 1
LogFormat = Literal["text", "json"]

# Shorter values of headers, such as a region, are no secrets: they also occur inside other words.
MIN_SECRET_HEADER_LENGTH = 6
SASL_CREDENTIALS = ("kafka_sasl_username", "kafka_sasl_password")
OAUTH_CREDENTIALS = (
    "kafka_sasl_oauth_token_url",
    "kafka_sasl_oauth_client_id",
    "kafka_sasl_oauth_client_secret",
)


class Settings(EnvironmentSettings):
    """The relay's settings; immutable."""

    # --- Kafka ------------------------------------------------------------------------------
    kafka_bootstrap_servers: Servers = "localhost:19092,localhost:29092,localhost:39092"
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = (
        "PLAIN"
    )
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_sasl_oauth_token_url: HttpUrl | None = None
    kafka_sasl_oauth_client_id: str | None = None
    kafka_sasl_oauth_client_secret: SecretStr | None = None
    kafka_sasl_oauth_scope: str | None = None
    kafka_sasl_oauth_extensions: Extensions | None = None
    kafka_sasl_oauth_ca_file: Authorities | None = None
    kafka_ssl_ca_file: Authorities | None = None
    kafka_ssl_cert_file: FilePath | None = None
    kafka_ssl_key_file: FilePath | None = None
    kafka_ssl_key_password: SecretStr | None = None
    order_paid_topic: Name = "order-paid-events"
    dlq_topic: Name = "order-paid-events.DLQ"
    topic_partitions: int = Field(default=3, ge=1, le=100_000)
    topic_replication_factor: int = Field(default=3, ge=1, le=32767)
    kafka_declare_topics: bool = True
    consumer_group_id: Name = "logging-consumer-group"
    # The upper bound is the brokers' default of group.max.session.timeout.ms.
    kafka_session_timeout_ms: int = Field(default=30_000, ge=1_000, le=1_800_000)

    # --- consumers ----------------------------------------------------------------------------
    consumers: str | None = None
    consumer_folders: str | None = None

    # --- the external logger ----------------------------------------------------------------
    external_logger_url: HttpUrl = "http://localhost:3000/logs"
    external_logger_timeout_seconds: float = Field(default=10.0, gt=0, le=300)
    external_logger_connect_timeout_seconds: float = Field(default=5.0, gt=0, le=300)
    # Below one request in 10 s the worker would look stuck. The upper bound is beyond any worker.
    external_logger_max_rate: float | None = Field(default=None, ge=0.1, le=1_000_000)
    external_logger_batch_size: int = Field(default=1, ge=1, le=10_000)
    external_logger_batch_bytes: int = Field(default=1_000_000, ge=1, le=MAX_INT)
    external_logger_batch_linger_ms: int = Field(default=20, ge=0, le=60_000)
    external_logger_batch_format: Literal["json_array", "ndjson"] = "json_array"
    # None: application/json; for batches the type of their format.
    external_logger_content_type: ContentType | None = None
    external_logger_token: Token | None = None
    # Secret, since headers may contain keys. One header a line, so mostly given as a file.
    external_logger_headers: RequestHeaders | None = None
    external_logger_signing_secrets: SigningSecrets | None = None
    external_logger_ca_file: Authorities | None = None
    external_logger_cert_file: FilePath | None = None
    external_logger_key_file: FilePath | None = None
    # Secret, since it may hold a password.
    external_logger_proxy: ProxyUrl | None = None

    # --- delivery ---------------------------------------------------------------------------
    consumer_retry_max_attempts: int = Field(default=3, ge=0, le=1000)
    consumer_retry_initial_interval_ms: int = Field(default=1000, ge=0, le=MAX_INT)
    consumer_retry_multiplier: float = Field(default=2.0, ge=1.0, le=1000)
    consumer_retry_max_interval_ms: int = Field(default=10_000, ge=0, le=MAX_INT)
    dlq_auto_redrive: Waits | None = None
    dlq_auto_redrive_rate: float = Field(default=10.0, ge=0.1, le=1_000_000)
    max_in_flight: int = Field(default=256, ge=1, le=100_000)
    breaker_failure_threshold: int = Field(default=20, ge=0, le=MAX_INT)
    breaker_probe_interval_seconds: float = Field(default=5.0, ge=0.1, le=86_400)
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=86_400)

    # --- the producer (names and values of the Kafka producer configuration) -----------------
    # Idempotence needs at least 1 (KIP-98).
    producer_retries: int = Field(default=3, ge=1, le=MAX_INT)
    producer_retry_backoff_ms: int = Field(default=1000, ge=1, le=300_000)
    producer_request_timeout_ms: int = Field(default=30_000, ge=1, le=900_000)
    # librdkafka requires more than the producer's linger.
    producer_delivery_timeout_ms: int = Field(default=120_000, ge=10, le=MAX_INT)
    # Idempotence needs at most 5 (KIP-98).
    producer_max_in_flight: int = Field(default=5, ge=1, le=5)

    # --- the fallback table -----------------------------------------------------------------
    # These come before DATABASE_URL, whose validator adds them to the URL.
    database_password: SecretStr | None = None
    database_ssl_ca_file: Authorities | None = None
    database_ssl_cert_file: FilePath | None = None
    database_ssl_key_file: FilePath | None = None
    # Secret, since it may hold a password.
    database_url: SecretStr = SecretStr("sqlite+aiosqlite:///order-relay.db")
    fallback_replay_interval_seconds: float = Field(default=60.0, ge=0.1, le=86_400)
    fallback_max_retry: int = Field(default=3, ge=1, le=1000)
    fallback_backoff_base_seconds: float = Field(default=60.0, ge=0.1, le=86_400)
    fallback_stats_interval_seconds: float = Field(default=3600.0, ge=0.1, le=31_536_000)
    fallback_retention_days: float = Field(default=7.0, ge=0, le=36_500)

    # --- authorization of HTTP requests that change something ---------------------------------
    api_token: Token | None = None

    # --- the worker's own web server ---------------------------------------------------------
    web_host: Host = "127.0.0.1"
    web_port: int = Field(default=6066, ge=1, le=65535)
    # Host names that browsers may use for it, such as an ingress's.
    web_allowed_hosts: HostNames | None = None
    # Where other workers reach this server; by default the address that it listens on.
    advertised_url: HttpUrl | None = None
    # Where the runbook page is served; the console links alerts to its sections.
    runbook_url: HttpUrl | None = None

    # --- the deliveries table ------------------------------------------------------------------
    deliveries_store: Literal["memory", "rocksdb", "off"] = "memory"
    deliveries_retention_hours: float = Field(default=24.0, ge=0.001, le=24 * 3650)
    deliveries_max_entries: int = Field(default=1_000_000, ge=1)
    data_dir: Path = Path("order-relay-data")

    # --- logs -------------------------------------------------------------------------------
    log_format: LogFormat = "text"

    # --- tracing ----------------------------------------------------------------------------
    tracing: Literal["off", "otlp"] = "off"

    @field_validator("external_logger_headers", mode="after")
    @classmethod
    def _check_one_authorization(
        cls, value: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        names = {name.lower() for name, _ in rules.parse_headers(value)}
        if "authorization" in names and info.data.get("external_logger_token") is not None:
            raise ValueError("must have no Authorization, as EXTERNAL_LOGGER_TOKEN is set")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _complete_database_url(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        password = info.data.get("database_password")
        files = {name: str(file) for name in rules.LIBPQ_NAMES if (file := info.data.get(name))}
        return SecretStr(rules.complete_database_url(_text(value), _text(password), files))

    def check_together(self) -> Self:
        """Check settings that depend on each other.

        Raises:
            ValueError: Two contradict each other.
        """
        if self.kafka_security_protocol.startswith("SASL"):
            oauth = self.uses_access_tokens
            names = OAUTH_CREDENTIALS if oauth else SASL_CREDENTIALS
            if any(getattr(self, name) is None for name in names):
                mechanism = " with KAFKA_SASL_MECHANISM=OAUTHBEARER" if oauth else ""
                *most, last = (name.upper() for name in names)
                raise ValueError(
                    f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol}{mechanism} needs "
                    f"{', '.join(most)} and {last}"
                )
        for prefix in ("KAFKA_SSL", "DATABASE_SSL", "EXTERNAL_LOGGER"):
            name = prefix.lower()
            rules.check_client_certificate(
                prefix,
                getattr(self, f"{name}_cert_file"),
                getattr(self, f"{name}_key_file"),
                _text(getattr(self, f"{name}_key_password", None)),
            )
        if self.dlq_topic == self.order_paid_topic:
            raise ValueError(f"DLQ_TOPIC={self.dlq_topic!r} must differ from ORDER_PAID_TOPIC")
        derived = (
            ("DLQ_TOPIC", self.dlq_topic),
            ("CONSUMER_GROUP_ID", self.deliveries_changelog_topic),
        )
        for name, topic in derived:
            if len(topic) > rules.MAX_TOPIC_LENGTH:
                raise ValueError(
                    f"{name}: the topic {topic!r} would have {len(topic)} characters, and Kafka "
                    f"allows {rules.MAX_TOPIC_LENGTH}"
                )
        _ = self.target_proxy  # it raises
        return self

    _check_together = model_validator(mode="after")(check_together)

    @property
    def target_proxy(self) -> SecretStr | None:
        """The proxy for POSTs to the target: EXTERNAL_LOGGER_PROXY, or the environment's."""
        given = self.external_logger_proxy
        return given or rules.proxy_of_environment(self.external_logger_url)

    @property
    def target_headers(self) -> tuple[tuple[str, str], ...]:
        """Names and values of additional headers for each POST to the target."""
        return rules.parse_headers(self.external_logger_headers)

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """The keys that sign each POST to the target."""
        return tuple(rules.parse_signing_secrets(self.external_logger_signing_secrets).values())

    @property
    def own_url(self) -> URL:
        """The URL at which other workers reach this worker's web server."""
        if self.advertised_url is not None:
            return URL(self.advertised_url)
        host = self.web_host
        if rules.is_every_address(host):  # others cannot connect to 0.0.0.0
            host = socket.gethostname()
        return URL.build(scheme="http", host=host, port=self.web_port)

    @property
    def web_names(self) -> tuple[str, ...]:
        """The host names of this worker's web server."""
        allowed = rules.split(self.web_allowed_hosts or "")
        return (*allowed, self.own_url.host or "", self.web_host, socket.gethostname())

    @property
    def deliveries_changelog_topic(self) -> str:
        """The changelog topic of the table ``deliveries``, named as Faust names them."""
        return f"{self.consumer_group_id}-deliveries-changelog"

    @property
    def uses_access_tokens(self) -> bool:
        """Whether Kafka's clients authenticate with tokens of an identity provider."""
        return (
            self.kafka_security_protocol.startswith("SASL")
            and self.kafka_sasl_mechanism == "OAUTHBEARER"
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secret values that are set, to redact them in text that comes from outside."""
        whole = {name: _text(getattr(self, name)) for name in secret_fields(type(self))}
        # Of these only parts are secret.
        database = make_url(whole.pop("database_url") or "")
        proxy = URL(_text(self.target_proxy))
        signing = rules.parse_signing_secrets(self.external_logger_signing_secrets)
        for name in ("proxy", "signing_secrets", "headers"):
            del whole[f"external_logger_{name}"]
        secrets = [*whole.values(), database.password, proxy.password, *signing]
        if proxy.user is not None:
            secrets.append(b64encode(f"{proxy.user}:{proxy.password}".encode()).decode())
        for name, text in self.target_headers:
            if len(text) >= MIN_SECRET_HEADER_LENGTH:
                secrets.append(text)
            if name.lower() == "authorization":  # <scheme> <credentials>
                secrets.append(text.partition(" ")[2])
        return tuple(secret for secret in secrets if secret)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment and ``.env``.

    Args:
        overrides: Values that override the environment, by field name.

    Raises:
        InvalidSettings: A setting is wrong; one line names each variable, its value and what is
            allowed.
    """
    try:
        _check_env_file()
        return Settings(**overrides)
    except ValidationError as error:
        raise InvalidSettings(describe(error, Settings)) from None
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"invalid settings: .env must be UTF-8 text: {error}") from None
    except OSError as error:
        raise InvalidSettings(f"invalid settings: .env cannot be read: {error.strerror}") from None


def _check_env_file() -> None:
    """Refuse lines that python-dotenv only warns of and skips: a default would be used instead."""
    path = Path(ENV_FILE)
    if path.is_fifo() or not os.path.lexists(path):
        return
    if not path.is_file():
        raise InvalidSettings(f"invalid settings: {ENV_FILE} must be a file")
    with path.open(encoding="utf-8") as lines:
        for one in parse_stream(lines):
            if one.error:
                raise InvalidSettings(
                    f"invalid settings: {ENV_FILE}, line {one.original.line} must be NAME=value; "
                    "a value that begins with a quote must end with it"
                )


class _LogSettings(EnvironmentSettings):
    log_format: LogFormat = "text"


def load_log_format() -> LogFormat:
    """Read only LOG_FORMAT, to report errors in other settings with it; ``text`` if it is wrong."""
    try:
        return _LogSettings().log_format
    except (ValidationError, UnicodeDecodeError, OSError):
        return "text"


def _text(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""
