"""Connecting to the fallback table's database, and translating its errors."""

from __future__ import annotations

import re
import sqlite3
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
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

from order_relay.errors import DatabaseReplaced, DatabaseUnavailable, InvalidDatabaseUrl
from order_relay.settings.rules import (
    DATABASE_DRIVERS,
    DATABASE_EXAMPLES,
    complete_database_url,
)

CONNECT_TIMEOUT_SECONDS = 10.0
COMMAND_TIMEOUT_SECONDS = 60.0
# PostgreSQL ends a transaction in which nothing happens for so long.
IDLE_TRANSACTION_SECONDS = 15
SQLITE_BUSY_TIMEOUT_SECONDS = 30.0
# SQLSTATE read_only_sql_transaction: a standby, or default_transaction_read_only.
READ_ONLY = "25006"
# A connection that ended while it was made. asyncpg's error has one of the others as its cause.
LOST = (asyncpg.ConnectionDoesNotExistError, ConnectionResetError, ssl.SSLError)
CERTIFICATE_HINT = (
    " (the server may refuse our certificate: DATABASE_SSL_CERT_FILE, or sslcert in DATABASE_URL)"
)
SQLITE_PARAMETERS = ("timeout", "cached_statements", "check_same_thread")
# PostgreSQL counts microseconds from here.
POSTGRESQL_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT = datetime.max.replace(tzinfo=UTC)
TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
TLS_FILES = ("sslrootcert", "sslcert", "sslkey")
# libpq's name for the certificate authorities of the system, which are the default here.
SYSTEM_AUTHORITIES = "system"
# The other parameters that a URL may have. Their values are text.
OTHER_PARAMETERS = (
    "host", "port", "target_session_attrs", "passfile", "krbsrvname", "gsslib",
    "prepared_statement_cache_size",
)  # fmt: skip
NUMBER_PARAMETERS = ("port", "prepared_statement_cache_size")
SQLITE_MINIMUM = (3, 35)  # UPDATE ... RETURNING
# The key of a SQLite connection's ``OpenedFile`` in its ``info``.
OPENED_FILE = "order_relay_file"


class OpenedFile:
    """The file that a connection to SQLite has opened.

    After the file was deleted or replaced, SQLite in WAL mode goes on committing into the old one,
    and everything there is lost when the process ends.
    """

    def __init__(self, path: str, real_path: str) -> None:
        """Note which file it is; call this when the connection is made.

        Args:
            path: The path in the settings; it may contain links, which may be changed.
            real_path: The path without links, beside which SQLite keeps its log.
        """
        self._paths = (path, f"{real_path}-wal")
        self._opened = {path: _file_id(path) or (0, 0)}

    def check(self) -> None:
        """Check that the file and its write-ahead log are still the ones that are open.

        Raises:
            DatabaseReplaced: One was deleted or replaced.
        """
        for path in self._paths:
            found = _file_id(path)
            if path in self._opened:
                if found != self._opened[path]:
                    raise DatabaseReplaced(path)
            elif found is not None:  # the first write has created the log
                self._opened[path] = found


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _parsed(database_url: str) -> sa.URL:
    """Return the URL with the driver that will be used."""
    try:
        url = sa.make_url(complete_database_url(database_url, None, {}))
    except ValueError as error:
        raise InvalidDatabaseUrl(f"DATABASE_URL {error}") from None
    url = url.set(drivername=DATABASE_DRIVERS[url.drivername])
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise InvalidDatabaseUrl(
                "DATABASE_URL must name a file, which outlives the process, such as "
                "sqlite+aiosqlite:///order-relay.db"
            )
        if url.host:
            raise InvalidDatabaseUrl(
                f"DATABASE_URL of SQLite has three slashes and a path, or four and one from the "
                f"root: {DATABASE_EXAMPLES}"
            )
        _check_parameters(url.query, SQLITE_PARAMETERS)
    elif not url.database:
        raise InvalidDatabaseUrl(
            f"DATABASE_URL must name a database: it must be like {DATABASE_EXAMPLES}"
        )
    return url


def _check_parameters(
    query: Mapping[str, object], known: Sequence[str], others: Sequence[str] = ()
) -> None:
    if unknown := sorted(query.keys() - {*known}):
        raise InvalidDatabaseUrl(
            f"DATABASE_URL has the unknown parameter {unknown[0][:40]!r}: allowed are "
            f"{', '.join((*others, *known))}"
        )


