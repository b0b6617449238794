"""``order-relay fallback requeue`` and ``discard``: changes of rows by id, or by filters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import click

from order_relay.cli import command, output
from order_relay.cli.audit_entry import write_entry
from order_relay.cli.fallback.rows import PAGE, ROW_ID, StatusType, open_table, rows_table
from order_relay.fallback.store import FallbackRow, FallbackStore, RowFilter, Status
from order_relay.settings import Settings

NAMED = 5  # rows in the audit log
IDS = click.argument("ids", nargs=-1, type=ROW_ID, metavar="[ID]...")
TOPIC = click.option("--topic", help="With --all: only rows of this topic.")
ERROR = click.option("--error-contains", help="With --all: only rows with this in their error.")


def selected_rows(ids: Sequence[int], everything: bool, filters: RowFilter) -> RowFilter:
    """Return the rows of the ids, or with ``--all`` those of the filters.

    Filters without a status select FAILED rows.

    Raises:
        UsageError: Neither or both are given.
    """
    options = {
        "--status": filters.status,
        "--topic": filters.topic,
        "--error-contains": filters.error_contains,
    }
    given = [name for name, value in options.items() if value is not None]
    if everything and ids:
        raise command.usage_error("give row ids or --all, not both")
    if everything:
        return replace(filters, status=filters.status or Status.FAILED)
    if not ids:
        raise command.usage_error(
            "say which rows: their ids, or --all, narrowed by --topic and --error-contains"
        )
    if given:
        raise command.usage_error(f"{' and '.join(given)} can only go with --all, not with row ids")
    return RowFilter(ids=frozenset(ids))


@command.define(IDS, command.ALL, TOPIC, ERROR, command.DRY_RUN, command.JSON)
async def requeue(
    *, ids: tuple[int, ...], everything: bool, dry_run: bool, as_json: bool, **filters: Any
) -> int:
    """Make FAILED rows PENDING again, due at once with all retries: rows by id, or --all."""
    rows = selected_rows(ids, everything, RowFilter(**filters))
    settings = command.worker_settings()
    async with open_table(settings) as table:
        return await run_change(
            table, rows, requeueing(table), dry_run=dry_run, as_json=as_json, audit=settings
        )


@command.define(
    IDS,
    command.ALL,
    click.option(
        "--status",
        type=StatusType(Status.FAILED, Status.PENDING),
        help="With --all: rows of this status; by default FAILED.",
    ),
    TOPIC,
    ERROR,
    command.DRY_RUN,
    command.YES,
    command.JSON,
)
async def discard(
    *,
    ids: tuple[int, ...],
    everything: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **filters: Any,
) -> int:
    """Delete rows that Kafka shall never get: rows by id, or --all FAILED ones.

    Their events are in Kafka neither before nor after.
    """
    rows = selected_rows(ids, everything, RowFilter(**filters))
    needs_yes = "--all needs" if everything else ""
    asks = command.must_confirm(yes=yes, dry_run=dry_run, needs_yes=needs_yes)
    settings = command.worker_settings()
    async with open_table(settings) as table:
        confirmed: Collection[int] | None = None
        if asks:
            confirmed = await matching_ids(table, rows)
            count = output.count_of(len(confirmed), "row")
            question = f"Discard {count}? Kafka does not have these events"
            if confirmed and (no := command.refused(question, "Nothing was discarded")):
                return no
        return await run_change(
            table,
            rows,
            discarding(table),
            dry_run=dry_run,
            as_json=as_json,
            confirmed=confirmed,
            audit=settings,
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A change of rows.

    Attributes:
        verb: Such as ``requeued``.
        apply: Changes rows; returns the ids of those that it changed.
        statuses: Rows of these statuses can be changed.
    """

    verb: str
    apply: Callable[[Collection[int]], Awaitable[set[int]]]
    statuses: frozenset[Status]

    def objection(self, row: FallbackRow, now: datetime) -> str:
        """Return why a row cannot be changed; empty when it can."""
        if row.status not in self.statuses:
            allowed = " or ".join(sorted(status.value for status in self.statuses))
            return f"it is {row.status.value}: only {allowed} rows can be {self.verb}"
        if row.status is Status.PENDING and row.lease_until is not None and row.lease_until > now:
            return "a worker is publishing it"
        return ""


def requeueing(store: FallbackStore) -> Change:
    """Return the change of ``fallback requeue``."""
    return Change("requeued", store.requeue, frozenset({Status.FAILED}))


def discarding(store: FallbackStore) -> Change:
    """Return the change of ``fallback discard``."""
    return Change("discarded", store.discard, frozenset({Status.FAILED, Status.PENDING}))


@dataclass(frozen=True, slots=True)
class RowResult:
    """The result of one row; ``reason`` says why it was not changed, and is empty otherwise."""

    row_id: int
    row: FallbackRow | None
    reason: str = ""


async def matching_ids(store: FallbackStore, rows: RowFilter) -> set[int]:
    """Return the ids of the rows that match now."""
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
    confirmed: Collection[int] | None = None,
) -> AsyncIterator[RowResult]:
    """Change rows page by page, and yield the result of each in the order of ids.

    Args:
        store: The table.
        rows: Which rows.
        change: The change.
        dry_run: Whether to change nothing.
        confirmed: Ids that a person has confirmed; other rows are left out.
    """
    after_id = 0
    missing = {*(rows.ids or ()), *(confirmed or ())}
    while found := await store.find(rows, after_id=after_id, limit=PAGE):
        after_id = found[-1].id
        page = [row for row in found if confirmed is None or row.id in confirmed]
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
        gone = confirmed is not None and row_id in confirmed
        yield RowResult(
            row_id, None, "it was changed or deleted meanwhile" if gone else "there is no such row"
        )


async def run_change(
    store: FallbackStore,
    rows: RowFilter,
    change: Change,
    *,
    dry_run: bool,
    as_json: bool,
    confirmed: Collection[int] | None = None,
    audit: Settings | None = None,
) -> int:
    """Change rows as ``changed_rows``, print the results, and return the exit status.

    With ``audit``, the settings of the database, the change is written to the audit log.

    The status is 1 when a row that was named by its id was not changed.
    """
    report = output.ChangeReport(
        "row", change.verb, named=rows.ids is not None, as_json=as_json, dry_run=dry_run
    )
    first: list[FallbackRow] = []
    total = await store.count(rows) if confirmed is None else len(confirmed)
    try:
        with report.showing_progress(total):
            async for result in changed_rows(
                store, rows, change, dry_run=dry_run, confirmed=confirmed
            ):
                fields = _fields(result, change, dry_run=dry_run)
                report.add(str(result.row_id), fields, result.reason)
                if dry_run and result.row and not result.reason and len(first) < output.SHOWN:
                    first.append(result.row)
    finally:
        if audit is not None and report.done and not dry_run:
            which = ", ".join(map(str, sorted(rows.ids)[:NAMED])) if rows.ids else _matching(rows)
            await write_entry(audit, f"rows {change.verb}", "fallback table", report.done, which)
    if not as_json:
        report.print(rows_table(first, (await store.now()).timestamp()))
    return report.status


def _matching(rows: RowFilter) -> str:
    given = (rows.status, rows.topic, rows.error_contains)
    return f"all with {', '.join(text for text in given if text)}"


def _fields(result: RowResult, change: Change, *, dry_run: bool) -> dict[str, object]:
    if result.reason:
        return {"id": result.row_id, "result": "skipped", "reason": result.reason}
    return {"id": result.row_id, "result": change.verb, "dry_run": dry_run}
