"""How Faust's consumer proves who it is to Kafka.

The producer's side of the same settings is ``app.publishing.producer.client_config``.
"""

from __future__ import annotations

import ssl

import faust
from faust.types.auth import CredentialsT, SASLMechanism

from app.settings import Settings


def faust_credentials(settings: Settings) -> CredentialsT | None:
    """Return the credentials that Faust's consumer uses; ``None`` for plain text."""
    protocol = settings.kafka_security_protocol
    context = None
    if protocol.endswith("SSL"):
        ca_file = settings.kafka_ssl_ca_file
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        if settings.kafka_ssl_cert_file is not None:
            password = settings.kafka_ssl_key_password
            context.load_cert_chain(
                str(settings.kafka_ssl_cert_file),
                str(settings.kafka_ssl_key_file) if settings.kafka_ssl_key_file else None,
                password.get_secret_value() if password else None,
            )
    if protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        return faust.SASLCredentials(
            mechanism=SASLMechanism(settings.kafka_sasl_mechanism),
            username=settings.kafka_sasl_username,
            password=password.get_secret_value() if password else None,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None