def make_engine(
    database_url: str,
    *,
    command_timeout_seconds: float | None = COMMAND_TIMEOUT_SECONDS,
) -> AsyncEngine:
    """Make an engine; nothing is connected yet.

    A transaction on SQLite begins as DEFERRED, or as the execution option ``relay_begin`` says;
    None begins no transaction.

    Args:
        database_url: The database.
        command_timeout_seconds: Time-out of one statement on PostgreSQL; None: no limit.

    Raises:
        InvalidDatabaseUrl: The URL cannot be parsed, has another driver or an unknown parameter,
            names no database, or has a part that cannot be used. The message does not contain the
            password.
    """
    url = _parsed(database_url)
    try:
        engine = _make_engine(url, command_timeout_seconds)
        _, options = engine.dialect.create_connect_args(engine.url)
    except (ArgumentError, ValueError):
        raise InvalidDatabaseUrl(
            f"DATABASE_URL has a part that cannot be used: it must be like {DATABASE_EXAMPLES}"
        ) from None
    ports = options.get("port") or ()
    for port in ports if isinstance(ports, list | tuple) else [ports]:
        if not 0 < port < 65536:
            raise InvalidDatabaseUrl(f"DATABASE_URL has the port {port}: it must be 1 to 65535")
    return engine


def _make_engine(url: sa.URL, command_timeout_seconds: float | None) -> AsyncEngine:
    if url.get_backend_name() == "postgresql":
        hint = CERTIFICATE_HINT if url.query.get("sslcert") else ""
        url, tls = _split_tls(url)
        engine = create_async_engine(
            url,
            pool_pre_ping=True,  # so that a restart of the database causes no error
            # The server may have another default, with which two claims at once would fail.
            isolation_level="READ COMMITTED",
            pool_timeout=CONNECT_TIMEOUT_SECONDS,
            connect_args={
                "timeout": CONNECT_TIMEOUT_SECONDS,
                "command_timeout": command_timeout_seconds,
                **({} if tls is None else {"ssl": tls}),
                "server_settings": {"application_name": "order-relay"},
                # A pooler such as PgBouncer may give each transaction another connection to the
                # server, where statements prepared in earlier transactions do not exist.
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": str,  # the unnamed statement
            },
        )
        sa.event.listen(engine.sync_engine, "do_connect", partial(_connect_postgresql, hint))
        sa.event.listen(engine.sync_engine, "connect", _prepare_postgresql)
        sa.event.listen(engine.sync_engine, "close", _close_postgresql)
        sa.event.listen(engine.sync_engine, "handle_error", _drop_if_read_only)
        return engine
    if sqlite3.sqlite_version_info < SQLITE_MINIMUM:
        raise InvalidDatabaseUrl(
            f"DATABASE_URL of SQLite needs SQLite 3.35, and this Python has "
            f"{sqlite3.sqlite_version}: use PostgreSQL, or a newer Python"
        )
    engine = create_async_engine(
        url,
        # The default before SQLAlchemy 2.0.38 opens the file for each use. When the last connection
        # is closed, SQLite deletes its write-ahead log, which looks like a file that was replaced.
        poolclass=sa.AsyncAdaptedQueuePool,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
    )
    path = str(Path(url.database or "").absolute())
    sa.event.listen(engine.sync_engine, "connect", partial(_prepare_sqlite, path))
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def immediate(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine for writers: on SQLite they wait instead of failing half-way."""
    return engine.execution_options(relay_begin="IMMEDIATE")


def idle_limit() -> sa.ColumnElement[str]:
    """Return what limits how long PostgreSQL waits for the next statement of a transaction.

    Without it, nothing releases the locks of a worker whose host has vanished. It is selected in
    each transaction: a pooler such as PgBouncer refuses it as a parameter of the connection.
    """
    limit = f"{IDLE_TRANSACTION_SECONDS}s"
    return sa.func.set_config("idle_in_transaction_session_timeout", limit, True)


def _connect_postgresql(
    hint: str, dialect: Any, _record: object, args: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """Connect as SQLAlchemy does, which would not tell a lost connection from a refused statement.

    With TLS 1.3 a server judges our certificate only after our side of the handshake. Its alert may
    be lost, too.
    """
    try:
        return dialect.connect(*args, **options)
    except Exception as error:
        lost = [one for one in _causes(error) if isinstance(one, LOST)]
        if not lost or isinstance(lost[-1], ssl.SSLCertVerificationError):
            raise
        raise ConnectionResetError(f"{lost[-1]}{hint}") from error


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _prepare_postgresql(connection: Any, _record: object) -> None:
    connection.run_async(
        lambda driver: driver.set_type_codec(
            "timestamptz",
            schema="pg_catalog",
            encoder=_microseconds,
            decoder=_moment,
            format="tuple",
        )
    )


def _close_postgresql(connection: Any, _record: object) -> None:
    """Close without asking the server, which may hang."""
    connection.driver_connection.terminate()


def _drop_if_read_only(context: sa.ExceptionContext) -> None:
    """Drop all connections once one of them turns out to be read-only.

    After a failover they may still lead to what is now a standby, which answers every question, and
    the database's address to the new primary.
    """
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _microseconds(moment: datetime) -> tuple[int]:
    return ((moment.astimezone(UTC) - POSTGRESQL_EPOCH) // timedelta(microseconds=1),)


def _moment(microseconds: tuple[int]) -> datetime:
    """Return a time; outside Python's calendar, the first or last time that Python has.

    The driver would raise instead, and one such row would make all rows unreadable.
    """
    try:
        return POSTGRESQL_EPOCH + timedelta(microseconds=microseconds[0])
    except OverflowError:
        return LAST_MOMENT if microseconds[0] > 0 else FIRST_MOMENT


def _prepare_sqlite(path: str, connection: Any, record: sa.pool.ConnectionPoolEntry) -> None:
    # We begin all transactions; the driver would begin only some.
    connection.isolation_level = None
    connection.driver_connection.text_factory = _text
    cursor = connection.cursor()
    # Commits must survive a power failure; in WAL mode NORMAL does not guarantee that.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA database_list")
    real_path: str = cursor.fetchone()[2]
    record.info[OPENED_FILE] = OpenedFile(path, real_path)
    cursor.close()


def _text(value: bytes) -> str | bytes:
    """Return text, or bytes that are not UTF-8 unchanged, as other programs may write them.

    The driver would raise instead, and one such row would make all rows unreadable.
    """
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _begin_sqlite(connection: sa.Connection) -> None:
    kind = connection.get_execution_options().get("relay_begin", "DEFERRED")
    if kind is not None:
        connection.exec_driver_sql(f"BEGIN {kind}")


@contextmanager
def translated() -> Iterator[None]:
    """Raise ``DatabaseUnavailable`` for any error of the drivers."""
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
            # For a value that asyncpg cannot encode, SQLAlchemy raises DBAPIError itself.
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
    text = " ".join(str(cause).split()) or (
        "no answer in time" if isinstance(cause, TimeoutError) else type(cause).__name__
    )
    if "connection_lost()" in text:  # asyncpg's text for this
        return "the server closed the connection"
    # SQLAlchemy puts the class of asyncpg's errors in front.
    return text.rpartition(">: ")[2] if text.startswith("<class") else text


# --- TLS to PostgreSQL, by libpq's parameters of a URL ------------------------------------------
# SQLAlchemy passes only the mode to asyncpg, which then trusts only the home folder's certificates.


def _split_tls(url: sa.URL) -> tuple[sa.URL, ssl.SSLContext | str | None]:
    """Return a PostgreSQL URL without its TLS parameters, and these as asyncpg's ``ssl``."""
    query = dict(url.query)
    mode = _last(query.pop("sslmode", None) or query.pop("ssl", None))
    files = {name: _last(query.pop(name, None)) for name in TLS_FILES}
    query.pop("ssl", None)
    _check_parameters(query, OTHER_PARAMETERS, ("sslmode", *TLS_FILES))
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
    if mode is not None and mode not in TLS_MODES:
        raise InvalidDatabaseUrl(
            f"DATABASE_URL has sslmode={mode[:40]!r}: it must be one of {', '.join(TLS_MODES)}"
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
            cafile=None if authorities in (None, SYSTEM_AUTHORITIES) else authorities
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
