"""What single settings may be: each rule takes a value and returns it, or says what is allowed.

They raise ``ValueError`` with the end of a sentence that begins with the variable and its value.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64decode
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from yarl import URL

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

# The files of TLS in a PostgreSQL URL, as libpq and everything that stands on it call them.
LIBPQ_NAMES = {
    "database_ssl_ca_file": "sslrootcert",
    "database_ssl_cert_file": "sslcert",
    "database_ssl_key_file": "sslkey",
}
HOST_NAME = r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?"
HTTP_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'  # RFC 9110, 5.6.4
# Of a POST to the external logger. What the relay writes itself, what would change how the request
# or its answer is read, and whatever begins with webhook-.
OWN_HEADERS = frozenset(
    "host content-length content-type content-encoding transfer-encoding connection keep-alive te "
    "trailer upgrade expect accept-encoding proxy-authorization proxy-connection idempotency-key "
    "traceparent tracestate".split()
)
PARTS_OF_DATABASE_URL = ("database_password", *LIBPQ_NAMES)


def check_name(value: str) -> str:
    """Apply Apache Kafka's rule for topics.

    Groups may be called anything, but then no tool can type it.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in (".", ".."):
        raise ValueError("must be 1 to 249 of the characters A-Z a-z 0-9 . _ -, not . or ..")
    return value


def check_servers(value: str) -> str:
    """Take host:port, several separated by commas; returns them without space between."""
    allowed = "must be host:port, several separated by commas"
    servers = [server.strip() for server in value.split(",") if server.strip()]
    # What stands before an @ may be a password: not to be repeated.
    if not servers or "@" in value:
        raise ValueError(allowed)
    for server in servers:
        match = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[(.*:.*)\]):(\d{1,5})", server, re.ASCII)
        if match is None or not 0 < int(match[2]) < 65536 or not _is_address(match[1] or "::"):
            raise ValueError(f"{allowed}: {server!r} is not")
    return ",".join(servers)


def check_host(value: str) -> str:
    """Take an address or a name to listen on; nothing else of a URL."""
    if not _is_address(value) and (
        not re.fullmatch(HOST_NAME, value) or re.fullmatch(r"[0-9.]+", value)
    ):
        raise ValueError(
            "must be an IP address, an IPv6 one without brackets, or a host name; the port is "
            "WEB_PORT"
        )
    return value


def check_host_names(value: str) -> str:
    """Take host names, several separated by commas; returns them without space between."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names or not all(re.fullmatch(HOST_NAME, name) for name in names):
        raise ValueError("must be host names without ports, several separated by commas")
    return ",".join(names)


def is_every_address(host: str) -> bool:
    """Whether who listens there listens on every address: ``0.0.0.0``, ``::``."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def check_url(value: str) -> str:
    """Take an http:// or https:// URL, which must hold no credentials."""
    allowed = "must be an http:// or https:// URL with a host"
    try:
        url = URL(value)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError as error:
        # What stands before an @ may be a password: not to be repeated.
        raise ValueError(allowed if "@" in value else f"{allowed}: {error}") from None
    if not usable or re.search(r"\s", value):
        raise ValueError(allowed)
    if url.user is not None or url.password is not None:
        raise ValueError("must hold no user or password: there are settings for secrets")
    return value


def check_proxy(value: SecretStr) -> SecretStr:
    """Take the http:// URL of a proxy, which may hold a user and a password."""
    try:
        url = URL(text := value.get_secret_value())
        usable = url.scheme == "http" and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", text) or url.raw_path_qs != "/":
        raise ValueError("must be a URL like http://[user:password@]host:port")
    return value


def check_token(value: SecretStr) -> SecretStr:
    """Take what fits into an ``Authorization`` header; returns it without space around."""
    token = value.get_secret_value().strip()  # such as the line end of a file
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("must be visible ASCII characters only, without spaces")
    return SecretStr(token)


def check_content_type(value: str) -> str:
    """Apply RFC 9110's rule for media types."""
    if not re.fullmatch(
        rf"{HTTP_NAME}/{HTTP_NAME}(?:[ \t]*;[ \t]*{HTTP_NAME}=(?:{HTTP_NAME}|{QUOTED}))*", value
    ):
        raise ValueError("must be a media type like application/json or text/json; charset=utf-8")
    return value


def check_signing_secrets(value: SecretStr) -> SecretStr:
    """Take one or two secrets of Standard Webhooks, see ``parse_signing_secrets``."""
    if not 1 <= len(parse_signing_secrets(value)) <= 2:
        raise ValueError("must be one secret, or two separated by a comma")
    return value


def parse_signing_secrets(value: SecretStr) -> dict[str, bytes]:
    """Return the keys, by their base64.

    Raises:
        ValueError: What a secret must be, without any.
    """
    keys = {}
    for secret in value.get_secret_value().split(","):
        text = secret.strip().removeprefix("whsec_")
        unpadded = text.rstrip("=")
        try:
            keys[text] = b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
        except ValueError:
            keys[text] = b""
        if not 24 <= len(keys[text]) <= 64:
            raise ValueError(
                "must be whsec_ and base64 of 24 to 64 bytes, two separated by a comma"
            )
    return keys


