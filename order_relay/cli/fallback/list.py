"""``faust -A app fallback-list`` and ``fallback-stats``."""

from __future__ import annotations

from dataclasses import asdict

import click
from faust.cli.base import option

from order_relay.cli.command import JSON_OPTION, RelayCommand, options
from order_relay.cli.fallback.filters import ROW_ID, STATUS
from order_relay.cli.fallback.formatting import row_fields, rows_table
from order_relay.cli.fallback.open_table import open_table
from order_relay.cli.output import (
    age,
    count_of,
    json_line,
    make_table,
    stderr_console,
    stdout_console,
)
from order_relay.fallback.store import RowFilter, Status
from order_relay.fallback.table import FallbackTable

PAGE = 500


class fallback_list(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """List rows of the fallback table, by id."""

    options = options(
        option("--status", type=STATUS, default=None, help="Only rows of this status."),
        option("--topic", default=None, help="Only rows of this topic."),
        option("--error-contains", default=None, help="Only rows with this in their error."),
        option("--limit", type=click.IntRange(1, 1_000_000), default=100, help="At most so many."),
        option("--after-id", type=ROW_ID, default=None, help="Go on after this row."),
        JSON_OPTION,
    )

    async def work(
        self,
        *,
        status: Status | None,
        topic: str | None,
        error_contains: str | None,
        limit: int,
        after_id: int | None,
        as_json: bool,
    ) -> int:
        """Print the rows."""
        rows = RowFilter(status=status, topic=topic, error_contains=error_contains)
        async with open_table(self.settings) as table:
            if as_json:
                await _print_json(table, rows, limit, after_id or 0)
                return 0
            found = await table.find(rows, after_id=after_id or 0, limit=limit)
            total = await table.count(rows)
            now = await table.now()
        if found:
            stdout_console().print(rows_table(found, now.timestamp()))
        if not total:
            stderr_console().print("No rows")
        elif len(found) < total:
            stderr_console().print(
                f"{len(found):,} of {count_of(total, 'row')}"
                + (f"; --after-id {found[-1].id} shows the next" if found else "")
            )
        return 0


async def _print_json(table: FallbackTable, rows: RowFilter, limit: int, after_id: int) -> None:
    """Print page by page, so that only one page is in memory."""
    while limit > 0:
        page = await table.find(rows, after_id=after_id, limit=min(limit, PAGE))
        for row in page:
            json_line(row_fields(row))
        if len(page) < min(limit, PAGE):
            return
        limit -= len(page)
        after_id = page[-1].id


class fallback_stats(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Count the rows of the fallback table by status."""

    options = options(JSON_OPTION)

    async def work(self, *, as_json: bool) -> int:
        """Print the counts."""
        async with open_table(self.settings) as table:
            stats = await table.stats()
        if as_json:
            json_line(asdict(stats))
            return 0
        shown = make_table(("status", "rows", "oldest"), right=("rows", "oldest"))
        oldest = age(stats.oldest_pending_seconds) if stats.pending else ""
        shown.add_row("PENDING", f"{stats.pending:,}", oldest)
        shown.add_row("PUBLISHED", f"{stats.published:,}", "")
        shown.add_row("FAILED", f"{stats.failed:,}", "")
        stdout_console().print(shown)
        return 0
