"""``faust -A app fallback-requeue``."""

from __future__ import annotations

from order_relay.cli.command import (
    DRY_RUN_OPTION,
    JSON_OPTION,
    RelayCommand,
    options,
)
from order_relay.cli.fallback.bulk_change import Change, change_and_tell
from order_relay.cli.fallback.filters import (
    ALL_OPTION,
    ERROR_OPTION,
    IDS_ARGUMENT,
    TOPIC_OPTION,
    chosen,
)
from order_relay.cli.fallback.open_table import opened_table
from order_relay.fallback.store import RowFilter, Status


class fallback_requeue(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Make FAILED rows PENDING again, due at once with all retries: rows by id, or --all."""

    options = options(
        IDS_ARGUMENT, ALL_OPTION, TOPIC_OPTION, ERROR_OPTION, DRY_RUN_OPTION, JSON_OPTION
    )

    async def work(
        self,
        *,
        ids: tuple[int, ...],
        everything: bool,
        topic: str | None,
        error_contains: str | None,
        dry_run: bool,
        as_json: bool,
    ) -> int:
        """Requeue the rows."""
        rows = chosen(
            ids,
            everything,
            RowFilter(topic=topic, error_contains=error_contains),
        )
        async with opened_table(self.settings) as table:
            change = Change(
                "requeued", "would be requeued", table.requeue, frozenset({Status.FAILED})
            )
            return await change_and_tell(
                table, rows, change, dry_run=dry_run, as_json=as_json or self.json
            )