def check_headers(value: SecretStr) -> SecretStr:
    """Take headers of a request, one a line; see ``parse_headers``."""
    parse_headers(value)
    return value


def parse_headers(value: SecretStr | None) -> tuple[tuple[str, str], ...]:
    """Return names and values of headers.

    Raises:
        ValueError: What is wrong in which line, without the line.
    """
    found = []
    lines = value.get_secret_value().split("\n") if value else ()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, text = line.removesuffix("\r").partition(":")
        text = text.strip(" \t")
        if not colon:
            raise ValueError(f"line {number} must be Name: value")
        if not re.fullmatch(HTTP_NAME, name):
            raise ValueError(
                f"line {number} must begin with a name of letters, digits and !#$%&'*+.^_`|~- only"
            )
        if name.lower() in OWN_HEADERS or name.lower().startswith("webhook-"):
            raise ValueError(f"line {number} has a header that is not yours to set: {name}")
        if not re.fullmatch(r"[ -~]*", text):
            raise ValueError(f"line {number} must have a value of printable ASCII characters only")
        found.append((name, text))
    return tuple(found)


def check_extensions(value: str) -> str:
    """Apply RFC 7628's rule for the extensions of OAUTHBEARER; see ``parse_extensions``."""
    for part in value.split(","):
        name, _, _ = part.partition("=")
        if not re.fullmatch(r"\s*[A-Za-z]+=[!-~]+\s*", part) or name.strip() == "auth":
            raise ValueError(
                "must be name=value, several separated by commas, the names letters only, not auth"
            )
    return value


def parse_extensions(value: str | None) -> dict[str, str]:
    """Return what ``check_extensions`` has passed, by name."""
    parts = (part.strip().partition("=") for part in value.split(",")) if value else ()
    return {name: text for name, _, text in parts}


def check_file(value: Path) -> Path:
    """Take a file."""
    if not value.is_file():
        raise ValueError("must be a file that can be read")
    return value


def check_authorities(value: Path) -> Path:
    """Take a PEM file of certificates."""
    check_file(value)
    try:
        ssl.create_default_context(cafile=str(value))
    except (ssl.SSLError, OSError) as error:
        raise ValueError("must be a PEM file of certificates") from error
    return value


def check_client_certificate(
    prefix: str, cert: Path | None, key: Path | None, password: str | None = None
) -> None:
    """Take a client's certificate with its key, or neither.

    Args:
        prefix: Of the settings' names: ``<prefix>_CERT_FILE`` and so on.
        cert: PEM file of the certificate.
        key: PEM file of the key; else it is in the certificate's file.
        password: Of the key; empty if it has none, ``None`` if there is no setting for one.
    """
    if cert is None:
        if key is not None:
            raise ValueError(f"{prefix}_KEY_FILE={str(key)!r} needs {prefix}_CERT_FILE")
        return
    try:
        # Never ask on the terminal: a wrong password is an error like any other.
        ssl.create_default_context().load_cert_chain(cert, key, password or "")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or "no PEM"
        names, things = f"{prefix}_KEY_FILE", "a certificate and its key without a password"
        if password is not None:
            names += f" and {prefix}_KEY_PASSWORD"
            things = "a certificate, its key and the key's password"
        raise ValueError(
            f"{prefix}_CERT_FILE={str(cert)!r} with {names} must be {things}, in PEM ({reason})"
        ) from error


def check_database_url(value: SecretStr) -> SecretStr:
    """Take the URL of a database that there is a driver for."""
    scheme, separator, _ = value.get_secret_value().partition("://")
    if not separator:
        raise ValueError(f"must be a URL like {DATABASE_EXAMPLES}")
    if not re.fullmatch(r"[A-Za-z0-9+._-]+", scheme):
        raise ValueError(f"must be a URL like {DATABASE_EXAMPLES}")
    if scheme not in DATABASE_DRIVERS:
        raise ValueError(f"has the unknown driver {scheme[:40]!r}: use {DATABASE_EXAMPLES}")
    return value


def complete_database_url(value: SecretStr, parts: Mapping[str, str]) -> SecretStr:
    """Return the URL with what has settings of its own in it.

    Args:
        value: What ``check_database_url`` has passed.
        parts: ``database_password``, and the files of TLS, which go into the URL by libpq's names.
    """
    if not parts:
        return value
    given = dict(parts)
    names = " and ".join(name.upper() for name in given)
    try:
        url = make_url(value.get_secret_value())
    except (ArgumentError, ValueError):
        raise ValueError(f"must be a URL like {DATABASE_EXAMPLES}") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError(f"must be one of PostgreSQL, as {names} is set")
    if (password := given.pop("database_password", None)) is not None:
        if url.password is not None:
            raise ValueError("must hold no password, as DATABASE_PASSWORD is set")
        url = url.set(password=password)
    query = {LIBPQ_NAMES[name]: part for name, part in given.items()}
    if twice := sorted(query.keys() & url.query.keys()):
        raise ValueError(f"must not have {twice[0]}, as {names} is set")
    url = url.update_query_dict(query)
    return SecretStr(url.render_as_string(hide_password=False))


def _is_address(text: str) -> bool:
    """Whether it is an IP address that can stand in a URL."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", text) is not None
