"""The TLS, SASL and client certificates of the real cluster: the brokers' side and the clients'."""

from functools import cached_property
from pathlib import Path
from typing import Any, Self

import trustme
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.support.identity_provider import (
    AUDIENCE,
    ISSUER,
    IdentityProvider,
    key_set,
    new_signing_key,
)
from tests.support.kafka.broker import JVM_OPTIONS, Listener
from tests.support.kafka.cluster import RealKafka
from tests.support.kafka.ports import LOOPBACK

USER, PASSWORD = "relay", "kafka-password-1"
CLIENT_ID, CLIENT_SECRET = "relay:client", "client secret+/%1"
KEY_PASSWORD = "key-password-1"
MECHANISMS = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER"
MODULES = "org.apache.kafka.common.security"
# Longer than a broker's interval between checks of idle connections.
REAUTHENTICATION_MS = 15_000


class Secrets:
    """Keys and certificates in a folder, for brokers and for clients that authenticate.

    Attributes:
        ca_file: The authority of the brokers, of identity providers, and of clients.
        other_ca_file: An authority that has signed nothing here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        self.other_ca_file = folder / "other-ca.pem"
        self._ca_key = folder / "ca.key"
        self._signing_key = folder / "signing.key"

    def make(self) -> Self:
        """Write them, once for brokers and clients."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        authority.private_key_pem.write_to_path(str(self._ca_key))
        trustme.CA().cert_pem.write_to_path(str(self.other_ca_file))
        self._signing_key.write_bytes(
            new_signing_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return self

    @cached_property
    def authority(self) -> trustme.CA:
        """The authority of ``ca_file``."""
        return trustme.CA.from_pem(self.ca_file.read_bytes(), self._ca_key.read_bytes())

    @cached_property
    def signing_key(self) -> RSAPrivateKey:
        """The key of the tokens that the brokers accept."""
        key = load_pem_private_key(self._signing_key.read_bytes(), None)
        assert isinstance(key, RSAPrivateKey)
        return key

    def cluster(self) -> RealKafka:
        """A cluster, not started, with all kinds of listeners; tests themselves use the plain one.

        The plain listener allows everything, the others what no ACL forbids. Of those, CLEAR is
        without TLS, and SCRAM has one mechanism only.
        """
        jwks = self._folder / "jwks.json"
        jwks.write_text(key_set(self.signing_key), encoding="ascii")
        tls, sasl = self._tls(), _sasl(jwks.as_uri())
        return RealKafka(
            properties={
                "authorizer.class.name": (
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
                ),
                "super.users": "User:ANONYMOUS",  # by the plain listener
                "allow.everyone.if.no.acl.found": "true",
            },
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

    def _tls(self) -> dict[str, str]:
        issued = self.authority.issue_cert(LOOPBACK)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        keystore = self._folder / "broker.pem"
        keystore.write_bytes(_pkcs8(issued.private_key_pem.bytes()) + chain)
        return {
            "ssl.keystore.type": "PEM", "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM", "ssl.truststore.location": str(self.ca_file),
        }  # fmt: skip


class SecureKafka:
    """The cluster as secure clients reach it, and what they need.

    Attributes:
        kafka: The cluster.
        secrets: Its keys and certificates.
        provider: The issuer of its tokens; not started.
    """

    def __init__(self, kafka: RealKafka, secrets: Secrets, folder: Path) -> None:
        """Keep files of the clients' own in ``folder``."""
        self.kafka = kafka
        self.secrets = secrets
        self.provider = IdentityProvider(
            {CLIENT_ID: CLIENT_SECRET}, authority=secrets.authority, key=secrets.signing_key
        )
        self._folder = folder

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
            "kafka_ssl_ca_file": self.secrets.ca_file,
        }

    def oauth(self) -> dict[str, Any]:
        """A worker's settings for access tokens."""
        return {
            "kafka_bootstrap_servers": self.kafka.servers("SASL"),
            "kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "OAUTHBEARER",
            "kafka_sasl_oauth_token_url": self.provider.url,
            "kafka_sasl_oauth_client_id": CLIENT_ID,
            "kafka_sasl_oauth_client_secret": CLIENT_SECRET, "kafka_sasl_oauth_scope": "kafka read",
            "kafka_sasl_oauth_extensions": "logicalCluster=lkc-1, identityPoolId=pool-1",
            "kafka_sasl_oauth_ca_file": self.secrets.ca_file,
            "kafka_ssl_ca_file": self.secrets.ca_file,
        }  # fmt: skip

    def certificate(self) -> dict[str, Any]:
        """A worker's settings for a certificate whose key has a password."""
        cert, key = self.client_certificate("client", KEY_PASSWORD)
        return {
            "kafka_bootstrap_servers": self.kafka.servers("MTLS"), "kafka_security_protocol": "SSL",
            "kafka_ssl_ca_file": self.secrets.ca_file, "kafka_ssl_cert_file": cert,
            "kafka_ssl_key_file": key, "kafka_ssl_key_password": KEY_PASSWORD,
        }  # fmt: skip

    def certificate_with_key(self) -> dict[str, Any]:
        """The same for a certificate whose key is in its file, without a password."""
        cert, key = self.client_certificate("both")
        cert.write_bytes(key.read_bytes() + cert.read_bytes())
        key.unlink()
        none = dict.fromkeys(("kafka_ssl_key_file", "kafka_ssl_key_password"))
        return self.certificate() | none | {"kafka_ssl_cert_file": cert}

    def client_certificate(
        self, name: str, password: str | None = None, authority: trustme.CA | None = None
    ) -> tuple[Path, Path]:
        """Issue a client's certificate; return its file and its key's."""
        issued = (authority or self.secrets.authority).issue_cert(f"{name}@relay.test")
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(_pkcs8(issued.private_key_pem.bytes(), password))
        return cert, key


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
