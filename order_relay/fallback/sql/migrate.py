"""Brings the fallback table up to date: at every start of a worker, and as a command.

The command is ``python -m order_relay.fallback.sql.migrate``. Several workers may start at once:
one migrates while the others wait.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from order_relay.errors import DatabaseTooNew, DatabaseUnavailable, RelayError
from order_relay.fallback.sql.engine import (
    SQLITE_BUSY_TIMEOUT_SECONDS,
    idle_limit,
    immediate,
    make_engine,
    translated,
)
from order_relay.settings import load_settings

MIGRATIONS = Path(__file__).parent / "migrations"
# Not Alembic's default name: the database may have other Alembic migrations already.
VERSION_TABLE = "kafka_fallback_version"
_VERSION = sa.table(VERSION_TABLE, sa.column("version_num", sa.String))
# A number that other programs are unlikely to use: the letters "kfm" and a one.
ADVISORY_LOCK = 0x6B666D01
# A migration that is cancelled may finish what takes no longer.
FINISH_SECONDS = 1.0
LOCK_POLL_SECONDS = 0.05
# How long the first question waits for a table that a person has locked.
LOCK_SECONDS = 30
# Alembic keeps its state in module globals: one migration at a time in a process.
_ALEMBIC = threading.Lock()

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Revisions:
    """A database's revision (None without a table), and the one that this version needs."""

    found: str | None
    wanted: str


async def migrate(database_url: str) -> Revisions:
    """Migrate the fallback table to the newest revision, in one transaction.

    Returns:
        The revision before, and the one now.

    Raises:
        InvalidDatabaseUrl: The URL cannot be used.
        DatabaseTooNew: A newer version of the relay has migrated it; nothing was changed.
        DatabaseUnavailable: The database did not answer, or refused; nothing was changed.
    """
    work = asyncio.create_task(_migrate(database_url))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # A worker that stops right after its start: the drivers log a connection that is cancelled.
        await asyncio.wait([work], timeout=FINISH_SECONDS)
        work.cancel()
        raise


async def try_migration(database_url: str) -> None:
    """Migrate as ``migrate`` does, with its errors, and roll it back: nothing is changed."""
    await _migrate(database_url, keep=False)


async def _migrate(database_url: str, *, keep: bool = True) -> Revisions:
    # No time-out: another worker's migration may take long.
    engine = make_engine(database_url, command_timeout_seconds=None)
    try:
        with translated():
            if keep and engine.dialect.name == "sqlite":
                await _use_wal(engine)
            async with immediate(engine).begin() as connection, _alembic():
                revisions = await connection.run_sync(_upgrade)
                if not keep:
                    await connection.rollback()
                return revisions
    finally:
        await engine.dispose()


@asynccontextmanager
async def _alembic() -> AsyncIterator[None]:
    """Hold the lock on Alembic, across all loops and threads of the process."""
    while not _ALEMBIC.acquire(blocking=False):  # noqa: ASYNC110 - asyncio's locks are one loop's
        await asyncio.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        _ALEMBIC.release()


def _upgrade(connection: sa.Connection) -> Revisions:
    is_postgresql = connection.dialect.name == "postgresql"
    if is_postgresql:
        connection.execute(sa.select(idle_limit(), _lock_limit(f"{LOCK_SECONDS}s")))
    revisions = read_revisions(connection)
    if revisions.found == revisions.wanted:
        return revisions
    if is_postgresql:
        connection.execute(sa.select(_lock_limit("0")))  # another migration may take long
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(ADVISORY_LOCK))):
            logger.warning("Another process migrates the fallback table, waiting for it")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        revisions = read_revisions(connection)
    if revisions.found != revisions.wanted:
        _upgrade_by_alembic(connection)
    return revisions


def _lock_limit(wait: str) -> sa.ColumnElement[str]:
    return sa.func.set_config("lock_timeout", wait, True)


def read_revisions(connection: sa.Connection) -> Revisions:
    """Return a database's revisions.

    Raises:
        DatabaseTooNew: A newer version has migrated it.
    """
    found, known = revision_of(connection), known_revisions()
    if found is not None and found not in known:
        raise DatabaseTooNew(found, max(known))
    return Revisions(found, max(known))


def revision_of(connection: sa.Connection) -> str | None:
    """Return a database's revision; ``None`` without a table."""
    if not sa.inspect(connection).has_table(_VERSION.name):
        return None
    return connection.scalar(sa.select(_VERSION.c.version_num))


def known_revisions() -> set[str]:
    """Return all revisions, read from the modules' names: r<revision>_<what>.py."""
    modules = (MIGRATIONS / "versions").glob("r*_*.py")
    return {module.stem[1:].split("_")[0] for module in modules}


def _upgrade_by_alembic(connection: sa.Connection) -> None:
    # Our own lines say the same. Alembic writes some already when it is imported.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # The import takes a tenth of a second, and there is rarely something to upgrade.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    command.upgrade(config, "head")


async def _use_wal(engine: AsyncEngine) -> None:
    """Switch a SQLite file to WAL mode, permanently.

    While others use the file, SQLite refuses at once instead of waiting, so this tries again.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SQLITE_BUSY_TIMEOUT_SECONDS
    while True:
        try:
            async with engine.execution_options(relay_begin=None).connect() as connection:
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                return
        except OperationalError as error:
            if "locked" not in str(error) or loop.time() >= deadline:
                raise
            await asyncio.sleep(LOCK_POLL_SECONDS)


async def _prepare(database_url: str) -> Revisions:
    """Migrate, and make the table of the audit log."""
    from order_relay.fallback.sql.audit_log import AuditLog  # noqa: PLC0415 - it imports this

    migrated = await migrate(database_url)
    engine = make_engine(database_url)
    try:
        await AuditLog(engine).make_table()
    except DatabaseUnavailable as error:  # all else works without it
        sys.stderr.write(f"The table of the audit log was not made: {error}\n")
    finally:
        await engine.dispose()
    return migrated


def main() -> None:
    """Migrate the database of the settings; print one line."""
    if sys.argv[1:]:  # such as --help, --dry-run, or a URL, which must not be repeated
        sys.exit("this takes no arguments: it migrates the database that DATABASE_URL names")
    try:
        migrated = asyncio.run(_prepare(load_settings().database_url.get_secret_value()))
    except RelayError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Aborted!")
    before = migrated.found or "nothing"
    print(  # noqa: T201 - the command's output
        f"The database is up to date (revision {migrated.wanted})"
        if migrated.found == migrated.wanted
        else f"The database was migrated from {before} to revision {migrated.wanted}"
    )


if __name__ == "__main__":
    main()
