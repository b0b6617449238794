"""An identity provider: OAuth's client credentials grant over HTTPS, with signed tokens.

It runs in threads of its own, so that blocking code may ask it from anywhere.
"""

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus

import trustme
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.kafka.ports import LOOPBACK, free_ports

ISSUER = "https://identity.test"
AUDIENCE = "kafka"
KEY_ID = "key-1"


class IdentityProvider:
    """A provider, from ``start`` to ``stop``; it may start again on the same port.

    Attributes:
        lifetime_seconds: Of the tokens from now on.
        answer: Status and body to send in place of a token, from now on.
        scopes: The scope of each request that got a token.
        tokens: All tokens that were issued.
    """

    def __init__(
        self,
        clients: dict[str, str],
        *,
        authority: trustme.CA | None = None,
        key: rsa.RSAPrivateKey | None = None,
        lifetime_seconds: float = 3600.0,
    ) -> None:
        """Prepare to serve clients, by their secrets; over TLS if there is an ``authority``.

        Tokens are signed with ``key``, or with a new one.
        """
        self.lifetime_seconds = lifetime_seconds
        self.answer: tuple[int, bytes] | None = None
        self.scopes: list[str | None] = []
        self.tokens: list[str] = []
        self.port = free_ports(1)[0]
        self.url = f"http{'s' if authority else ''}://{LOOPBACK}:{self.port}/token?tenant=a%20b"
        self._clients = clients
        self._key = key or new_signing_key()
        self._server: ThreadingHTTPServer | None = None
        self._tls: ssl.SSLContext | None = None
        if authority is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert(LOOPBACK).configure_cert(self._tls)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
                status, content = provider._grant(self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                """Do not log."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Ignore clients that do not trust the certificate."""

        self._server = Server((LOOPBACK, self.port), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop. May be called twice."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _grant(self, path: str, headers: dict[str, str], body: str) -> tuple[int, bytes]:
        if self.answer is not None:
            return self.answer
        fields = parse_qs(body)
        kind, _, encoded = headers.get("Authorization", "").partition(" ")
        client, _, secret = base64.b64decode(encoded).decode().partition(":")
        client, secret = unquote_plus(client), unquote_plus(secret)
        if path != "/token?tenant=a%20b" or fields.get("grant_type") != ["client_credentials"]:
            return 400, b'{"error": "invalid_request"}'
        if kind != "Basic" or self._clients.get(client) != secret:
            refusal = {"error": "invalid_client", "error_description": f"not {secret}"}
            return 401, json.dumps(refusal).encode()
        self.scopes.append(fields.get("scope", [None])[0])
        token = self._token(client)
        self.tokens.append(token)
        grant = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime_seconds}
        return 200, json.dumps(grant).encode()

    def _token(self, subject: str) -> str:
        now = time.time()
        claims = {
            "sub": subject, "iss": ISSUER, "aud": AUDIENCE, "iat": int(now),
            "exp": now + self.lifetime_seconds,
        }  # fmt: skip
        header = {"alg": "RS256", "typ": "JWT", "kid": KEY_ID}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"


def new_signing_key() -> rsa.RSAPrivateKey:
    """A key to sign tokens with."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def key_set(key: rsa.RSAPrivateKey) -> str:
    """The public key that tokens are checked with, as a JSON Web Key Set."""
    numbers = key.public_key().public_numbers()
    public = {
        "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID,
        "n": _encoded(numbers.n.to_bytes(256, "big")), "e": _encoded(numbers.e.to_bytes(3, "big")),
    }  # fmt: skip
    return json.dumps({"keys": [public]})


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
