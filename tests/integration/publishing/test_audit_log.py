"""The audit log on each database: the first entry creates its table."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from order_relay.errors import DatabaseUnavailable
from order_relay.fallback.sql.audit_log import PAUSED, RESUMED, TEXT_LENGTH, AuditEntry, AuditLog
from order_relay.fallback.table import FallbackTable

MOMENT = datetime(2025, 12, 19, 10, 30, tzinfo=UTC)


def entry(number: int, *, actor: str = "Ada", detail: str = "") -> AuditEntry:
    """An entry of that minute."""
    at = MOMENT + timedelta(minutes=number)
    return AuditEntry(actor, "rows discarded", "fallback table", number, detail, at)


async def test_entries_come_back_the_newest_first(store: FallbackTable) -> None:
    """The log starts empty; times, counts and any text come back as written."""
    log = AuditLog(store.engine)
    assert await log.latest(10) == []
    written = [entry(0), entry(1, detail="'; DROP TABLE x; --"), entry(2, actor="Åsa\U0001f600")]
    for one in written:
        await log.write(one)
    assert await log.latest(10) == written[::-1]
    assert await AuditLog(store.engine).latest(1) == [written[2]]
    await log.write(entry(3, detail="x" * 5000))
    assert (await log.latest(1))[0].detail == "x" * TEXT_LENGTH


async def test_a_consumer_is_paused_until_it_is_resumed(store: FallbackTable) -> None:
    """The last entry of each consumer counts, in every process."""
    log = AuditLog(store.engine)
    assert await log.paused() == set()
    for number, (action, consumer) in enumerate(
        [(PAUSED, "a"), (PAUSED, "b"), (RESUMED, "a"), ("consumer: probe", "b"), (PAUSED, "c")]
    ):
        await log.write(replace(entry(number), action=action, subject=consumer))
    assert await AuditLog(store.engine).paused() == {"b", "c"}


async def test_two_workers_may_write_the_first_entry(store: FallbackTable) -> None:
    """Each makes the table if it is missing; both entries are there."""
    logs = [AuditLog(store.engine) for _ in range(4)]
    await asyncio.gather(*(log.write(entry(number)) for number, log in enumerate(logs)))
    assert {one.changed for one in await logs[0].latest(10)} == {0, 1, 2, 3}


async def test_an_entry_that_failed_does_not_break_the_next_one(
    store: FallbackTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rolling back the first entry drops the table, too; the next entry creates it again."""
    log = AuditLog(store.engine)

    async def cut_off(*_: object) -> None:
        raise ConnectionResetError("cut off")

    with monkeypatch.context() as broken:
        broken.setattr(AsyncConnection, "execute", cut_off)
        with pytest.raises(DatabaseUnavailable, match="cut off"):
            await log.write(entry(1))
    await log.write(entry(2))
    assert await log.latest(10) == [entry(2)]


async def test_text_that_databases_refuse_is_escaped(store: FallbackTable) -> None:
    """NUL, which PostgreSQL refuses, and lone surrogates, from arguments that are not UTF-8."""
    log = AuditLog(store.engine)
    await log.write(entry(1, detail="a\0b\udcff"))
    assert (await log.latest(1))[0].detail == "a\\x00b\\udcff"
