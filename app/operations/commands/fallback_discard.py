"""``faust -A app fallback-discard``."""

from __future__ import annotations

import sys

import click
from faust.cli.base import option

from app.operations.commands.changing import Change, change_and_tell
from app.operations.commands.choosing import (
    ALL_OPTION,
    ERROR_OPTION,
    IDS_ARGUMENT,
    TOPIC_OPTION,
    StatusName,
    chosen,
)
from app.operations.commands.command import (
    DRY_RUN_OPTION,
    JSON_OPTION,
    RelayCommand,
    options,
    usage_error,
)
from app.operations.commands.output import rows_of
from app.operations.commands.table_access import opened_table
from app.publishing.fallback import RowFilter, Status

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
            default=Status.FAILED.value,
            help="With --all: rows of this status.",
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
        status: Status,
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
            if asks and sys.stdin.isatty():
                count = await table.count(rows)
                if count and not click.confirm(
                    f"Discard {rows_of(count)}? Kafka does not have these events", err=True
                ):
                    click.echo("Nothing was discarded", err=True)
                    return 1
            change = Change("discarded", "would be discarded", table.discard, DISCARDABLE)
            return await change_and_tell(
                table, rows, change, dry_run=dry_run, as_json=as_json or self.json
            )
