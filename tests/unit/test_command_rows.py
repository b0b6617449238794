"""Selecting and changing rows, and the result of each; on a table in memory."""

from dataclasses import replace
from datetime import datetime

import click
import pytest

from order_relay.cli.fallback.bulk_change import changed_rows, selected_rows
from order_relay.cli.fallback.rows import ROW_ID, STATUS
from order_relay.cli.output import age, plain
from order_relay.fallback.store import RowFilter, Status
from order_relay.fallback.table import PAGE
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_fakes import Clock, message


async def recovered_all(*statuses: Status, topic: str = "orders") -> MemoryFallbackStore:
    """A table with a row of each status, ids from 1."""
    store = MemoryFallbackStore(clock=Clock())
    for status in statuses:
        row_id = await store.save(message(topic=topic))
        store.rows[row_id] = replace(store.rows[row_id], status=status)
    return store


async def results(
    store: MemoryFallbackStore, rows: RowFilter, verb: str, *, dry_run: bool = False
) -> dict[int, str]:
    """The reason for each row, empty where it was changed."""
    found = changed_rows(store, rows, verb, dry_run=dry_run)
    return {row_id: reason async for row_id, _, reason in found}


async def test_discarding_leaves_rows_alone_that_are_on_their_way() -> None:
    """A row that a worker has claimed, and one that Kafka has, stay."""
    store = await recovered_all(Status.PENDING, Status.PENDING, Status.PUBLISHED)
    await store.claim(limit=1, lease_seconds=60)
    told = await results(store, RowFilter(ids={1, 2, 3}), "discarded")
    assert told[1] == "a worker is publishing it"
    assert told[2] == ""
    assert "PUBLISHED" in told[3]
    assert set(store.rows) == {1, 3}


async def test_a_dry_run_says_the_same_and_changes_nothing() -> None:
    """A dry run shows what the real run does."""
    store = await recovered_all(Status.FAILED, Status.PENDING, Status.FAILED, Status.PUBLISHED)
    rows = RowFilter(ids={1, 2, 3, 4, 5})
    before = dict(store.rows)
    dry = await results(store, rows, "requeued", dry_run=True)
    assert store.rows == before
    assert await results(store, rows, "requeued") == dry


async def test_more_rows_than_a_page() -> None:
    """All rows of a filter are changed, though changing takes them out of the filter."""
    store = await recovered_all(*[Status.FAILED] * (2 * PAGE + 1))
    told = await results(store, RowFilter(status=Status.FAILED), "requeued")
    assert len(told) == 2 * PAGE + 1
    assert not any(told.values())
    assert (await store.stats()).failed == 0


async def test_only_rows_that_were_agreed_to_are_changed() -> None:
    """Rows that match the filter later stay, and so do those that no longer match."""
    store = await recovered_all(*[Status.FAILED] * (PAGE + 2), Status.PENDING)
    rows = RowFilter(status=Status.FAILED)
    confirmed = set(range(1, PAGE + 3))
    late = PAGE + 3
    store.rows[late] = replace(store.rows[late], status=Status.FAILED)
    await store.requeue({1})
    await store.discard({2})
    told = {
        row_id: reason
        async for row_id, _, reason in changed_rows(
            store, rows, "discarded", dry_run=False, confirmed=confirmed
        )
    }
    assert set(store.rows) == {1, late}
    assert {row_id for row_id, reason in told.items() if reason} == {1, 2}
    assert "meanwhile" in told[1]
    assert set(told) == confirmed


async def test_rows_that_are_requeued_meanwhile_are_not_discarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two persons who work the same rows at once, the first decides."""
    store = await recovered_all(Status.FAILED, Status.FAILED)
    now = store.now

    async def requeued_meanwhile() -> datetime:
        await store.requeue({1})
        return await now()

    monkeypatch.setattr(store, "now", requeued_meanwhile)
    told = await results(store, RowFilter(status=Status.FAILED), "discarded")
    assert told == {1: "it was changed meanwhile", 2: ""}
    assert set(store.rows) == {1}


def test_choices() -> None:
    """Ids select rows of any status, so that a reason can be given; --all selects by filter."""
    assert selected_rows((3, 1, 3), False, RowFilter()) == RowFilter(ids={1, 3})
    failed = RowFilter(status=Status.FAILED, topic="orders")
    assert selected_rows((), True, RowFilter(topic="orders")) == failed
    pending = RowFilter(status=Status.PENDING)
    assert selected_rows((), True, pending) == pending


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        "1.5",
        "abc",
        "",
        "²",
        "9" * 19,
        "9" * 40,
        "1 2",
        "0" * 5000,
        "0" * 20 + "1" * 4999,
    ],
)
def test_invalid_row_ids(text: str) -> None:
    """Only whole numbers are ids; zeros before them change nothing, however many there are."""
    assert ROW_ID.convert("0" * 5000 + "17", None, None) == 17
    with pytest.raises(click.BadParameter, match="whole numbers from 1"):
        ROW_ID.convert(text, None, None)


def test_status_in_any_case_of_letters() -> None:
    """FAILED and failed are the same; the error for other words names the allowed ones."""
    assert STATUS.convert("failed", None, None) is Status.FAILED
    with pytest.raises(click.BadParameter, match="PENDING or PUBLISHED or FAILED"):
        STATUS.convert("LOST", None, None)


def test_text_from_outside_cannot_steer_the_terminal() -> None:
    """Escape sequences, line ends and markup are shown, not obeyed."""
    assert plain("a\x1b[31mb\nc[bold]한").plain == r"a\x1b[31mb\nc[bold]한"
    assert plain("x" * 50, 10).plain == "xxxxxxxxx…"
    assert plain(None).plain == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "60 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_ages(seconds: float, words: str) -> None:
    """A time span in one unit."""
    assert age(seconds) == words
