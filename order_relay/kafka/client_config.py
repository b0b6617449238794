"""Connection and authentication settings of librdkafka's clients.

``order_relay.kafka.auth`` applies the same settings to Faust's consumer.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError

from order_relay.kafka.access_tokens import access_tokens
from order_relay.settings import Settings

# The codes of librdkafka's errors that mean: no broker can be reached.
UNREACHABLE = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
)


def client_config(settings: Settings) -> dict[str, Any]:
    """Return the settings by which a librdkafka client connects to Kafka."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "security.protocol": settings.kafka_security_protocol,
        "client.id": settings.consumer_group_id,
        # As in the Java clients. After librdkafka's 10 s, brokers that are back answer at last when
        # a record's delivery time-out, or a replay's attempt, is over.
        "reconnect.backoff.max.ms": 1000,
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        config |= _credentials(settings)
    if settings.kafka_security_protocol.endswith("SSL"):
        cert_file = settings.kafka_ssl_cert_file
        for key, path in (
            ("ssl.ca.location", settings.kafka_ssl_ca_file),
            ("ssl.certificate.location", cert_file),
            # librdkafka does not look for the key in the certificate's file.
            ("ssl.key.location", settings.kafka_ssl_key_file or cert_file),
        ):
            if path is not None:
                config[key] = str(path)
        if settings.kafka_ssl_key_password is not None:
            config["ssl.key.password"] = settings.kafka_ssl_key_password.get_secret_value()
    return config


def require_access_token(settings: Settings) -> None:
    """Raise ``AccessTokenUnavailable`` if Kafka wants a token and there is none. Blocks.

    A librdkafka client only waits for one, without an error.
    """
    if settings.uses_access_tokens:
        access_tokens(settings).current()


def _credentials(settings: Settings) -> dict[str, Any]:
    config: dict[str, Any] = {"sasl.mechanism": settings.kafka_sasl_mechanism}
    if settings.kafka_sasl_mechanism == "OAUTHBEARER":
        tokens = access_tokens(settings)

        def on_token_needed(_: str) -> tuple[str, float, str, dict[str, str]]:
            token = tokens.current()
            return token.value, token.expires_at, settings.consumer_group_id, tokens.extensions

        config["oauth_cb"] = on_token_needed
        return config
    config["sasl.username"] = settings.kafka_sasl_username
    if settings.kafka_sasl_password is not None:
        config["sasl.password"] = settings.kafka_sasl_password.get_secret_value()
    return config
