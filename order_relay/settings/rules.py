"""The types of settings: each takes text, and returns it, possibly normalized.

The text of each ``ValueError`` continues a sentence that starts with the variable and its value.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64decode
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.request import getproxies, proxy_bypass

from pydantic import AfterValidator, FilePath, SecretStr
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
EXTENSION = r"\s*(?!auth=)[A-Za-z]+=[!-+\--~]+\s*"  # RFC 7628, without a comma in the value
# Headers that EXTERNAL_LOGGER_HEADERS must not set: the relay writes them, or they would change how
# the request or its response is parsed. Names that start with webhook- are reserved, too.
RESERVED_HEADERS = frozenset(
    "host content-length content-type content-encoding transfer-encoding connection keep-alive te "
    "trailer upgrade expect accept-encoding proxy-authorization proxy-connection idempotency-key "
    "traceparent tracestate".split()
)


UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
MAX_WAITS = 20


def matching(pattern: str, allowed: str) -> AfterValidator:
    """Return a check that all of a text matches ``pattern``; ``allowed`` says what that means."""

    def check(value: str) -> None:
        if not re.fullmatch(pattern, value):
            raise ValueError(allowed)

    return parsing(check)


def parsing(parse: Callable[[Any], object]) -> AfterValidator:
    """Return a check that ``parse`` accepts a value, which stays as it is."""

    def check(value: object) -> object:
        parse(value)
        return value

    return AfterValidator(check)


def split(value: str) -> list[str]:
    """Return the parts of a list that is separated by commas, without spaces and empty parts."""
    return [part for item in value.split(",") if (part := item.strip())]


def check_servers(value: str) -> str:
    """Check one or more ``host:port``; returns them without spaces."""
    allowed = "must be host:port, several separated by commas"
    servers = split(value)
    # Text before an @ may be a password, which must not be repeated.
    if not servers or "@" in value:
        raise ValueError(allowed)
    for server in servers:
        match = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[(.*:.*)\]):(\d{1,5})", server, re.ASCII)
        if match is None or not 0 < int(match[2]) < 65536 or not _is_address(match[1] or "::"):
            raise ValueError(f"{allowed}: {server!r} is not")
    return ",".join(servers)


def check_host(value: str) -> None:
    """Check an IP address or a host name to listen on."""
    if not _is_address(value) and (
        not re.fullmatch(HOST_NAME, value) or re.fullmatch(r"[0-9.]+", value)
    ):
        raise ValueError(
            "must be an IP address, an IPv6 one without brackets, or a host name; the port is "
            "WEB_PORT"
        )


def check_url(value: str) -> None:
    """Check an http:// or https:// URL without credentials."""
    url = _http_url(value)
    if url is None:
        raise ValueError(
            "must be an http:// or https:// URL with a host, no spaces and a valid port"
        )
    if url.user is not None or url.password is not None:
        raise ValueError("must hold no user or password: there are settings for secrets")


def check_proxy(value: SecretStr) -> None:
    """Check the http:// URL of a proxy, which may contain a user and a password."""
    url = _http_url(value.get_secret_value())
    if url is None or url.scheme != "http" or url.raw_path_qs != "/":
        raise ValueError("must be a URL like http://[user:password@]host:port")


def proxy_of_environment(target: str) -> SecretStr | None:
    """Return the proxy of HTTPS_PROXY or HTTP_PROXY for a URL.

    There is none for a host on this machine, or in NO_PROXY.

    Raises:
        ValueError: The variable is wrong. The message does not contain its value.
    """
    url = URL(target)
    host = url.raw_host or ""
    text = getproxies().get(url.scheme)
    if not text or _is_this_machine(host) or proxy_bypass(host):
        return None
    proxy = SecretStr(text if "://" in text else f"http://{text}")
    try:
        check_proxy(proxy)
    except ValueError as error:
        raise ValueError(f"{url.scheme.upper()}_PROXY {error}") from None
    return proxy


