"""Why the brokers and a client do not come together, in the words of the settings.

librdkafka tells a wrong host name and an unknown authority apart no more than a broker that closes
the connection; so one connection is made as the consumer makes its own, and its end looked at.
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
from aiokafka.protocol.metadata import MetadataRequest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from order_relay.kafka.auth import faust_credentials
from order_relay.settings import Settings

# The longest wait for a broker to say good-bye.
CLOSE_SECONDS = 1.0
# OpenSSL's codes (x509_vfy.h): of the host's name, and of its address.
WRONG_HOST = (62, 64)


async def diagnose_connection(settings: Settings, timeout_seconds: float) -> str:
    """Return what stands between us and the brokers; empty if nothing, or if none is there.

    Asks one broker after another until one says something.
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
                    # Where SASL is missing only this is refused.
                    await connection.send(MetadataRequest([]))
                except (OSError, KafkaError) as error:
                    if reason := _in_words(error, server, settings):
                        return reason
                else:
                    return ""
                finally:
                    await _close(connection)
    except TimeoutError:
        pass
    return ""


async def _close(connection: AIOKafkaConnection) -> None:
    closed = connection.close()
    if connection._protocol is not None:  # else nothing was ever open
        await asyncio.wait([closed], timeout=CLOSE_SECONDS)


def _in_words(error: Exception, server: str, settings: Settings) -> str:
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
            return f"TLS failed: {error.reason or error} ({_doubt(settings)})"
        case SaslAuthenticationFailed() | IllegalSaslStateError():
            return (
                f"the brokers refuse {_credentials(settings)} "
                f"(KAFKA_SASL_MECHANISM={settings.kafka_sasl_mechanism}): {error.args[0]}"
            )
        case ConnectionResetError() | KafkaConnectionError():
            return f"the brokers close the connection ({_doubt(settings)})"
    return ""


def _credentials(settings: Settings) -> str:
    if settings.kafka_sasl_mechanism == "OAUTHBEARER":
        return (
            f"the access token of KAFKA_SASL_OAUTH_CLIENT_ID={settings.kafka_sasl_oauth_client_id}"
        )
    return f"KAFKA_SASL_USERNAME={settings.kafka_sasl_username} and its KAFKA_SASL_PASSWORD"


def _doubt(settings: Settings) -> str:
    protocol = settings.kafka_security_protocol
    hint = f"does KAFKA_SECURITY_PROTOCOL={protocol} suit their ports?"
    if protocol.endswith("SSL"):
        has = "the right" if settings.kafka_ssl_cert_file else "a"
        hint += f" do they ask for {has} KAFKA_SSL_CERT_FILE?"
    return hint
