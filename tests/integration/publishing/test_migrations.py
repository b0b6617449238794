"""Migrating the table: several at once, from any folder, and never backwards."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import func, select, text

from order_relay.errors import DatabaseTooNew, DatabaseUnavailable, InvalidDatabaseUrl
from order_relay.fallback.sql.engine import make_engine
from order_relay.fallback.sql.migrate import (
    ADVISORY_LOCK,
    MIGRATIONS,
    Revisions,
    known_revisions,
    migrate,
)
from tests.support.publish_postgres import PostgresServer
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[3]
# Four processes; the status says whether one of them failed.
FORKED = """
import os, sys
from order_relay.fallback.sql.migrate import main
for _ in range(4):
    if os.fork() == 0:
        sys.exit(main())
sys.exit(any([os.wait()[1] for _ in range(4)]))
"""


async def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements; return the last one's rows."""
    engine = make_engine(url)
    try:
        async with engine.begin() as connection:
            for statement in statements:
                result = await connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        await engine.dispose()


async def test_migrating_twice(empty_url: str) -> None:
    """The first creates the table, the second changes nothing; the rows stay."""
    assert await migrate(empty_url) == Revisions(None, "0001")
    await execute(empty_url, "INSERT INTO kafka_fallback_message (topic) VALUES ('t')")
    assert await migrate(empty_url) == Revisions("0001", "0001")
    counted = await execute(
        empty_url, "SELECT status, COUNT(*) FROM kafka_fallback_message GROUP BY status"
    )
    assert counted == [("PENDING", 1)]


async def test_several_databases_at_once(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """One process migrates several databases at once."""
    urls = [f"sqlite+aiosqlite:///{tmp_path / name}" for name in ("a.db", "b.db")]
    urls += [postgres_server.url(postgres_server.create_database()) for _ in range(2)]
    assert await asyncio.gather(*map(migrate, urls)) == [Revisions(None, "0001")] * 4
    for url in urls:
        assert await execute(url, "SELECT * FROM kafka_fallback_message") == []


async def test_a_migration_that_waits_for_another_one_says_so(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It continues when the other one ends."""
    url = postgres_server.url(postgres_server.create_database())
    other = make_engine(url)
    async with other.connect() as connection, connection.begin():
        await connection.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        migrating = asyncio.create_task(migrate(url))
        await eventually(lambda: "waiting for it" in caplog.text)
        assert not migrating.done()
    assert (await migrating).found is None
    await other.dispose()


async def test_a_newer_version_has_been_here(empty_url: str) -> None:
    """An unknown revision is one clear error, and nothing is changed."""
    await migrate(empty_url)
    await execute(empty_url, "UPDATE kafka_fallback_version SET version_num = '0999'")
    with pytest.raises(DatabaseTooNew, match=r"0999.*0001"):
        await migrate(empty_url)
    versions = await execute(empty_url, "SELECT version_num FROM kafka_fallback_version")
    assert versions == [("0999",)]


async def test_all_or_nothing(empty_url: str) -> None:
    """A migration that fails half-way leaves nothing behind."""
    # An index of that name makes the migration fail after the table has been made.
    await execute(
        empty_url,
        "CREATE TABLE other (a INTEGER)",
        "CREATE INDEX kafka_fallback_message_status ON other (a)",
    )
    with pytest.raises(DatabaseUnavailable, match="already exists"):
        await migrate(empty_url)
    await execute(empty_url, "DROP TABLE other")
    assert await migrate(empty_url) == Revisions(None, "0001")


def test_several_processes_at_once(empty_url: str, tmp_path: Path) -> None:
    """Of four workers that start at once, one migrates and the others find the table."""
    # Forked, so that all have imported everything and start at the same moment.
    workers = _start(empty_url, tmp_path, "-c", FORKED)
    stdout, stderr = workers.communicate(timeout=120)
    assert workers.returncode == 0, stderr
    # With unbuffered stdout, a process may print between another one's line and its newline.
    assert sorted(re.findall(r"The database .+?0001\)?", stdout)) == [
        *["The database is up to date (revision 0001)"] * 3,
        "The database was migrated from nothing to revision 0001",
    ]
    assert "audit log" not in stderr
    assert asyncio.run(execute(empty_url, "SELECT COUNT(*) FROM kafka_relay_audit")) == [(0,)]


@pytest.mark.parametrize(
    ("url", "arguments", "words"),
    [
        ("mysql://u:secret@h/d", [], "DATABASE_URL has the unknown driver 'mysql'"),
        ("postgresql://u:secret@127.0.0.1:1/d", [], "the database refused: "),
        ("sqlite:///relay.db", ["--help"], "this takes no arguments: it migrates the database"),
    ],
    ids=["driver", "server", "arguments"],
)
def test_one_line_for_a_mistake(url: str, arguments: list[str], words: str, tmp_path: Path) -> None:
    """An unusable URL, and any argument, end the command with one line without the password."""
    worker = _start(url, tmp_path, "-m", "order_relay.fallback.sql.migrate", *arguments)
    stdout, stderr = worker.communicate(timeout=120)
    assert worker.returncode == 1
    assert stdout == ""
    assert words in stderr
    assert stderr.count("\n") == 1
    assert "secret" not in stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "mysql://u:p@h/d", "postgresql+psycopg2://u:p@h/d", "sqlite://",
        "postgresql://u:p@h", "sqlite:///:memory:", "sqlite://host/x.db", "postgresql+asyncpg://h:port/d",
        "sqlite:///file:?uri=true", "sqlite:///file:x?mode=memory&uri=true", "sqlite:///?uri=true",
        "sqlite:///file:/x?vfs=memdb&uri=true", "sqlite:///file:%3Amemory%3A?uri=true",
    ],
)  # fmt: skip
def test_wrong_urls_make_no_engine(url: str) -> None:
    """A URL of no database, or of one in memory, is refused before connecting."""
    with pytest.raises(InvalidDatabaseUrl, match="DATABASE_URL"):
        make_engine(url)


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("postgres://u:p@h/d", "postgresql+asyncpg"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg"),
    ],
)
def test_urls_as_people_write_them(url: str, driver: str) -> None:
    """The driver is optional, and URLs of hosting providers work."""
    made = make_engine(url).url
    assert made.drivername == driver
    assert "sslmode" not in made.query


def _start(url: str, folder: Path, *what: str) -> subprocess.Popen[str]:
    """Start Python with these arguments in another folder."""
    environment = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", *what],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_revisions_are_read_from_the_names_of_modules() -> None:
    """The known revisions and the newest one are those that Alembic finds."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    assert max(known_revisions()) == scripts.get_current_head()
    assert known_revisions() == {script.revision for script in scripts.walk_revisions()}
