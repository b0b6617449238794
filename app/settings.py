"""Every setting of the relay, read once from the environment and ``.env``.

Nothing else reads the environment. ``.env.example`` lists every key with its default and unit.
"""

from __future__ import annotations

import re
import ssl
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from yarl import URL

from app.errors import InvalidSettings

# What people are used to writing, and the drivers that there are.
DATABASE_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
DATABASE_EXAMPLES = (
    "sqlite+aiosqlite:///order-relay.db or postgresql+asyncpg://user:password@host:5432/database"
)
# What a 32-bit signed configuration value of Kafka's clients can hold.
MAX_INT = 2**31 - 1


def _check_name(value: str) -> str:
    # Apache Kafka's rule for topics; groups may be called anything, but then no tool can type it.
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in (".", ".."):
        raise ValueError("must be 1 to 249 of the characters A-Z a-z 0-9 . _ -, not . or ..")
    return value


Name = Annotated[str, AfterValidator(_check_name)]


class Settings(BaseSettings):
    """The relay's settings, immutable once read."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    # --- Kafka ------------------------------------------------------------------------------
    kafka_bootstrap_servers: str = "localhost:19092,localhost:29092,localhost:39092"
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_ca_file: Path | None = None
    kafka_ssl_cert_file: Path | None = None
    kafka_ssl_key_file: Path | None = None
    kafka_ssl_key_password: SecretStr | None = None
    order_paid_topic: Name = "order-paid-events"
    dlq_topic: Name = "order-paid-events.DLQ"
    topic_partitions: int = Field(default=3, ge=1, le=100_000)
    topic_replication_factor: int = Field(default=3, ge=1, le=32767)
    kafka_declare_topics: bool = True
    consumer_group_id: Name = "logging-consumer-group"

    # --- the external logger ----------------------------------------------------------------
    external_logger_url: str = "http://localhost:3000/logs"
    external_logger_timeout_seconds: float = Field(default=10.0, gt=0, le=300)
    external_logger_connect_timeout_seconds: float = Field(default=5.0, gt=0, le=300)
    external_logger_token: SecretStr | None = None
    external_logger_ca_file: Path | None = None

    # --- delivery ---------------------------------------------------------------------------
    consumer_retry_max_attempts: int = Field(default=3, ge=0, le=1000)
    consumer_retry_initial_interval_ms: int = Field(default=1000, ge=0, le=MAX_INT)
    consumer_retry_multiplier: float = Field(default=2.0, ge=1.0, le=1000)
    consumer_retry_max_interval_ms: int = Field(default=10_000, ge=0, le=MAX_INT)
    max_in_flight: int = Field(default=256, ge=1, le=100_000)
    breaker_failure_threshold: int = Field(default=20, ge=0, le=MAX_INT)
    breaker_probe_interval_seconds: float = Field(default=5.0, gt=0, le=86_400)
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=86_400)

    # --- the producer (names and values of the Kafka producer configuration) -----------------
    # Idempotence needs at least 1 (KIP-98).
    producer_retries: int = Field(default=3, ge=1, le=MAX_INT)
    producer_retry_backoff_ms: int = Field(default=1000, ge=1, le=300_000)
    producer_request_timeout_ms: int = Field(default=30_000, ge=1, le=900_000)
    # Over the producer's linger, as librdkafka insists.
    producer_delivery_timeout_ms: int = Field(default=120_000, ge=10, le=MAX_INT)
    # Idempotence needs at most 5 (KIP-98).
    producer_max_in_flight: int = Field(default=5, ge=1, le=5)

    # --- the fallback table -----------------------------------------------------------------
    # Secret, since it may hold a password.
    database_url: SecretStr = SecretStr("sqlite+aiosqlite:///order-relay.db")
    fallback_replay_interval_seconds: float = Field(default=60.0, gt=0, le=86_400)
    fallback_max_retry: int = Field(default=3, ge=1, le=1000)
    fallback_backoff_base_seconds: float = Field(default=60.0, gt=0, le=86_400)
    fallback_stats_interval_seconds: float = Field(default=3600.0, gt=0)
    fallback_retention_days: float = Field(default=7.0, ge=0, le=36_500)

    # --- who may change something over HTTP -------------------------------------------------
    api_token: SecretStr | None = None

    # --- the worker's own web server ---------------------------------------------------------
    web_host: str = "127.0.0.1"
    web_port: int = Field(default=6066, ge=1, le=65535)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr) -> SecretStr:
        scheme, separator, _ = value.get_secret_value().partition("://")
        if not separator:
            raise ValueError(f"must be a URL like {DATABASE_EXAMPLES}")
        if scheme not in DATABASE_DRIVERS:
            raise ValueError(f"has the unknown driver {scheme[:40]!r}: use {DATABASE_EXAMPLES}")
        return value

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",") if server.strip()]
        if not servers:
            raise ValueError("must be host:port, several separated by commas")
        for server in servers:
            match = re.fullmatch(
                r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]):(\d{1,5})", server, re.ASCII
            )
            if match is None or not 0 < int(match[2]) < 65536:
                raise ValueError(
                    f"must be host:port, several separated by commas: {server!r} is not"
                )
        return ",".join(servers)

    @field_validator("external_logger_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        allowed = "must be an http:// or https:// URL with a host"
        try:
            url = URL(value)
            usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
        except ValueError as error:
            raise ValueError(f"{allowed}: {error}") from error
        if not usable or re.search(r"\s", value):
            raise ValueError(allowed)
        if url.user is not None or url.password is not None:
            raise ValueError("must hold no user or password: use EXTERNAL_LOGGER_TOKEN")
        return value

    @field_validator("external_logger_token", "api_token")
    @classmethod
    def _check_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        token = value.get_secret_value().strip()  # such as the line end of a file
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError("must be visible ASCII characters only, without spaces")
        return SecretStr(token)

    @field_validator(
        "kafka_ssl_ca_file", "kafka_ssl_cert_file", "kafka_ssl_key_file", "external_logger_ca_file"
    )
    @classmethod
    def _check_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("must be a file that can be read")
        return value

    @field_validator("kafka_ssl_ca_file", "external_logger_ca_file")
    @classmethod
    def _check_authorities(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=str(value))
            except (ssl.SSLError, OSError) as error:
                raise ValueError("must be a PEM file of certificates") from error
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.kafka_security_protocol.startswith("SASL") and (
            self.kafka_sasl_username is None or self.kafka_sasl_password is None
        ):
            raise ValueError(
                f"KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} needs "
                "KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"
            )
        if self.kafka_ssl_cert_file is not None:
            self._check_client_certificate(self.kafka_ssl_cert_file)
        elif self.kafka_ssl_key_file is not None:
            raise ValueError(
                f"KAFKA_SSL_KEY_FILE={str(self.kafka_ssl_key_file)!r} needs KAFKA_SSL_CERT_FILE"
            )
        if self.dlq_topic == self.order_paid_topic:
            raise ValueError(f"DLQ_TOPIC={self.dlq_topic!r} must differ from ORDER_PAID_TOPIC")
        return self

    def _check_client_certificate(self, cert_file: Path) -> None:
        password = self.kafka_ssl_key_password
        try:
            ssl.create_default_context().load_cert_chain(
                cert_file,
                self.kafka_ssl_key_file,
                # Never ask on the terminal: a wrong password is an error like any other.
                password.get_secret_value() if password else "",
            )
        except (ssl.SSLError, OSError) as error:
            raise ValueError(
                f"KAFKA_SSL_CERT_FILE={str(cert_file)!r} with KAFKA_SSL_KEY_FILE and "
                "KAFKA_SSL_KEY_PASSWORD must be a certificate, its key and the key's password, "
                f"in PEM ({error.strerror or 'no PEM'})"
            ) from error

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """The secret values that are set, for redacting text that comes from outside."""
        secrets = [
            value.get_secret_value()
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), SecretStr)
        ]
        # Of a database's URL only the password is one.
        secrets.remove(database := self.database_url.get_secret_value())
        secrets.append(make_url(database).password or "")
        return tuple(secret for secret in secrets if secret)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from the environment and ``.env``.

    Args:
        overrides: Values that win over the environment, by field name; for tests and tools.

    Raises:
        InvalidSettings: One line that names each wrong variable, its value and what is allowed.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise InvalidSettings(_describe(error)) from None
    except UnicodeDecodeError as error:
        raise InvalidSettings(f"invalid settings: .env must be UTF-8 text: {error}") from None


def _describe(error: ValidationError) -> str:
    """Turn pydantic's report into one line in the words of the environment."""
    parts = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ")
        message = message.replace("Input should be", "must be")
        if not name:
            parts.append(message)
            continue
        variable = name.upper()
        field = Settings.model_fields.get(name)
        secret = field is not None and "SecretStr" in str(field.annotation)
        shown = "" if secret else f"={str(item['input'])[:200]!r}"
        parts.append(f"{variable}{shown} {message}")
    # What stands before an @ in a URL or an address may be a password.
    return "invalid settings: " + re.sub(r"[^\s='\"]+@", "[redacted]@", "; ".join(parts))
