"""Rules for single settings: each returns the value, possibly normalized, or says what is allowed.

The text of each ``ValueError`` continues a sentence that starts with the variable and its value.
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

# The schemes that are accepted, and the SQLAlchemy driver of each.
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

# libpq's names for TLS files in a PostgreSQL URL.
LIBPQ_NAMES = {
    "database_ssl_ca_file": "sslrootcert",
    "database_ssl_cert_file": "sslcert",
    "database_ssl_key_file": "sslkey",
}
HOST_NAME = r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?"
HTTP_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2
QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'  # RFC 9110, 5.6.4
# Headers that EXTERNAL_LOGGER_HEADERS must not set: the relay writes them, or they would change how
# the request or its response is parsed. Names that start with webhook- are reserved, too.
RESERVED_HEADERS = frozenset(
    "host content-length content-type content-encoding transfer-encoding connection keep-alive te "
    "trailer upgrade expect accept-encoding proxy-authorization proxy-connection idempotency-key "
    "traceparent tracestate".split()
)
PARTS_OF_DATABASE_URL = ("database_password", *LIBPQ_NAMES)


def check_name(value: str) -> str:
    """Check a name by Apache Kafka's rule for topics.

    Kafka allows any name for a group, but other names are hard to use on a command line.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in (".", ".."):
        raise ValueError("must be 1 to 249 of the characters A-Z a-z 0-9 . _ -, not . or ..")
    return value


def check_servers(value: str) -> str:
    """Check one or more ``host:port``, separated by commas; returns them without spaces."""
    allowed = "must be host:port, several separated by commas"
    servers = [server.strip() for server in value.split(",") if server.strip()]
    # Text before an @ may be a password, which must not be repeated.
    if not servers or "@" in value:
        raise ValueError(allowed)
    for server in servers:
        match = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[(.*:.*)\]):(\d{1,5})", server, re.ASCII)
        if match is None or not 0 < int(match[2]) < 65536 or not _is_address(match[1] or "::"):
            raise ValueError(f"{allowed}: {server!r} is not")
    return ",".join(servers)


def check_host(value: str) -> str:
    """Check an IP address or a host name to listen on."""
    if not _is_address(value) and (
        not re.fullmatch(HOST_NAME, value) or re.fullmatch(r"[0-9.]+", value)
    ):
        raise ValueError(
            "must be an IP address, an IPv6 one without brackets, or a host name; the port is "
            "WEB_PORT"
        )
    return value


def check_host_names(value: str) -> str:
    """Check one or more host names, separated by commas; returns them without spaces."""
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names or not all(re.fullmatch(HOST_NAME, name) for name in names):
        raise ValueError("must be host names without ports, several separated by commas")
    return ",".join(names)


def is_every_address(host: str) -> bool:
    """Return whether a server at ``host`` listens on all addresses: ``0.0.0.0`` or ``::``."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def check_url(value: str) -> str:
    """Check an http:// or https:// URL without credentials."""
    allowed = "must be an http:// or https:// URL with a host"
    try:
        url = URL(value)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError as error:
        # Text before an @ may be a password, which must not be repeated.
        raise ValueError(allowed if "@" in value else f"{allowed}: {error}") from None
    if not usable or re.search(r"\s", value):
        raise ValueError(allowed)
    if url.user is not None or url.password is not None:
        raise ValueError("must hold no user or password: there are settings for secrets")
    return value


def check_proxy(value: SecretStr) -> SecretStr:
    """Check the http:// URL of a proxy, which may contain a user and a password."""
    try:
        url = URL(text := value.get_secret_value())
        usable = url.scheme == "http" and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", text) or url.raw_path_qs != "/":
        raise ValueError("must be a URL like http://[user:password@]host:port")
    return value


def check_token(value: SecretStr) -> SecretStr:
    """Check a token for an ``Authorization`` header; returns it without surrounding spaces."""
    token = value.get_secret_value().strip()  # a file may end with a line end
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("must be visible ASCII characters only, without spaces")
    return SecretStr(token)


