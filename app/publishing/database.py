"""Connecting to the fallback table's database, and its errors in our words."""

from __future__ import annotations

import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped] # ships no types
import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.errors import DatabaseUnavailable, InvalidDatabaseUrl
from app.publishing.database_tls import take_tls
from app.setting_rules import DATABASE_DRIVERS, DATABASE_EXAMPLES

CONNECT_TIMEOUT_SECONDS = 10.0
COMMAND_TIMEOUT_SECONDS = 60.0
SQLITE_BUSY_TIMEOUT_SECONDS = 30.0
SQLITE_LEAST = (3, 35)  # UPDATE ... RETURNING


def parse_database_url(database_url: str) -> sa.URL:
    """Return the URL with the driver that will be used.

    Raises:
        InvalidDatabaseUrl: It is no URL, of another database or driver, or names no database; the
            message has no password in it.
    """
    try:
        url = sa.make_url(database_url)
    except (ArgumentError, ValueError):
        raise InvalidDatabaseUrl(f"DATABASE_URL is not a URL like {DATABASE_EXAMPLES}") from None
    driver = DATABASE_DRIVERS.get(url.drivername)
    if driver is None:
        raise InvalidDatabaseUrl(
            f"DATABASE_URL has the unknown driver {url.drivername[:40]!r}: "
            f"it must be like {DATABASE_EXAMPLES}"
        )
    url = url.set(drivername=driver)
    if driver == "sqlite+aiosqlite":
        if not url.database or ":memory:" in url.database or "mode=memory" in url.database:
            raise InvalidDatabaseUrl(
                "DATABASE_URL must name a file, which outlives the process, such as "
                "sqlite+aiosqlite:///order-relay.db"
            )
        if url.host:
            raise InvalidDatabaseUrl(
                f"DATABASE_URL of SQLite has three slashes and a path, or four and one from the "
                f"root: {DATABASE_EXAMPLES}"
            )
    elif not url.database:
        raise InvalidDatabaseUrl(
            f"DATABASE_URL must name a database: it must be like {DATABASE_EXAMPLES}"
        )
    return url


def make_engine(
    database_url: str, *, command_timeout_seconds: float | None = COMMAND_TIMEOUT_SECONDS
) -> AsyncEngine:
    """Make an engine; nothing is connected yet.

    Transactions on SQLite begin as DEFERRED, or as the execution option ``relay_begin`` says:
    IMMEDIATE lets writers queue up instead of failing half-way, None begins none.

    Raises:
        InvalidDatabaseUrl: See ``parse_database_url`` and ``take_tls``.
    """
    url = parse_database_url(database_url)
    if url.get_backend_name() == "postgresql":
        url, tls = take_tls(url)
        return create_async_engine(
            url,
            pool_pre_ping=True,  # a database that was restarted is no error
            pool_timeout=CONNECT_TIMEOUT_SECONDS,
            connect_args={
                "timeout": CONNECT_TIMEOUT_SECONDS,
                "command_timeout": command_timeout_seconds,
                **({} if tls is None else {"ssl": tls}),
                "server_settings": {
                    "application_name": "order-relay",
                    # Compiling a claim would take longer than the claim.
                    "jit": "off",
                },
            },
        )
    if sqlite3.sqlite_version_info < SQLITE_LEAST:
        raise InvalidDatabaseUrl(
            f"DATABASE_URL of SQLite needs SQLite 3.35, and this Python has "
            f"{sqlite3.sqlite_version}: use PostgreSQL, or a newer Python"
        )
    engine = create_async_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})
    sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin transactions by itself, and not all of them.
    connection.isolation_level = None
    cursor = connection.cursor()
    # What is committed survives a power failure: in WAL mode NORMAL would not promise that.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    kind = connection.get_execution_options().get("relay_begin", "DEFERRED")
    if kind is not None:
        connection.exec_driver_sql(f"BEGIN {kind}")


@contextmanager
def translated() -> Iterator[None]:
    """Turn the drivers' errors into ``DatabaseUnavailable``."""
    try:
        yield
    except (
        SQLAlchemyError,
        sqlite3.Error,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        OSError,  # TimeoutError among them
    ) as error:
        refused = isinstance(error, IntegrityError | DataError) or (
            # What asyncpg refuses to encode comes as a bare DBAPIError.
            isinstance(error, DBAPIError)
            and type(error) in {DBAPIError, ProgrammingError}
            and not error.connection_invalidated
        )
        raise DatabaseUnavailable(describe(error), statement_refused=refused) from error


def describe(error: BaseException) -> str:
    """Return a driver's error on one line, without the statement and its parameters."""
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"certificate verify failed: {cause.verify_message} (DATABASE_SSL_CA_FILE, or "
            "sslrootcert in DATABASE_URL)"
        )
    text = " ".join(str(cause).split()) or type(cause).__name__
    # SQLAlchemy puts the class of asyncpg's errors in front.
    return text.rpartition(">: ")[2] if text.startswith("<class") else text
