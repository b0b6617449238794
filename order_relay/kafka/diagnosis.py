"""Explains why a client cannot connect to the brokers, and names the setting to change.

librdkafka's errors do not distinguish a wrong host name, an unknown authority and a broker that
closes the connection. So this opens a connection with aiokafka, whose errors do.
"""

from __future__ import annotations

import asyncio
import ssl

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
    auth = credentials_to_aiokafka_auth(faust_credentials(settings))
    try:
        async with asyncio.timeout(timeout_seconds):
            for server in settings.kafka_bootstrap_servers.split(","):
                host, _, port = server.rpartition(":")
                connection = AIOKafkaConnection(
                    host.strip("[]"),
                    int(port),
                    client_id=settings.consumer_group_id,
                    request_timeout_ms=int(timeout_seconds * 1000),
                    **auth,
                )
                try:
                    await connection.connect()
                    # A broker that requires SASL accepts a connection without it, not a request.
                    await connection.send(MetadataRequest([]))
                except (OSError, KafkaError) as error:
                    if reason := _explain(error, server, settings):
                        return reason
                else:
                    return ""
                finally:
                    await _close(connection)
    except TimeoutError:
        pass
    return ""


async def broker_answers(settings: Settings, host: str, port: int, timeout_seconds: float) -> bool:
    """Return whether a broker answers; a refusal is an answer."""
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
            await connection.send(ApiVersionRequest())
    except (SaslAuthenticationFailed, IllegalSaslStateError, ssl.SSLError):
        return True
    except (OSError, KafkaError):  # TimeoutError is an OSError
        return False
    finally:
        await _close(connection)
    return True


async def _close(connection: AIOKafkaConnection) -> None:
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
