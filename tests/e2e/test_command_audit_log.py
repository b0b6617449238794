"""Changes made by commands are in the audit log, like changes made in the console."""

import getpass
import socket
from pathlib import Path

import pytest

from order_relay.fallback.sql.audit_log import AuditEntry, AuditLog
from order_relay.fallback.sql.migrate import migrate
from order_relay.fallback.store import NewMessage
from order_relay.fallback.table import FallbackTable
from tests.support.dead_letter_commands import letter, put_letters, relay_on
from tests.support.odd_records import OddName, produce_odd
from tests.support.orders import Order
from tests.support.publish_command import Commands
from tests.support.publish_fakes import gave_up
from tests.support.stage import Stage

pytestmark = pytest.mark.e2e


async def entries(commands: Commands) -> list[AuditEntry]:
    """The audit log, the oldest first."""
    table = FallbackTable(commands.database_url)
    try:
        return list(reversed(await AuditLog(table.engine).latest(20)))
    finally:
        await table.close()


async def test_discarded_letters_are_not_open_and_were_not_sent(
    stage: Stage, tmp_path: Path
) -> None:
    """By position and by message, also an unreadable letter; the audit log has the reason."""
    commands = relay_on(stage, tmp_path)
    await migrate(commands.database_url)
    odd = (b"k", b"{}", [(OddName(b"\xff"), b"v")])
    await produce_odd(stage.bootstrap_servers, stage.dlq_topic, [odd])
    often = letter(2, headers=(("dlq-redrives", b"3"),))
    other = Order(b"9", b"{}", (("kafka_dlt-exception-message", b"<b>Odd</b> page"),), partition=1)
    await put_letters(stage, [letter(1), often, letter(3), other])
    unexplained = await commands("dlq", "discard", "0:1", statuses=(2,))
    assert "--because TEXT" in unexplained.only_line
    dry = await commands("dlq", "discard", "--all", "--dry-run")
    assert "5 letters would be discarded; nothing was changed" in dry.out
    assert await entries(commands) == []

    (found,) = (await commands("dlq", "list", "--message", "<B>odd", "--json")).objects
    assert found["key"] == "9"
    by_message = await commands(
        "dlq", "discard", "--message", "<B>odd", "--because", "a test", "--yes", "--json"
    )
    assert [one.get("result") for one in by_message.objects] == ["discarded", None]
    assert by_message.objects[-1]["discarded"] == 1
    named = await commands("dlq", "discard", "0:0", "0:2", "--because", "no such shop")
    assert "2 letters were discarded" in named.out
    assert (named.err, by_message.err) == ("", "")
    again = await commands("dlq", "discard", "0:0", "--because", "again", statuses=(1,))
    assert "it was redriven or discarded already" in again.out
    for told in (("dlq", "show", "0:0"), ("dlq", "list", "--all")):
        assert "redriven or discarded" in (await commands(*told)).out
    redriven = await commands("dlq", "redrive", "0:1", "--because", "fixed")
    assert "1 letter was redriven" in redriven.out
    left = (await commands("dlq", "list", "--json")).objects
    assert [one["key"] for one in left] == ["3"]
    assert [row.text("event-id") for row in await stage.records()] == ["paid-1"]

    who = f"{getpass.getuser()} ({socket.gethostname()})"
    assert [
        (one.actor, one.action, one.subject, one.changed, one.detail)
        for one in await entries(commands)
    ] == [
        (who, "dead letters discarded", "order_logging", 1,
         "those with message <B>odd; reason: a test"),
        (who, "dead letters discarded", "order_logging", 2, "0:0, 0:2; reason: no such shop"),
        (who, "dead letters redriven", "order_logging", 1, "0:1; reason: fixed"),
    ]  # fmt: skip


async def test_without_the_database_the_change_is_made_and_one_line_says_so(
    stage: Stage, tmp_path: Path
) -> None:
    """No database is made, and the exit status is that of the change."""
    commands = relay_on(stage, tmp_path)
    await put_letters(stage, [letter(1)])
    ended = await commands("dlq", "redrive", "0:0")
    assert "1 letter was redriven" in ended.out
    assert ended.err.startswith("The audit log was not written: there is no database at")
    assert ended.err.count("\n") == 1
    assert not commands.database.exists()


async def test_changes_of_rows_are_logged(tmp_path: Path) -> None:
    """Rows by id and by filters; a dry run and a change of nothing are not."""
    commands = Commands(tmp_path)
    await failed_rows(commands, 3)
    await commands("fallback", "requeue", "1", "--dry-run")
    await commands("fallback", "requeue", "1")
    await commands("fallback", "requeue", "1", statuses=(1,))
    await commands("fallback", "discard", "--all", "--topic", "orders", "--yes")
    assert [(one.action, one.changed, one.detail) for one in await entries(commands)] == [
        ("rows requeued", 1, "1"),
        ("rows discarded", 2, "all with FAILED, orders"),
    ]


async def failed_rows(commands: Commands, count: int) -> None:
    """Put FAILED rows into the table."""
    table = FallbackTable(commands.database_url)
    await table.open()
    for number in range(count):
        await table.save(NewMessage("orders", b"%d" % number, b"{}"))
    claim = await table.claim(limit=count, lease_seconds=60)
    await table.settle(claim.token, [gave_up(row.id, 3, "refused") for row in claim.rows])
    await table.close()


@pytest.mark.parametrize("as_json", [("--json",), ()], ids=["json", "text"])
async def test_a_report_that_cannot_be_written_does_not_hide_what_was_changed(
    stage: Stage, tmp_path: Path, as_json: tuple[str, ...]
) -> None:
    """The error line and the audit log count the letters and rows that were changed before."""
    commands = relay_on(stage, tmp_path)
    await failed_rows(commands, 30)
    await put_letters(stage, [letter(n) for n in range(30)])
    lost = "Error: stdout cannot be written: No space left on device; 30 "
    discard = ("--reason", "rejected", "--because", "x", "--yes", *as_json)
    told = await commands.into_a_full_disk("dlq", "discard", *discard)
    assert told == [f"{lost}letters were discarded"]
    told = await commands.into_a_full_disk("fallback", "requeue", "--all", *as_json)
    assert told == [f"{lost}rows were requeued"]
    assert [(one.action, one.changed) for one in await entries(commands)] == [
        ("dead letters discarded", 30),
        ("rows requeued", 30),
    ]
    assert (await commands("dlq", "list", "--json")).out == ""
