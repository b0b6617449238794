"""The worker's fallback table on a real SQLite file: opened first, or nothing is written."""

import sqlite3
import threading
from pathlib import Path

import pytest

from app.errors import DatabaseTooNew, DatabaseUnavailable, InvalidDatabaseUrl
from app.operations.fallback_table import FallbackTable
from app.publishing.fallback import RowFilter
from app.publishing.migrate import VERSION_TABLE
from tests.support.publish_fakes import message
from tests.support.waiting import eventually


async def test_a_table_that_is_not_open_keeps_nothing(tmp_path: Path) -> None:
    """Saving is refused until the table is up to date, then it works."""
    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    with pytest.raises(DatabaseUnavailable, match="not open yet"):
        await table.save(message())
    assert (await table.open()).before is None
    assert await table.save(message()) == 1
    again = await table.open()
    assert again.before == again.after
    assert len(await table.find(RowFilter())) == 1
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


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    """A file that cannot be made is the database's trouble, in one line."""
    table = FallbackTable(f"sqlite+aiosqlite:///{tmp_path}/missing/relay.db")
    with pytest.raises(DatabaseUnavailable) as raised:
        await table.open()
    assert "\n" not in str(raised.value)
    await table.close()
    # The driver's thread tells the loop of its end, which must be there to hear it.
    await eventually(lambda: not [one for one in threading.enumerate() if _is_drivers(one)])


def test_the_place_has_no_password_and_the_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What people read leads them to the database and gives nothing away."""
    monkeypatch.chdir(tmp_path)
    assert FallbackTable("sqlite:///relay.db").place == (f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    place = FallbackTable("postgresql://relay:hush@db:5432/orders").place
    assert place == "postgresql+asyncpg://relay:***@db:5432/orders"


def test_a_url_that_names_no_database() -> None:
    """It is refused before anything is connected."""
    with pytest.raises(InvalidDatabaseUrl, match="must name a file"):
        FallbackTable("sqlite://")


def _is_drivers(thread: threading.Thread) -> bool:
    return "_connection_worker_thread" in thread.name


def _set_revision(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = ?", (revision,))  # noqa: S608 - our own name
    connection.close()
