"""``order-relay fallback requeue`` and ``discard``: changes of rows by id, or by filters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import click

from order_relay.cli import command, output
from order_relay.cli.fallback.rows import (
    ROW_ID,
    open_table,
    rows_table,
    status_type,
    write_entry,
)
from order_relay.errors import RelayError
from order_relay.fallback.store import FallbackRow, RowFilter, Status
from order_relay.fallback.table import FallbackTable
from order_relay.settings import load_settings

NAMED = 5  # rows in the audit log
# Rows of these statuses can be changed.
CHANGEABLE = {
    "requeued": frozenset({Status.FAILED}),
    "discarded": frozenset({Status.FAILED, Status.PENDING}),
}
SELECTION = (
    click.argument("ids", nargs=-1, type=ROW_ID, metavar="[ID]..."),
    command.ALL,
    click.option("--topic", help="With --all: only of this topic."),
    click.option(
        "--error-contains", type=command.PART, help="With --all: only with this text in the error."
    ),
    command.DRY_RUN,
)


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
        raise click.UsageError("give row ids or --all, not both")
    if everything:
        return replace(filters, status=filters.status or Status.FAILED)
    if not ids:
        raise click.UsageError(
            "say which rows: their ids, or --all, narrowed by --topic and --error-contains"
        )
    if given:
        raise click.UsageError(f"{' and '.join(given)} can only go with --all, not with row ids")
    return RowFilter(ids=frozenset(ids))


@command.define(*SELECTION, command.JSON)
async def requeue(**given: Any) -> int:
    """Make FAILED rows PENDING again, due at once with all retries: by id, or --all."""
    return await _change("requeued", yes=True, **given)


@command.define(
    *SELECTION,
    click.option(
        "--status",
        type=status_type(Status.FAILED, Status.PENDING),
        help="With --all: of this status; by default FAILED.",
    ),
    command.YES,
    command.JSON,
)
async def discard(**given: Any) -> int:
    """Delete rows without publishing them: by id, or --all.

    Their events are lost.
    """
    return await _change("discarded", **given)


async def _change(
    verb: str,
    *,
    ids: tuple[int, ...],
    everything: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **filters: Any,
) -> int:
    rows = selected_rows(ids, everything, RowFilter(**filters))
    needs_yes = "--all needs" if everything else ""
    asks = command.must_confirm(yes=yes, dry_run=dry_run, needs_yes=needs_yes)
    settings = load_settings()
    report = output.ChangeReport("row", verb, named=bool(ids), as_json=as_json, dry_run=dry_run)
    first: list[FallbackRow] = []
    async with open_table(settings) as table:
        confirmed: Collection[int] | None = None
        if asks:
            confirmed = {row.id async for page in table.pages(rows) for row in page}
            count = output.count_of(len(confirmed), "row")
            question = f"Discard {count}? Kafka does not have these events"
            if confirmed and (no := command.refused(question, "Nothing was discarded")):
                return no
        total = await table.count(rows) if confirmed is None else len(confirmed)
        try:
            with report.showing_progress(total):
                async for row_id, row, reason in changed_rows(
                    table,
                    rows,
                    verb,
                    dry_run=dry_run,
                    confirmed=confirmed,
                    stopped=lambda: bool(report.ended),
                ):
                    fields: dict[str, object] = {"id": row_id, "result": verb, "dry_run": dry_run}
                    if reason:
                        fields = {"id": row_id, "result": "skipped", "reason": reason}
                    report.add(str(row_id), fields, reason)
                    if dry_run and row and not reason and len(first) < output.SHOWN:
                        first.append(row)
        except RelayError as error:
            report.ended = str(error)
        finally:
            if report.done and not dry_run:
                given = ", ".join(filter(None, (rows.status, rows.topic, rows.error_contains)))
                which = ", ".join(map(str, sorted(ids)[:NAMED])) or f"all with {given}"
                await write_entry(settings, f"rows {verb}", "fallback table", report.done, which)
        report.check()
        if not as_json:
            report.print(rows_table(first, (await table.now()).timestamp()))
            report.check()
    return report.status


def objection(verb: str, row: FallbackRow, now: datetime) -> str:
    """Return why a row cannot be changed; empty when it can."""
    if row.status not in CHANGEABLE[verb]:
        allowed = " or ".join(sorted(status.value for status in CHANGEABLE[verb]))
        return f"it is {row.status.value}: only {allowed} rows can be {verb}"
    if row.status is Status.PENDING and row.lease_until is not None and row.lease_until > now:
        return "a worker is publishing it"
    return ""


async def changed_rows(
    store: FallbackTable,
    rows: RowFilter,
    verb: str,
    *,
    dry_run: bool,
    confirmed: Collection[int] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> AsyncIterator[tuple[int, FallbackRow | None, str]]:
    """Change rows page by page, in the order of ids; yields why each was not changed, or "".

    Args:
        store: The table.
        rows: Which rows.
        verb: ``requeued`` or ``discarded``.
        dry_run: Whether to change nothing.
        confirmed: Ids that a person has confirmed; other rows are left out.
        stopped: Whether to end, before each page.
    """
    requeues = verb == "requeued"
    apply = store.requeue if requeues else partial(store.discard, status=rows.status)
    missing = {*(rows.ids or ()), *(confirmed or ())}
    async for found in store.pages(rows):
        if stopped():
            return
        page = [row for row in found if confirmed is None or row.id in confirmed]
        now = await store.now()
        objections = {row.id: objection(verb, row, now) for row in page}
        able = {row_id for row_id, reason in objections.items() if not reason}
        done = able if dry_run else (await apply(able) if able else set())
        for row in page:
            missing.discard(row.id)
            changed = row.id in done
            reason = "" if changed else objections[row.id] or "it was changed meanwhile"
            yield row.id, row, reason
    for row_id in sorted(missing):
        gone = confirmed is not None and row_id in confirmed
        reason = "it was changed or deleted meanwhile" if gone else "there is no such row"
        yield row_id, None, reason