def check_token(value: SecretStr) -> SecretStr:
    """Check a token for an ``Authorization`` header; returns it without surrounding spaces."""
    token = value.get_secret_value().strip()  # a file may end with a line end
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("must be visible ASCII characters only, without spaces")
    return SecretStr(token)


def parse_signing_secrets(value: SecretStr | None) -> dict[str, bytes]:
    """Return the keys of one or two secrets of Standard Webhooks by their base64 text.

    Raises:
        ValueError: A secret has another form. The message does not contain it.
    """
    keys = {}
    for secret in value.get_secret_value().split(",") if value else ():
        text = secret.strip().removeprefix("whsec_")
        unpadded = text.rstrip("=")
        try:
            keys[text] = b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
        except ValueError:
            keys[text] = b""
    if len(keys) > 2 or not all(24 <= len(key) <= 64 for key in keys.values()):
        raise ValueError("must be whsec_ and base64 of 24 to 64 bytes, or two separated by a comma")
    return keys


def parse_headers(value: SecretStr | None) -> tuple[tuple[str, str], ...]:
    """Return the names and values of headers; empty lines and lines with # are skipped.

    Raises:
        ValueError: A line is wrong. The message has its number and the reason, not its text.
    """
    found = []
    for number, line in enumerate(value.get_secret_value().split("\n") if value else (), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(rf"({HTTP_NAME}):[ \t]*([ -~]*?)[ \t]*\r?", line)
        if match is None:
            raise ValueError(
                f"line {number} must be Name: value, of printable ASCII characters only"
            )
        name = match[1].lower()
        if name in RESERVED_HEADERS or name.startswith("webhook-"):
            raise ValueError(f"line {number} has a header that is not yours to set: {match[1]}")
        found.append((match[1], match[2]))
    return tuple(found)


def parse_extensions(value: str | None) -> dict[str, str]:
    """Return the extensions of OAUTHBEARER by name, from text of the type ``Extensions``."""
    parts = (part.strip().partition("=") for part in value.split(",")) if value else ()
    return {name: text for name, _, text in parts}


def parse_waits(value: str | None) -> tuple[float, ...]:
    """Return the waits of DLQ_AUTO_REDRIVE in seconds; none without a value.

    Raises:
        ValueError: The text has another form.
    """
    waits = []
    for part in split(value or ""):
        match = re.fullmatch(r"(\d{1,6})(s|m|h|d)", part, re.ASCII)
        if match is None or not (number := int(match[1])):
            raise ValueError(f"must be waits such as 10m,1h,6h: {part[:40]!r} is not")
        waits.append(number * UNIT_SECONDS[match[2]])
    if value is not None and not 1 <= len(waits) <= MAX_WAITS:
        raise ValueError(f"must be 1 to {MAX_WAITS} waits such as 10m,1h,6h")
    return tuple(waits)


def check_authorities(value: Path) -> None:
    """Check a PEM file of certificates."""
    try:
        ssl.create_default_context(cafile=str(value))
    except OSError as error:
        raise ValueError("must be a PEM file of certificates") from error


def check_client_certificate(
    prefix: str, cert: Path | None, key: Path | None, password: str
) -> None:
    """Check ``<prefix>_CERT_FILE`` with its key, which can be in the same file; both may be unset.

    Raises:
        ValueError: They cannot be used together.
    """
    if cert is None:
        if key is not None:
            raise ValueError(f"{prefix}_KEY_FILE={str(key)!r} needs {prefix}_CERT_FILE")
        return
    try:
        # Without any password OpenSSL would ask for one on the terminal.
        ssl.create_default_context().load_cert_chain(cert, key, password)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "no PEM"
        names, things = f"{prefix}_KEY_FILE", "a certificate and its key without a password"
        if prefix == "KAFKA_SSL":
            names += " and KAFKA_SSL_KEY_PASSWORD"
            things = "a certificate, its key and the key's password"
        raise ValueError(
            f"{prefix}_CERT_FILE={str(cert)!r} with {names} must be {things}, in PEM ({reason})"
        ) from error


def complete_database_url(value: str, password: str | None, files: Mapping[str, str]) -> str:
    """Check the URL of a database that has a driver; returns it with the password and TLS files.

    Args:
        value: The URL.
        password: DATABASE_PASSWORD, if it is set.
        files: The settings of ``LIBPQ_NAMES``, as far as they are set.

    Raises:
        ValueError: There is no driver for it, it contains one of them already, or it is not one of
            PostgreSQL. The message does not contain the password.
    """
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise ValueError(f"must be a URL like {DATABASE_EXAMPLES}") from None
    if url.drivername not in DATABASE_DRIVERS:
        raise ValueError(f"has the unknown driver {url.drivername[:40]!r}: use {DATABASE_EXAMPLES}")
    names = [name.upper() for name in (*(["database_password"] if password else []), *files)]
    if not names:
        return value
    given = f"{' and '.join(names)} is set"
    if DATABASE_DRIVERS[url.drivername] != DATABASE_DRIVERS["postgresql"]:
        raise ValueError(f"must be one of PostgreSQL, as {given}")
    if password and url.password is not None:
        raise ValueError("must hold no password, as DATABASE_PASSWORD is set")
    if twice := sorted({LIBPQ_NAMES[name] for name in files} & url.query.keys()):
        raise ValueError(f"must not have {twice[0]}, as {given}")
    url = url.update_query_dict({LIBPQ_NAMES[name]: file for name, file in files.items()})
    return url.set(password=password or url.password).render_as_string(hide_password=False)


def is_every_address(host: str) -> bool:
    """Return whether a server at ``host`` listens on all addresses: ``0.0.0.0`` or ``::``."""
    return _is_address(host) and ip_address(host).is_unspecified


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_address(text: str) -> bool:
    """Return whether it is an IP address that a URL can contain."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", text) is not None


def _http_url(value: str) -> URL | None:
    try:
        url = URL(value)
        usable = url.scheme in ("http", "https") and url.host and url.port
    except ValueError:
        return None
    return url if usable and not re.search(r"\s", value) else None


MAX_TOPIC_LENGTH = 249
# By Apache Kafka's rule for topics. Kafka allows any name for a group, but other names are hard to
# use on a command line.
Name = Annotated[
    str,
    matching(
        r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}",
        "must be 1 to 249 of the characters A-Z a-z 0-9 . _ -, not . or ..",
    ),
]
Servers = Annotated[str, AfterValidator(check_servers)]
Host = Annotated[str, parsing(check_host)]
HostNames = Annotated[
    str,
    matching(
        rf"\s*{HOST_NAME}(\s*,\s*{HOST_NAME})*\s*,?\s*",
        "must be host names without ports, several separated by commas",
    ),
]
HttpUrl = Annotated[str, parsing(check_url)]
ProxyUrl = Annotated[SecretStr, parsing(check_proxy)]
Token = Annotated[SecretStr, AfterValidator(check_token)]
RequestHeaders = Annotated[SecretStr, parsing(parse_headers)]
SigningSecrets = Annotated[SecretStr, parsing(parse_signing_secrets)]
ContentType = Annotated[
    str,
    matching(  # RFC 9110, 8.3.1
        rf"{HTTP_NAME}/{HTTP_NAME}(?:[ \t]*;[ \t]*{HTTP_NAME}=(?:{HTTP_NAME}|{QUOTED}))*",
        "must be a media type like application/json or text/json; charset=utf-8",
    ),
]
Extensions = Annotated[
    str,
    matching(
        f"{EXTENSION}(,{EXTENSION})*",
        "must be name=value, several separated by commas, the names letters only, not auth",
    ),
]
Waits = Annotated[str, parsing(parse_waits)]
Authorities = Annotated[FilePath, parsing(check_authorities)]
