"""Requeueing and discarding rows, page by page, with the reason for each row left alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from rich.progress import Progress

from order_relay.cli.fallback.formatting import rows_table
from order_relay.cli.output import (
    for_people,
    json_line,
    make_table,
    on_stderr,
    plain,
    rows_of,
)
from order_relay.fallback.store import FallbackRow, FallbackStore, RowFilter, Status

PAGE = 500
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to rows.

    Attributes:
        done: Said of a row afterwards, such as ``requeued``.
        would: Said of it in a dry run, such as ``would be requeued``.
        apply: Does it; returns the ids of the rows it was done to.
        statuses: The statuses it can be done to.
    """

    done: str
    would: str
    apply: Callable[[Collection[int]], Awaitable[set[int]]]
    statuses: frozenset[Status]

    def objection(self, row: FallbackRow, now: datetime) -> str:
        """Return why it cannot be done to a row; empty when it can."""
        if row.status not in self.statuses:
            allowed = " or ".join(sorted(status.value for status in self.statuses))
            return f"it is {row.status.value}: only {allowed} rows can be {self.done}"
        if row.status is Status.PENDING and row.lease_until is not None and row.lease_until > now:
            return "a worker is publishing it"
        return ""


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one row; ``reason`` says why nothing was done, and is empty otherwise."""

    row_id: int
    row: FallbackRow | None
    reason: str = ""


@dataclass(slots=True)
class Changed:
    """What became of all rows: how many, and the first few."""

    done: int = 0
    skipped: int = 0
    first_done: list[FallbackRow] = field(default_factory=list)
    first_skipped: list[RowResult] = field(default_factory=list)

    def add(self, result: RowResult) -> None:
        """Count one more."""
        if result.reason:
            self.skipped += 1
            if self.skipped <= SHOWN:
                self.first_skipped.append(result)
            return
        self.done += 1
        if result.row is not None and self.done <= SHOWN:
            self.first_done.append(result.row)


async def found_ids(store: FallbackStore, rows: RowFilter) -> set[int]:
    """Return which rows are meant now."""
    ids: set[int] = set()
    after_id = 0
    while page := await store.find(rows, after_id=after_id, limit=PAGE):
        after_id = page[-1].id
        ids.update(row.id for row in page)
    return ids


async def changed_rows(
    store: FallbackStore,
    rows: RowFilter,
    change: Change,
    *,
    dry_run: bool,
    agreed: Collection[int] | None = None,
) -> AsyncIterator[RowResult]:
    """Change rows and yield what became of each, in the order of ids.

    Args:
        store: The table.
        rows: Which rows.
        change: What is done to them.
        dry_run: Only look.
        agreed: The ids that a person has agreed to; of the rows only these are changed.
    """
    after_id = 0
    missing = {*(rows.ids or ()), *(agreed or ())}
    while found := await store.find(rows, after_id=after_id, limit=PAGE):
        after_id = found[-1].id
        page = [row for row in found if agreed is None or row.id in agreed]
        now = await store.now()
        objections: Mapping[int, str] = {row.id: change.objection(row, now) for row in page}
        able = {row_id for row_id, objection in objections.items() if not objection}
        done = able if dry_run else (await change.apply(able) if able else set())
        for row in page:
            missing.discard(row.id)
            changed = row.id in done
            reason = "" if changed else objections[row.id] or "it was changed meanwhile"
            yield RowResult(row.id, row, reason)
    for row_id in sorted(missing):
        gone = agreed is not None and row_id in agreed
        yield RowResult(
            row_id, None, "it was changed or deleted meanwhile" if gone else "there is no such row"
        )


async def change_and_tell(
    store: FallbackStore,
    rows: RowFilter,
    change: Change,
    *,
    dry_run: bool,
    as_json: bool,
    agreed: Collection[int] | None = None,
) -> int:
    """Change rows as ``changed_rows``, print what became of them, and return the exit status.

    The status is 1 when something could not be done to a row that was named by its id.
    """
    total = Changed()
    with _progress(await store.count(rows) if agreed is None else len(agreed)) as advance:
        async for result in changed_rows(store, rows, change, dry_run=dry_run, agreed=agreed):
            total.add(result)
            advance()
            if as_json:
                json_line(_fields(result, change, dry_run=dry_run))
    if not as_json:
        now = (await store.now()).timestamp()
        _tell(total, change, now, dry_run=dry_run)
    return 1 if total.skipped and rows.ids is not None else 0


def _fields(result: RowResult, change: Change, *, dry_run: bool) -> dict[str, object]:
    if result.reason:
        return {"id": result.row_id, "result": "skipped", "reason": result.reason}
    return {"id": result.row_id, "result": change.done, "dry_run": dry_run}


def _tell(total: Changed, change: Change, now_seconds: float, *, dry_run: bool) -> None:
    console = for_people()
    if dry_run and total.first_done:
        console.print(rows_table(total.first_done, now_seconds))
        if total.done > SHOWN:
            console.print(f"… and {total.done - SHOWN:,} more")
    if total.skipped:
        table = make_table(("id", f"not {change.done}, because"), right=("id",))
        for result in total.first_skipped:
            table.add_row(str(result.row_id), plain(result.reason))
        console.print(table)
        if total.skipped > SHOWN:
            console.print(f"… and {total.skipped - SHOWN:,} more")
    verb = change.would if dry_run else f"{'was' if total.done == 1 else 'were'} {change.done}"
    console.print(f"{rows_of(total.done)} {verb}" + ("; nothing was changed" if dry_run else ""))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal when there are more rows than one page."""
    console = on_stderr()
    if not console.is_terminal or total <= PAGE:
        yield lambda: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("rows", total=total)
        yield lambda: progress.advance(task)
