"""``faust -A app fallback-stats``."""

from __future__ import annotations

from dataclasses import asdict

from order_relay.cli.command import JSON_OPTION, RelayCommand, options
from order_relay.cli.fallback.open_table import opened_table
from order_relay.cli.output import age, for_people, json_line, make_table


class fallback_stats(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Count the rows of the fallback table by status."""

    options = options(JSON_OPTION)

    async def work(self, *, as_json: bool) -> int:
        """Print the figures."""
        async with opened_table(self.settings) as table:
            stats = await table.stats()
        if as_json or self.json:
            json_line(asdict(stats))
            return 0
        shown = make_table(("status", "rows", "oldest"), right=("rows", "oldest"))
        oldest = age(stats.oldest_pending_seconds) if stats.pending else ""
        shown.add_row("PENDING", f"{stats.pending:,}", oldest)
        shown.add_row("PUBLISHED", f"{stats.published:,}", "")
        shown.add_row("FAILED", f"{stats.failed:,}", "")
        for_people().print(shown)
        return 0
