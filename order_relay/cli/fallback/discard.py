"""``faust -A app fallback-discard``."""

from __future__ import annotations

import sys
from collections.abc import Collection

from faust.cli.base import option

from order_relay.cli.command import (
    DRY_RUN_OPTION,
    JSON_OPTION,
    RelayCommand,
    options,
    usage_error,
)
from order_relay.cli.confirm import refused
from order_relay.cli.fallback.bulk_change import Change, change_and_tell, found_ids
from order_relay.cli.fallback.filters import (
    ALL_OPTION,
    ERROR_OPTION,
    IDS_ARGUMENT,
    TOPIC_OPTION,
    StatusName,
    chosen,
)
from order_relay.cli.fallback.open_table import opened_table
from order_relay.cli.output import rows_of
from order_relay.fallback.store import RowFilter, Status

DISCARDABLE = frozenset({Status.FAILED, Status.PENDING})


class fallback_discard(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Delete rows that Kafka shall never get: rows by id, or --all FAILED ones.

    Their events are in Kafka neither before nor after.
    """

    options = options(
        IDS_ARGUMENT,
        ALL_OPTION,
        option(
            "--status",
            type=StatusName(Status.FAILED, Status.PENDING),
            default=None,
            help="With --all: rows of this status; by default FAILED.",
        ),
        TOPIC_OPTION,
        ERROR_OPTION,
        DRY_RUN_OPTION,
        option("--yes", is_flag=True, default=False, help="Do not ask."),
        JSON_OPTION,
    )

    async def work(
        self,
        *,
        ids: tuple[int, ...],
        everything: bool,
        status: Status | None,
        topic: str | None,
        error_contains: str | None,
        dry_run: bool,
        yes: bool,
        as_json: bool,
    ) -> int:
        """Discard the rows."""
        rows = chosen(
            ids, everything, RowFilter(status=status, topic=topic, error_contains=error_contains)
        )
        asks = not yes and not dry_run
        if asks and everything and not sys.stdin.isatty():
            raise usage_error("--all needs --yes where nobody can be asked, or --dry-run to look")
        async with opened_table(self.settings) as table:
            agreed: Collection[int] | None = None
            if asks and sys.stdin.isatty():
                agreed = await found_ids(table, rows)
                question = f"Discard {rows_of(len(agreed))}? Kafka does not have these events"
                if agreed and (status_of_no := refused(question, "Nothing was discarded")):
                    return status_of_no
            change = Change("discarded", "would be discarded", table.discard, DISCARDABLE)
            return await change_and_tell(
                table,
                rows,
                change,
                dry_run=dry_run,
                as_json=as_json or self.json,
                agreed=agreed,
            )
