"""Which rows a command means: ids, or all that a filter finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click
from faust.cli.base import argument, option

from order_relay.cli.command import usage_error
from order_relay.fallback.store import RowFilter, Status

MAX_ID = 2**63 - 1  # what a BIGINT holds


class RowId(click.ParamType):
    """The id of a row."""

    name = "id"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number that the text means."""
        text = str(value)
        digits = text.lstrip("0")
        # Python reads no number of thousands of digits.
        short = text.isascii() and text.isdigit() and 0 < len(digits) <= len(str(MAX_ID))
        if not short or (number := int(digits)) > MAX_ID:
            self.fail(f"{text[:40]!r} is no row id: ids are whole numbers from 1", param, ctx)
        return number


class StatusName(click.ParamType):
    """The status of rows, in any case of letters."""

    name = "status"

    def __init__(self, *allowed: Status) -> None:
        self._allowed = {status.value: status for status in allowed}

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Status:
        """Return the status that the text means."""
        found = self._allowed.get(str(value).upper())
        if found is None:
            self.fail(f"{str(value)[:40]!r} must be {' or '.join(self._allowed)}", param, ctx)
        return found

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what ``--help`` shows."""
        return f"[{'|'.join(self._allowed)}]"


ROW_ID = RowId()
STATUS = StatusName(*Status)

IDS_ARGUMENT = argument("ids", nargs=-1, type=ROW_ID, metavar="[ID]...")
ALL_OPTION = option(
    "--all", "everything", is_flag=True, default=False, help="All that the filters leave."
)
TOPIC_OPTION = option("--topic", default=None, help="With --all: only rows of this topic.")
ERROR_OPTION = option(
    "--error-contains", default=None, help="With --all: only rows with this in their error."
)


def chosen(ids: Sequence[int], everything: bool, filters: RowFilter) -> RowFilter:
    """Return the rows that are meant: those of the ids, or with ``--all`` of the filters.

    Filters without a status mean FAILED rows.

    Raises:
        ClickException: Neither or both are given.
    """
    options = {
        "--status": filters.status,
        "--topic": filters.topic,
        "--error-contains": filters.error_contains,
    }
    narrowed = [name for name, value in options.items() if value is not None]
    if everything and ids:
        raise usage_error("give row ids or --all, not both")
    if everything:
        return replace(filters, status=filters.status or Status.FAILED)
    if not ids:
        raise usage_error(
            "say which rows: their ids, or --all, narrowed by --topic and --error-contains"
        )
    if narrowed:
        raise usage_error(f"{' and '.join(narrowed)} can only go with --all, not with row ids")
    return RowFilter(ids=frozenset(ids))
