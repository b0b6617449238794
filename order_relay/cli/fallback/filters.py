"""Arguments and options that select rows: ids, or filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import click
from faust.cli.base import argument, option

from order_relay.cli.command import usage_error
from order_relay.fallback.store import RowFilter, Status

MAX_ID = 2**63 - 1  # of a BIGINT


class RowIdType(click.ParamType):
    """The id of a row."""

    name = "id"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse the text."""
        text = str(value)
        digits = text.lstrip("0")
        # int() refuses numbers of thousands of digits.
        short = text.isascii() and text.isdigit() and 0 < len(digits) <= len(str(MAX_ID))
        if not short or (number := int(digits)) > MAX_ID:
            self.fail(f"{text[:40]!r} is not a row id: ids are whole numbers from 1", param, ctx)
        return number


class StatusType(click.ParamType):
    """The status of rows, in upper or lower case."""

    name = "status"

    def __init__(self, *allowed: Status) -> None:
        self._allowed = {status.value: status for status in allowed}

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Status:
        """Parse the text."""
        found = self._allowed.get(str(value).upper())
        if found is None:
            self.fail(f"{str(value)[:40]!r} must be {' or '.join(self._allowed)}", param, ctx)
        return found

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the value's name in ``--help``."""
        return f"[{'|'.join(self._allowed)}]"


ROW_ID = RowIdType()
STATUS = StatusType(*Status)

IDS_ARGUMENT = argument("ids", nargs=-1, type=ROW_ID, metavar="[ID]...")
TOPIC_OPTION = option("--topic", default=None, help="With --all: only rows of this topic.")
ERROR_OPTION = option(
    "--error-contains", default=None, help="With --all: only rows with this in their error."
)


def selected_rows(ids: Sequence[int], everything: bool, filters: RowFilter) -> RowFilter:
    """Return the rows of the ids, or with ``--all`` those of the filters.

    Filters without a status select FAILED rows.

    Raises:
        ClickException: Neither or both are given.
    """
    options = {
        "--status": filters.status,
        "--topic": filters.topic,
        "--error-contains": filters.error_contains,
    }
    given = [name for name, value in options.items() if value is not None]
    if everything and ids:
        raise usage_error("give row ids or --all, not both")
    if everything:
        return replace(filters, status=filters.status or Status.FAILED)
    if not ids:
        raise usage_error(
            "say which rows: their ids, or --all, narrowed by --topic and --error-contains"
        )
    if given:
        raise usage_error(f"{' and '.join(given)} can only go with --all, not with row ids")
    return RowFilter(ids=frozenset(ids))
