"""A real Kafka cluster with TLS, every SASL mechanism and client certificates, all at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.support.identity_provider import AUDIENCE, ISSUER, IdentityProvider
from tests.support.kafka.broker import JVM_OPTIONS, Listener
from tests.support.kafka.ports import LOOPBACK
from tests.support.kafka_cluster import RealKafka

USER, PASSWORD = "relay", "kafka-password-1"
CLIENT_ID, CLIENT_SECRET = "relay:client", "client secret+/%1"
KEY_PASSWORD = "key-password-1"
MECHANISMS = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER"
MODULES = "org.apache.kafka.common.security"
# Longer than a broker's pause between two looks at an idle connection.
REAUTHENTICATION_MS = 15_000


@dataclass
class SecureKafka:
    """The cluster, and what its clients need.

    Attributes:
        kafka: Reached without TLS by the tests themselves.
        provider: Whose tokens it takes.
        ca_file: The authority of the brokers, of the provider, and of clients.
        other_ca_file: An authority that has signed nothing here.
    """

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.ca_file = self._authority_file("ca.pem", self.authority)
        self.other_ca_file = self._authority_file("other-ca.pem", trustme.CA())
        self.provider = IdentityProvider({CLIENT_ID: CLIENT_SECRET}, authority=self.authority)
        jwks = self.folder / "jwks.json"
        jwks.write_text(self.provider.jwks(), encoding="ascii")
        tls = self._tls()
        sasl = _sasl(jwks.as_uri())
        self.kafka = RealKafka(
            listeners={
                "SASL": Listener("SASL_SSL", tls | sasl),
                "CLEAR": Listener("SASL_PLAINTEXT", sasl),
                "SCRAM": Listener(
                    "SASL_SSL", tls | sasl | {"sasl.enabled.mechanisms": "SCRAM-SHA-512"}
                ),
                "MTLS": Listener("SSL", tls | {"ssl.client.auth": "required"}),
            },
            scram_users={USER: PASSWORD},
            jvm_options=[
                *JVM_OPTIONS,
                f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}",
            ],
        )

    def start(self) -> None:
        """Start the cluster, as ``RealKafka.start`` does, and the provider."""
        self.kafka.start()
        self.provider.start()

    def close(self) -> None:
        """End the cluster and the provider."""
        self.kafka.close()
        self.provider.stop()

    # --- settings of a worker -------------------------------------------------------------------

    def password(self, mechanism: str, protocol: str = "SASL_SSL") -> dict[str, Any]:
        """A worker's settings for a user and a password."""
        return {
            "kafka_bootstrap_servers": self.kafka.servers(
                "SASL" if protocol == "SASL_SSL" else "CLEAR"
            ),
            "kafka_security_protocol": protocol,
            "kafka_sasl_mechanism": mechanism,
            "kafka_sasl_username": USER,
            "kafka_sasl_password": PASSWORD,
            "kafka_ssl_ca_file": self.ca_file,
        }

    def oauth(self) -> dict[str, Any]:
        """A worker's settings for access tokens."""
        return {
            "kafka_bootstrap_servers": self.kafka.servers("SASL"),
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": "OAUTHBEARER",
            "kafka_sasl_oauth_token_url": self.provider.url,
            "kafka_sasl_oauth_client_id": CLIENT_ID,
            "kafka_sasl_oauth_client_secret": CLIENT_SECRET,
            "kafka_sasl_oauth_scope": "kafka read",
            "kafka_sasl_oauth_extensions": "logicalCluster=lkc-1, identityPoolId=pool-1",
            "kafka_sasl_oauth_ca_file": self.ca_file,
            "kafka_ssl_ca_file": self.ca_file,
        }

    def certificate(self) -> dict[str, Any]:
        """A worker's settings for a certificate whose key has a password."""
        cert, key = self.client_certificate("client", KEY_PASSWORD)
        return {
            "kafka_bootstrap_servers": self.kafka.servers("MTLS"),
            "kafka_security_protocol": "SSL",
            "kafka_ssl_ca_file": self.ca_file,
            "kafka_ssl_cert_file": cert,
            "kafka_ssl_key_file": key,
            "kafka_ssl_key_password": KEY_PASSWORD,
        }

    def certificate_with_key(self) -> dict[str, Any]:
        """The same for a certificate whose key stands in its file, without a password."""
        cert, key = self.client_certificate("both")
        cert.write_bytes(key.read_bytes() + cert.read_bytes())
        key.unlink()
        none = dict.fromkeys(("kafka_ssl_key_file", "kafka_ssl_key_password"))
        return self.certificate() | none | {"kafka_ssl_cert_file": cert}

    def client_certificate(
        self, name: str, password: str | None = None, authority: trustme.CA | None = None
    ) -> tuple[Path, Path]:
        """Issue a client's certificate; return its file and its key's."""
        issued = (authority or self.authority).issue_cert(f"{name}@relay.test")
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(_pkcs8(issued.private_key_pem.bytes(), password))
        return cert, key

    # --- the brokers' side ----------------------------------------------------------------------

    def _authority_file(self, name: str, authority: trustme.CA) -> Path:
        path = self.folder / name
        authority.cert_pem.write_to_path(str(path))
        return path

    def _tls(self) -> dict[str, str]:
        issued = self.authority.issue_cert(LOOPBACK)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        keystore = self.folder / "broker.pem"
        keystore.write_bytes(_pkcs8(issued.private_key_pem.bytes()) + chain)
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_file),
        }


def _pkcs8(pem: bytes, password: str | None = None) -> bytes:
    """Return a key in the one form that Java reads."""
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    key = load_pem_private_key(pem, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _sasl(jwks_url: str) -> dict[str, str]:
    scram = f"{MODULES}.scram.ScramLoginModule required;"
    return {
        "sasl.enabled.mechanisms": MECHANISMS,
        "connections.max.reauth.ms": str(REAUTHENTICATION_MS),
        "plain.sasl.jaas.config": (
            f'{MODULES}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
        "scram-sha-256.sasl.jaas.config": scram,
        "scram-sha-512.sasl.jaas.config": scram,
        "oauthbearer.sasl.jaas.config": (f"{MODULES}.oauthbearer.OAuthBearerLoginModule required;"),
        "oauthbearer.sasl.server.callback.handler.class": (
            f"{MODULES}.oauthbearer.OAuthBearerValidatorCallbackHandler"
        ),
        "oauthbearer.sasl.oauthbearer.jwks.endpoint.url": jwks_url,
        "oauthbearer.sasl.oauthbearer.expected.audience": AUDIENCE,
        "oauthbearer.sasl.oauthbearer.expected.issuer": ISSUER,
    }