def check_content_type(value: str) -> str:
    """Check a media type (RFC 9110)."""
    if not re.fullmatch(
        rf"{HTTP_NAME}/{HTTP_NAME}(?:[ \t]*;[ \t]*{HTTP_NAME}=(?:{HTTP_NAME}|{QUOTED}))*", value
    ):
        raise ValueError("must be a media type like application/json or text/json; charset=utf-8")
    return value


def check_signing_secrets(value: SecretStr) -> SecretStr:
    """Check one or two secrets of Standard Webhooks; see ``parse_signing_secrets``."""
    if not 1 <= len(parse_signing_secrets(value)) <= 2:
        raise ValueError("must be one secret, or two separated by a comma")
    return value


def parse_signing_secrets(value: SecretStr) -> dict[str, bytes]:
    """Return the keys by their base64 text.

    Raises:
        ValueError: A secret has another form. The message does not contain it.
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
    """Check request headers, one a line; see ``parse_headers``."""
    parse_headers(value)
    return value


def parse_headers(value: SecretStr | None) -> tuple[tuple[str, str], ...]:
    """Return the names and values of headers; empty lines and lines with # are skipped.

    Raises:
        ValueError: A line is wrong. The message has its number and the reason, not its text.
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
        if name.lower() in RESERVED_HEADERS or name.lower().startswith("webhook-"):
            raise ValueError(f"line {number} has a header that is not yours to set: {name}")
        if not re.fullmatch(r"[ -~]*", text):
            raise ValueError(f"line {number} must have a value of printable ASCII characters only")
        found.append((name, text))
    return tuple(found)


def check_extensions(value: str) -> str:
    """Check the extensions of OAUTHBEARER (RFC 7628); see ``parse_extensions``."""
    for part in value.split(","):
        name, _, _ = part.partition("=")
        if not re.fullmatch(r"\s*[A-Za-z]+=[!-~]+\s*", part) or name.strip() == "auth":
            raise ValueError(
                "must be name=value, several separated by commas, the names letters only, not auth"
            )
    return value


def parse_extensions(value: str | None) -> dict[str, str]:
    """Return extensions by name, from text that ``check_extensions`` accepted."""
    parts = (part.strip().partition("=") for part in value.split(",")) if value else ()
    return {name: text for name, _, text in parts}


def check_file(value: Path) -> Path:
    """Check that a file exists."""
    if not value.is_file():
        raise ValueError("must be a file that can be read")
    return value


def check_authorities(value: Path) -> Path:
    """Check a PEM file of certificates."""
    check_file(value)
    try:
        ssl.create_default_context(cafile=str(value))
    except (ssl.SSLError, OSError) as error:
        raise ValueError("must be a PEM file of certificates") from error
    return value


def check_client_certificate(
    prefix: str, cert: Path | None, key: Path | None, password: str | None = None
) -> None:
    """Check a client certificate with its key; neither is fine, too.

    Args:
        prefix: The prefix of the settings: ``<prefix>_CERT_FILE`` and so on.
        cert: The certificate's PEM file.
        key: The key's PEM file; ``None``: the key is in the certificate's file.
        password: The key's password, empty without one; ``None``: there is no setting for it.

    Raises:
        ValueError: They cannot be used together.
    """
    if cert is None:
        if key is not None:
            raise ValueError(f"{prefix}_KEY_FILE={str(key)!r} needs {prefix}_CERT_FILE")
        return
    try:
        # With None OpenSSL would ask for a password on the terminal.
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
    """Check the URL of a database that has a driver."""
    scheme, separator, _ = value.get_secret_value().partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z0-9+._-]+", scheme):
        raise ValueError(f"must be a URL like {DATABASE_EXAMPLES}")
    if scheme not in DATABASE_DRIVERS:
        raise ValueError(f"has the unknown driver {scheme[:40]!r}: use {DATABASE_EXAMPLES}")
    return value


def complete_database_url(value: SecretStr, parts: Mapping[str, str]) -> SecretStr:
    """Add the password and the TLS files, which have settings of their own, to the URL.

    Args:
        value: A URL that ``check_database_url`` accepted.
        parts: ``database_password`` and the settings of ``LIBPQ_NAMES``, as far as they are set.

    Raises:
        ValueError: The URL contains one of them already, or is not one of PostgreSQL.
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
    """Return whether it is an IP address that a URL can contain."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", text) is not None
