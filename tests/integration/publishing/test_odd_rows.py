"""Rows with values that the database accepts and the relay cannot read."""

import pytest
from sqlalchemy import text

from order_relay.fallback.replay import Replay
from order_relay.fallback.sql.schema import NO_TIME, sqlite_time
from order_relay.fallback.store import RowFilter, Status
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from tests.integration.publishing.conftest import ON_POSTGRESQL, ON_SQLITE
from tests.support.publish_fakes import START, FakeProducer, message, refusal

IMPOSSIBLE = [
    "2026-02-31 10:00:00", "2026-02-20 24:00:00", "0000-12-31 10:00:00",
    "0001-01-01 00:00:00+14:00",
]  # fmt: skip


async def change(store: FallbackTable, row_id: int, **columns: str | bytes | int) -> None:
    """Change a row as a person would."""
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    async with store.engine.begin() as connection:
        await connection.execute(
            text(f"UPDATE kafka_fallback_message SET {changes} WHERE id = {row_id}"),  # noqa: S608
            columns,
        )


async def change_time(store: FallbackTable, row_id: int, column: str, moment: str) -> None:
    """Write a time into a row, in PostgreSQL's own format."""
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql(
            f"UPDATE kafka_fallback_message SET {column} = '{moment}' WHERE id = {row_id}"  # noqa: S608
        )


async def three_rows(store: FallbackTable) -> None:
    """Save rows 1, 2 and 3, of which the first two have one key."""
    for key in (b"1", b"1", b"2"):
        await store.save(message(key=key))


@ON_SQLITE
@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((name, moment) for name in ("next_retry_at", "created_at") for moment in IMPOSSIBLE),
        *((name, "some") for name in ("retry_count", "max_retry", "message_partition")),
        ("topic", b"orders"),
    ],
)
async def test_a_column_that_cannot_be_read_fails_its_row_alone(
    store: FallbackTable, column: str, value: str | bytes
) -> None:
    """An impossible date, text for a number, a BLOB: the row is FAILED, others are published."""
    await three_rows(store)
    await change(store, 1, **{column: value})

    found = await store.find(RowFilter())
    assert [row.id for row in found if row.malformed] == [1]
    if value in IMPOSSIBLE:
        assert getattr(found[0], column) == NO_TIME
    assert found[0].topic == "orders"
    producer = FakeProducer()
    assert await Replay(store, producer).run_once() == Sweep(published=2, failed=1)

    (failed,) = await store.find(RowFilter(status=Status.FAILED))
    assert f"the {column} column is wrong" in (failed.error_message or "")
    assert (await store.stats()).published == 2
    good = {column: "1"} if value == "some" else {"topic": "o", "created_at": "2026-02-28 10:00:00"}
    await change(store, 1, **good)
    await store.requeue([1])
    assert await Replay(store, producer).run_once() == Sweep(published=1)


@ON_SQLITE
@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((name, IMPOSSIBLE[0]) for name in ("updated_at", "published_at", "lease_until")),
        ("published_at", b"\xff"),
    ],
)
async def test_other_impossible_times_delay_nothing(
    store: FallbackTable, column: str, value: str | bytes
) -> None:
    """Columns that publishing does not use may be invalid: the row is published."""
    await three_rows(store)
    await change(store, 1, **{column: value})

    assert getattr((await store.find(RowFilter()))[0], column) == NO_TIME
    assert await Replay(store, FakeProducer()).run_once() == Sweep(published=3)


@pytest.mark.parametrize("retry_count", [2**31 - 1, -(2**31)])
async def test_a_retry_count_at_its_limit_delays_nothing(
    store: FallbackTable, retry_count: int
) -> None:
    """At the limits of the integer the refused row gets its result, and so do the others."""
    await three_rows(store)
    await change(store, 3, retry_count=retry_count, max_retry=2**31 - 1)

    producer = FakeProducer(refuse=lambda sent: refusal() if sent.key == b"2" else None)
    swept = await Replay(store, producer).run_once()
    assert (swept.published, swept.retried + swept.failed) == (2, 1)
    assert (await store.stats()).published == 2
    (row,) = await store.find(RowFilter(ids={3}))
    assert row.retry_count == max(1, retry_count)


@ON_SQLITE
async def test_a_batch_of_impossible_times_ends_the_pass(store: FallbackTable) -> None:
    """A pass continues behind two batches of them, and ends."""
    for number in range(7):
        await store.save(message(key=b"%d" % number))
    for number in range(1, 6):
        await change(store, number, next_retry_at="0000-12-31 10:00:00")

    replay = Replay(store, FakeProducer(), batch_size=2)
    assert await replay.run_once() == Sweep(published=2, failed=5)


@ON_SQLITE
async def test_text_that_is_not_utf_8(store: FallbackTable) -> None:
    """SQLite accepts any bytes as text: they are published unchanged."""
    await three_rows(store)
    async with store.engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE kafka_fallback_message SET payload = CAST(x'ff41' AS TEXT),"
                " error_message = CAST(x'ff42' AS TEXT) WHERE id = 1"
            )
        )
    await change(store, 2, error_message=b"no \xff")

    first, second, _ = await store.find(RowFilter())
    assert (first.payload, first.error_message) == (b"\xffA", "\ufffdB")
    assert second.error_message == "no \ufffd"
    producer = FakeProducer()
    assert await Replay(store, producer).run_once() == Sweep(published=3)
    assert producer.sent[0].value == b"\xffA"


@ON_POSTGRESQL
@pytest.mark.parametrize("column", ["next_retry_at", "created_at", "published_at"])
@pytest.mark.parametrize("moment", ["0044-03-15 BC", "-infinity"])
async def test_times_of_postgresql_beyond_the_calendar(
    store: FallbackTable, column: str, moment: str
) -> None:
    """PostgreSQL has years before Python's first: such a row is published like the others."""
    await three_rows(store)
    await change_time(store, 1, column, moment)

    assert getattr((await store.find(RowFilter()))[0], column).year == 1
    assert await Replay(store, FakeProducer()).run_once() == Sweep(published=3)


@ON_POSTGRESQL
async def test_a_time_of_postgresql_after_the_calendar(store: FallbackTable) -> None:
    """A row that is due in the year 20000 waits; one created then is published."""
    await three_rows(store)
    await change_time(store, 1, "created_at", "20000-01-01")
    await change_time(store, 3, "next_retry_at", "20000-01-01")

    found = await store.find(RowFilter())
    assert (found[0].created_at.year, found[2].next_retry_at.year) == (9999, 9999)
    assert await Replay(store, FakeProducer()).run_once() == Sweep(published=2)
    assert (await store.stats()).pending == 1


def test_times_in_sqlite_sort_by_time() -> None:
    """Years before 1000 have four digits in text, too."""
    assert sqlite_time(START.replace(year=999)) < sqlite_time(START)
