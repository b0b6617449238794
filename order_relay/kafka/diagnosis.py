"""Explains why a client cannot connect to the brokers, and names the setting to change.

librdkafka's errors do not distinguish a wrong host name, an unknown authority and a broker that
closes the connection. So this opens a connection with aiokafka, whose errors do.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
)
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.metadata import MetadataRequest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from order_relay.kafka.auth import faust_credentials
from order_relay.settings import Settings

# The longest wait for a connection to close.
CLOSE_SECONDS = 1.0
# OpenSSL's codes (x509_vfy.h) for a wrong host name and a wrong IP address.
WRONG_HOST = (62, 64)


async def diagnose_connection(settings: Settings, timeout_seconds: float) -> str:
    """Return why no broker accepts a connection; empty if one does, or if none is reachable.

    Tries one broker after another until one gives a reason.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            for server in settings.kafka_bootstrap_servers.split(","):
                host, _, port = server.rpartition(":")
                try:
                    # A broker that requires SASL accepts a connection without it, not a request.
                    request = MetadataRequest([])
                    await _ask(settings, host.strip("[]"), int(port), timeout_seconds, request)
                except (OSError, KafkaError) as error:
                    if reason := _explain(error, server, settings):
                        return reason
                else:
                    break
    return ""


async def broker_answers(settings: Settings, host: str, port: int, timeout_seconds: float) -> bool:
    """Return whether a broker answers; a refusal is an answer."""
    try:
        await _ask(settings, host, port, timeout_seconds, ApiVersionRequest())
    except (SaslAuthenticationFailed, IllegalSaslStateError, ssl.SSLError):
        return True
    except (OSError, KafkaError):  # TimeoutError is an OSError
        return False
    return True


async def _ask(
    settings: Settings, host: str, port: int, timeout_seconds: float, request: Any
) -> None:
    """Wait for a broker's answer to a request, over a connection of its own."""
    connection = AIOKafkaConnection(
        host,
        port,
        client_id=settings.consumer_group_id,
        request_timeout_ms=int(timeout_seconds * 1000),
        **credentials_to_aiokafka_auth(faust_credentials(settings)),
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.connect()
            await connection.send(request)
    finally:
        closed = connection.close()
        if connection._protocol is not None:  # else it was never open
            await asyncio.wait([closed], timeout=CLOSE_SECONDS)


def _explain(error: Exception, server: str, settings: Settings) -> str:
    match error:
        case ssl.SSLCertVerificationError() if error.verify_code in WRONG_HOST:
            return (
                f"certificate verify failed at {server}: {error.verify_message.rstrip('.')} (the "
                "broker's certificate must name the host in KAFKA_BOOTSTRAP_SERVERS)"
            )
        case ssl.SSLCertVerificationError():
            file = settings.kafka_ssl_ca_file
            where = (
                f"in KAFKA_SSL_CA_FILE={file}?" if file else "the system's? See KAFKA_SSL_CA_FILE"
            )
            return (
                f"certificate verify failed: {error.verify_message} (is the brokers' authority "
                f"{where})"
            )
        case ssl.SSLError():
            return f"TLS failed: {error.reason or error} ({_hint(settings)})"
        case SaslAuthenticationFailed() | IllegalSaslStateError():
            return (
                f"the brokers refuse {_credentials(settings)} "
                f"(KAFKA_SASL_MECHANISM={settings.kafka_sasl_mechanism}): {error.args[0]}"
            )
        case ConnectionResetError() | KafkaConnectionError():
            return f"the brokers close the connection ({_hint(settings)})"
    return ""


def _credentials(settings: Settings) -> str:
    if settings.kafka_sasl_mechanism == "OAUTHBEARER":
        return (
            f"the access token of KAFKA_SASL_OAUTH_CLIENT_ID={settings.kafka_sasl_oauth_client_id}"
        )
    return f"KAFKA_SASL_USERNAME={settings.kafka_sasl_username} and its KAFKA_SASL_PASSWORD"


def _hint(settings: Settings) -> str:
    protocol = settings.kafka_security_protocol
    hint = f"does KAFKA_SECURITY_PROTOCOL={protocol} suit their ports?"
    if protocol.endswith("SSL"):
        has = "the right" if settings.kafka_ssl_cert_file else "a"
        hint += f" do they ask for {has} KAFKA_SSL_CERT_FILE?"
    return hint
