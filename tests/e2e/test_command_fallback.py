"""``order-relay fallback …`` as a user types them, on a SQLite file and without Kafka."""

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from order_relay.fallback.sql.migrate import VERSION_TABLE
from order_relay.fallback.sql.schema import TABLE_NAME
from order_relay.fallback.store import NewMessage
from order_relay.fallback.table import FallbackTable
from tests.support.publish_command import Commands, asked, nothing_in

pytestmark = pytest.mark.e2e

SET_STATUS = f"UPDATE {TABLE_NAME} SET status = ? WHERE id = ?"  # noqa: S608 - our own name
GET_STATUSES = f"SELECT id, status FROM {TABLE_NAME} ORDER BY id"  # noqa: S608 - our own name
STATUSES = ("PENDING", "PUBLISHED", "FAILED", "FAILED", "PENDING")


# Alembic keeps its state in global variables: one migration at a time.
MIGRATING = asyncio.Lock()


async def recovered_all(folder: Path, statuses: Sequence[str] = STATUSES) -> Commands:
    """A relay whose table has a row of each status, ids from 1."""
    commands = Commands(folder)
    store = FallbackTable(commands.database_url)
    async with MIGRATING:
        await store.open()
    for number, _ in enumerate(statuses, 1):
        await store.save(
            NewMessage(
                "orders" if number % 2 else "orders.DLQ",
                b"%d" % number,
                b"\xff" if number == 3 else b'{"orderId":1}',
                (("event-id", b"e%d" % number),),
                error_message=f"refused \x1b[31m{number}",
            )
        )
    await store.close()
    for number, status in enumerate(statuses, 1):
        run_sql(commands, SET_STATUS, status, number)
    return commands


