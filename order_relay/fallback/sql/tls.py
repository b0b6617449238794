"""TLS to PostgreSQL by libpq's parameters of a URL.

They are ``sslmode`` (or ``ssl``, asyncpg's name), ``sslrootcert``, ``sslcert`` and ``sslkey``.
SQLAlchemy passes only the mode to asyncpg, which then trusts only certificates in the home folder.
"""

from __future__ import annotations

import re
import ssl

import sqlalchemy as sa

from order_relay.errors import InvalidDatabaseUrl

MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
FILES = ("sslrootcert", "sslcert", "sslkey")
# libpq's name for the certificate authorities of the system, which are the default here.
SYSTEM = "system"
# The other parameters that a URL may have. Their values are text.
OTHER_PARAMETERS = (
    "host", "port", "target_session_attrs", "passfile", "krbsrvname", "gsslib",
    "prepared_statement_cache_size",
)  # fmt: skip
NUMBER_PARAMETERS = ("port", "prepared_statement_cache_size")


def split_tls(url: sa.URL) -> tuple[sa.URL, ssl.SSLContext | str | None]:
    """Return a PostgreSQL URL without its TLS parameters, and these as asyncpg's ``ssl``.

    Raises:
        InvalidDatabaseUrl: A parameter is wrong; the message names it and what is allowed.
    """
    query = dict(url.query)
    mode = _last(query.pop("sslmode", None) or query.pop("ssl", None))
    files = {name: _last(query.pop(name, None)) for name in FILES}
    query.pop("ssl", None)
    if unknown := sorted(query.keys() - set(OTHER_PARAMETERS)):
        raise InvalidDatabaseUrl(
            f"DATABASE_URL has the unknown parameter {unknown[0][:40]!r}: allowed are "
            f"{', '.join(('sslmode', *FILES, *OTHER_PARAMETERS))}"
        )
    for name in NUMBER_PARAMETERS:
        number = _last(query.get(name))
        if number is not None and not re.fullmatch(r"[0-9]+(,[0-9]+)*", number):
            raise InvalidDatabaseUrl(
                f"DATABASE_URL has {name}={number[:40]!r}: it must be a number"
            )
    return url.set(query=query), _tls(mode, **files)


def _tls(
    mode: str | None, sslrootcert: str | None, sslcert: str | None, sslkey: str | None
) -> ssl.SSLContext | str | None:
    if mode is not None and mode not in MODES:
        raise InvalidDatabaseUrl(
            f"DATABASE_URL has sslmode={mode[:40]!r}: it must be one of {', '.join(MODES)}"
        )
    if sslrootcert is None and sslcert is None and sslkey is None:
        return _context(mode, None) if mode in ("verify-ca", "verify-full") else mode
    # A certificate in the URL is meant to be checked.
    mode = mode or "verify-full"
    if mode in ("disable", "allow", "prefer"):
        raise InvalidDatabaseUrl(
            f"DATABASE_URL has sslmode={mode}, which is not for certificates: it must be require, "
            "verify-ca or verify-full"
        )
    context = _context(mode, sslrootcert)
    if sslcert is not None:
        try:
            context.load_cert_chain(sslcert, sslkey, "")  # never asks on the terminal
        except (ssl.SSLError, OSError) as error:
            raise InvalidDatabaseUrl(
                f"sslcert={sslcert!r} and sslkey of DATABASE_URL must be a certificate and its key "
                f"without a password, in PEM ({_reason(error)})"
            ) from None
    elif sslkey is not None:
        raise InvalidDatabaseUrl("sslkey of DATABASE_URL needs sslcert")
    return context


def _context(mode: str | None, authorities: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=None if authorities in (None, SYSTEM) else authorities
        )
    except (ssl.SSLError, OSError) as error:
        raise InvalidDatabaseUrl(
            f"sslrootcert={authorities!r} of DATABASE_URL must be a PEM file of certificates "
            f"({_reason(error)})"
        ) from None
    context.check_hostname = mode == "verify-full"
    if mode == "require" and authorities is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def _last(value: str | tuple[str, ...] | None) -> str | None:
    return (value[-1] if isinstance(value, tuple) else value) or None


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or "no PEM"
