"""The worker's fallback table on a real SQLite file and on PostgreSQL, with their faults."""

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from order_relay.errors import (
    DatabaseReplaced,
    DatabaseTooNew,
    DatabaseUnavailable,
    InvalidDatabaseUrl,
)
from order_relay.fallback import table as fallback_table
from order_relay.fallback.sql import engine
from order_relay.fallback.sql.audit_log import AuditEntry, AuditLog
from order_relay.fallback.sql.migrate import VERSION_TABLE, Revisions, migrate
from order_relay.fallback.store import RowFilter
from order_relay.fallback.table import FallbackTable
from tests.support.publish_fakes import message
from tests.support.publish_postgres import USER, PostgresServer
from tests.support.waiting import eventually


async def test_a_table_that_is_not_open_keeps_nothing(tmp_path: Path) -> None:
    """Saving is refused until the table is open."""
    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    with pytest.raises(DatabaseUnavailable, match="not open yet"):
        await table.save(message())
    assert (await table.open()).found is None
    assert await table.save(message()) == 1
    again = await table.open()
    assert again.found == again.wanted
    assert len(await table.find(RowFilter())) == 1
    await table.close()


async def test_cancelled_calls_do_not_look_like_a_replaced_file(tmp_path: Path) -> None:
    """Each may close its connection, and SQLite deletes its log with the last one."""
    replaced: list[int] = []
    url = f"sqlite+aiosqlite:///{tmp_path}/relay.db"
    table = FallbackTable(url, on_replaced=lambda: replaced.append(1))
    await table.open()
    for n in range(100):
        await table.save(message())
        call = asyncio.create_task(table.stats())
        for _ in range(n // 2):
            await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
    assert (await table.stats()).pending == 100
    assert not replaced
    await table.close()


async def test_a_table_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """The refusal names both revisions; the file is as it was."""
    url = f"sqlite+aiosqlite:///{tmp_path}/relay.db"
    first = FallbackTable(url)
    await first.open()
    await first.close()
    _set_revision(tmp_path / "relay.db", "9999")
    table = FallbackTable(url)
    with pytest.raises(DatabaseTooNew, match="9999"):
        await table.open()
    with pytest.raises(DatabaseUnavailable, match="9999"):
        await table.save(message())
    assert not await table.find(RowFilter())
    await table.close()
    # The same for a file that replaces ours.
    late = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/late.db")
    await late.open()
    _take_its_place(tmp_path / "relay.db", tmp_path / "late.db")
    with pytest.raises(DatabaseUnavailable, match="9999"):
        await late.save(message())
    await late.close()


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    """A file that cannot be created is DatabaseUnavailable, in one line, to later saves, too."""
    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/missing/relay.db")
    with pytest.raises(DatabaseUnavailable, match="unable to open database file") as opening:
        await table.open()
    assert "\n" not in str(opening.value)
    with pytest.raises(DatabaseUnavailable) as saving:
        await table.save(message())
    assert str(saving.value) == str(opening.value)
    await table.close()
    # The driver's thread reports its end to the loop, which must still run.
    await eventually(lambda: not [one for one in threading.enumerate() if _is_drivers(one)])


def test_the_location_has_no_password_and_the_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The location in messages has the whole path and no password."""
    monkeypatch.chdir(tmp_path)
    assert FallbackTable("sqlite:///relay.db").location == (
        f"sqlite+aiosqlite:///{tmp_path}/relay.db"
    )
    location = FallbackTable("postgresql://relay:hush@db:5432/orders").location
    assert location == "postgresql+asyncpg://relay:***@db:5432/orders"


def test_a_url_that_names_no_database() -> None:
    """It is refused before connecting."""
    with pytest.raises(InvalidDatabaseUrl, match="must name a file"):
        FallbackTable("sqlite://")


@pytest.mark.parametrize(
    ("url_of", "read_only"),
    [
        ("sqlite_url", "PRAGMA query_only = ON"),
        ("postgres_url", "SET default_transaction_read_only = on"),
    ],
)
async def test_a_database_that_only_reads(
    request: pytest.FixtureRequest, url_of: str, read_only: str
) -> None:
    """Rows can be counted; a write that changes nothing shows that saving is impossible."""
    table = FallbackTable(request.getfixturevalue(url_of))
    await table.open()

    @sa.event.listens_for(table.engine.sync_engine, "connect")
    def only_reads(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(read_only)
        cursor.close()
        connection.commit()

    await table.check_writes()
    await table.engine.dispose()
    assert (await table.stats()).pending == 0
    with pytest.raises(DatabaseUnavailable, match=r"read-?only"):
        await table.check_writes()
    await table.close()


@pytest.mark.parametrize("lacking", ["INSERT", "UPDATE", "DELETE", "none"])
async def test_the_rights_that_a_worker_needs(
    postgres_server: PostgresServer, lacking: str
) -> None:
    """The documented rights are enough; a missing one is found before a row needs it."""
    name = postgres_server.create_database()
    owner = FallbackTable(postgres_server.url(name))
    await owner.open()
    await AuditLog(owner.engine).make_table()
    await owner.close()
    role = f"worker_{lacking.lower()}"
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON kafka_fallback_message TO {role}",
        f"GRANT SELECT, UPDATE ON kafka_fallback_version TO {role}",
        f"GRANT SELECT, INSERT ON kafka_relay_audit TO {role}",
        f"GRANT USAGE ON SEQUENCE kafka_relay_audit_id_seq TO {role}",
        *([] if lacking == "none" else [f"REVOKE {lacking} ON kafka_fallback_message FROM {role}"]),
    ):
        postgres_server.execute(statement, name)
    table = FallbackTable(postgres_server.url(name).replace(f"{USER}@", f"{role}@"))
    await table.open()
    assert (await table.stats()).pending == 0
    if lacking == "none":
        await table.check_writes()
        assert await table.save(message()) == 1
        assert await table.discard([1]) == {1}
        entry = AuditEntry("Ada", "rows discarded", "fallback table", 1, "1")
        await AuditLog(table.engine).write(entry)
    else:
        with pytest.raises(DatabaseUnavailable, match="permission denied for table"):
            await table.check_writes()
    await table.close()
    postgres_server.drop_database(name)
    postgres_server.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("write", ["save", "claim"])
async def test_a_full_disk(tmp_path: Path, write: str) -> None:
    """A failed save or claim fails the next check, although the check's own write may fit."""
    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    await table.open()
    for _ in range(100):
        await table.save(message(topic="o"))
    await table.engine.dispose()

    @sa.event.listens_for(table.engine.sync_engine, "connect")
    def is_full(connection: Any, _record: object) -> None:
        connection.cursor().execute("PRAGMA max_page_count = 1")  # not one page more

    large = message(bytes(100_000))
    failing = table.save(large) if write == "save" else table.claim(limit=100, lease_seconds=60)
    with pytest.raises(DatabaseUnavailable, match="is full"):
        await failing
    with pytest.raises(DatabaseUnavailable, match="is full"):
        await table.check_writes()
    await table.check_writes()
    await table.close()


async def test_a_file_that_another_program_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers wait at the same time, not in turn: all are refused within two time-outs."""
    for module in (engine, fallback_table):
        monkeypatch.setattr(module, "SQLITE_BUSY_TIMEOUT_SECONDS", 1.0)
    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    await table.open()
    begun: list[str] = []
    sa.event.listen(
        table.engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: begun.append(statement),
    )
    other = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writes = (table.save(message()), *(table.requeue([1]) for _ in range(5)))
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [str(one) for one in results] == ["the database refused: database is locked"] * 6
    assert begun.count("BEGIN IMMEDIATE") <= 2
    monkeypatch.setattr(fallback_table, "HANGING_SECONDS", 0.5)
    begun.clear()
    many = [table.save(message()) for _ in range(5 * fallback_table.MAX_BATCH)]
    refused = await asyncio.gather(*many, return_exceptions=True)
    assert {str(one) for one in refused} == {"the database refused: database is locked"}
    assert begun.count("BEGIN IMMEDIATE") == 1
    other.execute("ROLLBACK")
    other.close()
    assert await table.save(message()) == 1
    await table.close()


async def test_a_server_that_closes_the_connection() -> None:
    """As a proxy does whose database is down: the error has a readable reason."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    table = FallbackTable(f"postgresql://{USER}@127.0.0.1:{port}/orders")
    async with server:
        with pytest.raises(DatabaseUnavailable, match="the server closed the connection"):
            await table.open()
    await table.close()


async def test_closing_does_not_wait_for_a_server_that_hangs(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    """The driver alone would wait on each connection."""
    table = FallbackTable(postgres_url)
    await table.open()
    await table.stats()
    used = f"datname = '{table.engine.url.database}' AND application_name = 'order-relay'"
    pids = postgres_server.execute(f"SELECT pid FROM pg_stat_activity WHERE {used}")  # noqa: S608 - the test's own name
    assert pids
    for (pid,) in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.wait_for(table.close(), 30)
    finally:
        for (pid,) in pids:
            os.kill(pid, signal.SIGCONT)


def _take_its_place(other: Path, path: Path) -> None:
    for beside in ("-wal", "-shm"):
        Path(f"{path}{beside}").unlink(missing_ok=True)
    other.rename(path)


def _delete(path: Path) -> None:
    for name in ("relay.db", "relay.db-wal", "relay.db-shm"):
        (path.parent / name).unlink()


def _move(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def _replace(path: Path) -> None:
    other = path.with_suffix(".other")
    sqlite3.connect(other).close()
    other.touch()
    other.rename(path)
    path.with_suffix(".db-wal").unlink()
    path.with_suffix(".db-shm").unlink()


def _delete_the_log(path: Path) -> None:
    path.with_suffix(".db-wal").unlink()
    path.with_suffix(".db-shm").unlink()


def _link_elsewhere(path: Path) -> None:
    path.parent.unlink()
    path.parent.symlink_to(path.parent.parent / "second")


HARMS = pytest.mark.parametrize(
    "harm", [_delete, _move, _replace, _delete_the_log, _link_elsewhere]
)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A file in a folder that is a link."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "first")
    return tmp_path / "data" / "relay.db"


@HARMS
async def test_a_deleted_file_is_logged_and_opened_anew(
    linked: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    """Later saves are in the new file, and still there after a restart."""
    told = list[str]()
    url = f"sqlite+aiosqlite:///{linked}"
    table = FallbackTable(url, on_replaced=lambda: told.append("replaced"))
    await table.open()
    # Open several connections, which must not be reused.
    await asyncio.gather(table.save(message()), *(table.stats() for _ in range(4)))
    await table.stats()
    harm(linked)
    await table.save(message(b"later"))
    await asyncio.gather(table.save(message(b"last")), *(table.stats() for _ in range(4)))
    await table.close()

    assert told == ["replaced"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "deleted or replaced" in line
    assert f"path={linked.parents[1]}" in line
    assert "pending=1 failed=0" in line
    again = FallbackTable(url)
    await again.open()
    assert [row.payload for row in await again.find(RowFilter())][-2:] == [b"later", b"last"]
    await again.close()


@HARMS
async def test_a_save_counts_only_if_its_file_is_still_there(
    linked: Path, harm: Callable[[Path], None]
) -> None:
    """If the file vanishes before the commit, the save is refused; the next one works."""
    table = FallbackTable(f"sqlite+aiosqlite:///{linked}")
    await table.open()
    await table.save(message())
    sa.event.listen(table.engine.sync_engine, "commit", lambda _: harm(linked), once=True)
    with pytest.raises(DatabaseReplaced, match=r"relay\.db(-wal)? was deleted or replaced"):
        await table.save(message(b"refused"))
    row_id = await table.save(message(b"saved"))
    assert [row.payload for row in await table.find(RowFilter(ids=[row_id]))] == [b"saved"]
    await table.close()


@HARMS
async def test_an_empty_file_that_another_connection_made_is_seen(
    linked: Path, harm: Callable[[Path], None]
) -> None:
    """A sweep connects before the file is checked; the next save still works.

    Its new file may get the inode of the deleted one, so that they look the same.
    """
    told = list[str]()
    url = f"sqlite+aiosqlite:///{linked}"
    table = FallbackTable(url, on_replaced=lambda: told.append("replaced"))
    await table.open()
    await table.save(message())
    harm(linked)
    with suppress(DatabaseUnavailable):  # such as "no such table"
        await table.claim(limit=1, lease_seconds=60)
    row_id = await table.save(message(b"saved"))
    assert [row.payload for row in await table.find(RowFilter(ids=[row_id]))] == [b"saved"]
    assert told == ["replaced"]
    await table.close()


async def test_a_file_that_goes_while_the_table_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening fails for an empty file, and works when it is tried again."""

    async def migrate_in_vain(url: str) -> Revisions:
        migrated = await migrate(url)
        (tmp_path / "relay.db").unlink()
        return migrated

    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    with monkeypatch.context() as patched:
        patched.setattr(fallback_table, "migrate", migrate_in_vain)
        with pytest.raises(DatabaseReplaced):
            await table.open()
    with pytest.raises(DatabaseUnavailable, match="was deleted or replaced"):
        await table.save(message())
    await table.open()
    assert await table.save(message()) == 1
    await table.close()


async def test_a_file_whose_place_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Saves are refused until the folder is back; one line is logged."""
    folder = tmp_path / "data"
    folder.mkdir()
    table = FallbackTable(f"sqlite+aiosqlite:///{folder}/relay.db")
    await table.open()
    await table.save(message())
    folder.rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            await table.save(message())
        with pytest.raises(DatabaseUnavailable, match="unable to open"):
            await table.stats()
    folder.mkdir()
    assert await table.save(message()) == 1
    assert len([one for one in caplog.records if one.levelname == "ERROR"]) == 1
    await table.close()


def _is_drivers(thread: threading.Thread) -> bool:
    return "_connection_worker_thread" in thread.name


def _set_revision(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = ?", (revision,))  # noqa: S608 - our own name
    connection.close()