def run_sql(commands: Commands, sql: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement on the file, as a person with ``sqlite3`` would."""
    connection = sqlite3.connect(commands.database)
    try:
        with connection:
            return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def statuses(commands: Commands) -> dict[object, object]:
    """The status of every row."""
    return dict(run_sql(commands, GET_STATUSES))  # type: ignore[arg-type]


async def test_help_lists_the_commands(tmp_path: Path) -> None:
    """With --help, or without arguments, each command has a line."""
    commands = Commands(tmp_path)
    ended = await commands.in_new_interpreter("--help")
    for name in ("worker", "publish", "fallback", "dlq"):
        assert f"\n  {name} " in ended.out
    for arguments in (("fallback",), ("fallback", "--help")):
        of_group = (await commands(*arguments)).out
        for name in ("stats", "list", "requeue", "discard"):
            assert f"\n  {name} " in of_group
    assert (await commands()).out == ended.out
    assert nothing_in(tmp_path)


async def test_stats_for_people_and_programs(tmp_path: Path) -> None:
    """The same figures as a table and as JSON; --json may stand anywhere."""
    commands = await recovered_all(tmp_path)
    table = (await commands.in_new_interpreter("fallback", "stats")).out
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        ["PENDING", "2"],
        ["PUBLISHED", "1"],
        ["FAILED", "2"],
    ]
    for arguments in (("fallback", "stats", "--json"), ("--json", "fallback", "stats")):
        ended = await commands(*arguments)
        (figures,) = ended.objects
        assert figures.pop("oldest_pending_seconds") >= 0
        assert figures.pop("oldest_failed_seconds") >= 0
        assert figures == {"pending": 2, "published": 1, "failed": 2}
        assert not ended.err


async def test_listing_rows(tmp_path: Path) -> None:
    """Filters, a limit with a hint how to list the next rows, bytes as the table has them."""
    commands = await recovered_all(tmp_path)
    failed = await commands.in_new_interpreter("fallback", "list", "--status", "failed", "--json")
    assert [(row["id"], row["payload"]) for row in failed.objects] == [
        (3, "\\xff"),
        (4, '{"orderId":1}'),
    ]
    assert failed.objects[0]["headers"] == [["event-id", "e3"]]
    assert not failed.err
    people = await commands("fallback", "list", "--limit", "2")
    assert "\x1b" not in people.out
    assert "2 of 5 rows; --after-id 2 shows the next" in people.err
    rest = await commands("fallback", "list", "--after-id", "2", "--topic", "orders", "--json")
    assert [row["id"] for row in rest.objects] == [3, 5]
    words = await commands("fallback", "list", "--error-contains", "31M4", "--json")
    assert [row["id"] for row in words.objects] == [4]
    none = await commands("fallback", "list", "--topic", "nothing")
    assert (none.out, none.err) == ("", "No rows match\n")


async def test_requeueing_failed_rows(tmp_path: Path) -> None:
    """A dry run, then by id, then by filter."""
    commands = await recovered_all(tmp_path)
    dry = await commands.in_new_interpreter("fallback", "requeue", "--all", "--dry-run")
    assert "2 rows would be requeued; nothing was changed" in dry.out
    assert list(statuses(commands).values()) == list(STATUSES)
    by_id = await commands("fallback", "requeue", "3", "1", "77", "--json", statuses=(1,))
    assert by_id.objects == [
        {"id": 1, "result": "skipped",
         "reason": "it is PENDING: only FAILED rows can be requeued"},
        {"id": 3, "result": "requeued", "dry_run": False},
        {"id": 77, "result": "skipped", "reason": "there is no such row"},
    ]  # fmt: skip
    assert statuses(commands)[3] == "PENDING"
    other = await commands("fallback", "requeue", "--all", "--topic", "orders")
    assert "0 rows were requeued" in other.out
    rest = await commands("fallback", "requeue", "--all", "--error-contains", "4")
    assert "1 row was requeued" in rest.out
    assert "FAILED" not in statuses(commands).values()


async def test_discarding_rows(tmp_path: Path) -> None:
    """Ids, or all of a status with --yes; PUBLISHED rows stay."""
    commands = await recovered_all(tmp_path)
    dry = await commands("fallback", "discard", "3", "--dry-run", "--json")
    assert dry.objects == [{"id": 3, "result": "discarded", "dry_run": True}]
    assert len(statuses(commands)) == 5
    by_id = await commands("fallback", "discard", "2", "3", statuses=(1,))
    assert "1 row was discarded" in by_id.out
    assert "PUBLISHED" in by_id.out
    assert "--yes" in await commands.refused("fallback", "discard", "--all")
    await commands("fallback", "discard", "--all", "--yes")
    await commands(
        "fallback", "discard", "--all", "--status", "PENDING", "--topic", "orders", "--yes"
    )
    assert statuses(commands) == {2: "PUBLISHED"}


async def test_discarding_on_a_terminal_asks(tmp_path: Path) -> None:
    """Anything but yes leaves the rows; yes deletes them."""
    commands = await recovered_all(tmp_path)
    for answer, left in ((b"n\n", 5), (b"y\n", 4)):
        async with asked(commands, "fallback", "discard", "3") as question:
            assert b"Discard 1 row?" in question.words
            os.write(question.terminal, answer)
            await question.process.communicate()
        assert len(statuses(commands)) == left


async def test_only_what_was_asked_about_is_discarded(tmp_path: Path) -> None:
    """Rows that fail or are requeued while the question waits are not discarded."""
    commands = await recovered_all(tmp_path, ("FAILED", "FAILED", "PENDING", "PENDING"))
    async with asked(commands, "fallback", "discard", "--all") as question:
        assert b"Discard 2 rows?" in question.words
        run_sql(commands, SET_STATUS, "PENDING", 2)
        run_sql(commands, SET_STATUS, "FAILED", 3)
        os.write(question.terminal, b"y\n")
        out, _ = await question.process.communicate()
        assert b"1 row was discarded" in out
        assert b"changed or deleted meanwhile" in out
    assert statuses(commands) == {2: "PENDING", 3: "FAILED", 4: "PENDING"}


async def test_wrong_arguments_get_one_line(tmp_path: Path) -> None:
    """The line names what is wrong and what is allowed; nothing is made in the folder."""
    commands = Commands(tmp_path)
    wrong = {
        "list --status LOST": "PENDING or PUBLISHED or FAILED",
        "list --limit 0": "1<=x",
        "list --limt 5": "--limit",
        "requeue": "say which rows",
        "requeue one": "whole numbers from 1",
        "requeue 1 --all": "not both",
        "requeue 1 --topic orders": "--topic can only go with --all",
        "requeue 1 --error-contains x": "--error-contains can only go with --all",
        "requeue --all --topic \udcff": "--topic '\\udcff' must be UTF-8",
        "list --error-contains x\udcff": "--error-contains",
        "discard --all --yes --error-contains=": "must not be empty",
        "discard 1 --status PENDING": "--status can only go with --all",
        "discard --all --status PUBLISHED --yes": "FAILED or PENDING",
    }
    for arguments, told in wrong.items():
        assert told in await commands.refused("fallback", *arguments.split()), arguments
    assert nothing_in(tmp_path)


async def test_databases_that_cannot_be_used_get_one_line(tmp_path: Path) -> None:
    """No file, an unknown driver, no server, a newer version: no stack trace, no new file."""
    no_file = await Commands(tmp_path)("fallback", "stats", statuses=(1,))
    assert "there is no database" in no_file.only_line
    assert nothing_in(tmp_path)
    unknown = Commands(tmp_path, database_url="mysql://relay:hush@localhost/orders")
    line = (await unknown("fallback", "list", statuses=(1,))).only_line
    assert "mysql" in line
    assert "sqlite+aiosqlite" in line
    nobody = Commands(tmp_path, database_url="postgresql://relay:hush@127.0.0.1:1/orders")
    line = (await nobody("fallback", "list", statuses=(1,))).only_line
    assert "DATABASE_URL=postgresql+asyncpg://relay:***@127.0.0.1:1/orders" in line
    newer = await recovered_all(tmp_path)
    run_sql(newer, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")  # noqa: S608 - our own name
    line = (await newer("fallback", "requeue", "3", statuses=(1,))).only_line
    assert "9999" in line
    assert statuses(newer)[3] == "FAILED"


async def test_a_database_without_a_table_is_left_as_it_is(tmp_path: Path) -> None:
    """A wrong DATABASE_URL may name another program's file: one line, and it is not changed."""
    commands = Commands(tmp_path)
    run_sql(commands, "CREATE TABLE orders (id)")
    before = await asyncio.to_thread(commands.database.read_bytes)
    ended = await asyncio.gather(
        commands("fallback", "stats", statuses=(1,)),
        commands("fallback", "list", statuses=(1,)),
        commands("fallback", "requeue", "--all", "--dry-run", statuses=(1,)),
        commands("fallback", "discard", "--all", "--dry-run", statuses=(1,)),
    )
    for one in ended:
        assert (
            f"there is no fallback table at DATABASE_URL={commands.database_url}" in one.only_line
        )
    assert await asyncio.to_thread(commands.database.read_bytes) == before
    assert await asyncio.to_thread(os.listdir, tmp_path) == [commands.database.name]
