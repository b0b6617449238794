"""Authentication of Faust's consumer at Kafka.

``order_relay.kafka.client_config`` applies the same settings to librdkafka's clients.
"""

from __future__ import annotations

import asyncio
import ssl

import faust
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from faust.auth import OAuthCredentials
from faust.types.auth import CredentialsT, SASLMechanism

from order_relay.errors import AccessTokenUnavailable
from order_relay.kafka.access_tokens import AccessTokens, access_tokens
from order_relay.settings import Settings


def faust_credentials(settings: Settings) -> CredentialsT | None:
    """Return the credentials of Faust's consumer; ``None`` for PLAINTEXT."""
    protocol = settings.kafka_security_protocol
    context = None
    if protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_file)
        if (cert_file := settings.kafka_ssl_cert_file) is not None:
            password = settings.kafka_ssl_key_password
            context.load_cert_chain(
                cert_file,
                settings.kafka_ssl_key_file,
                password.get_secret_value() if password else None,
            )
    if protocol.startswith("SASL"):
        if settings.kafka_sasl_mechanism == "OAUTHBEARER":
            return OAuthCredentials(
                oauth_cb=TokenProvider(access_tokens(settings)), ssl_context=context
            )
        password = settings.kafka_sasl_password
        return faust.SASLCredentials(
            mechanism=SASLMechanism(settings.kafka_sasl_mechanism),
            username=settings.kafka_sasl_username,
            password=password.get_secret_value() if password else None,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc] # aiokafka ships no types
    """Gives aiokafka the access token for each new connection."""

    def __init__(self, tokens: AccessTokens) -> None:
        """Give out these tokens."""
        self._tokens = tokens

    async def token(self) -> str:
        """Return a valid token.

        Raises:
            KafkaConnectionError: There is none; aiokafka retries as if a broker were down.
        """
        try:
            return (await asyncio.to_thread(self._tokens.current)).value
        except AccessTokenUnavailable as error:
            raise KafkaConnectionError(str(error)) from None

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions that are sent with the token."""
        return self._tokens.extensions
