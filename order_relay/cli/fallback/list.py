"""``faust -A app fallback-list``."""

from __future__ import annotations

import click
from faust.cli.base import option

from order_relay.cli.command import JSON_OPTION, RelayCommand, options
from order_relay.cli.fallback.filters import ROW_ID, STATUS
from order_relay.cli.fallback.formatting import row_fields, rows_table
from order_relay.cli.fallback.open_table import opened_table
from order_relay.cli.output import for_people, json_line, on_stderr, rows_of
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
        async with opened_table(self.settings) as table:
            if as_json or self.json:
                await _print_json(table, rows, limit, after_id or 0)
                return 0
            found = await table.find(rows, after_id=after_id or 0, limit=limit)
            total = await table.count(rows)
            now = await table.now()
        if found:
            for_people().print(rows_table(found, now.timestamp()))
        if not total:
            on_stderr().print("No rows")
        elif len(found) < total:
            on_stderr().print(
                f"{len(found):,} of {rows_of(total)}"
                + (f"; --after-id {found[-1].id} shows the next" if found else "")
            )
        return 0


async def _print_json(table: FallbackTable, rows: RowFilter, limit: int, after_id: int) -> None:
    """Print page by page: however many rows there are, a page of them is in memory."""
    while limit > 0:
        page = await table.find(rows, after_id=after_id, limit=min(limit, PAGE))
        for row in page:
            json_line(row_fields(row))
        if len(page) < min(limit, PAGE):
            return
        limit -= len(page)
        after_id = page[-1].id
