"""Arguments and options that select dead letters: positions, or filters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
from faust.cli.base import argument, option

from order_relay.cli.command import usage_error
from order_relay.dead_letters.filters import LetterFilter, parse_moment

_POSITION = re.compile(r"(\d{1,9})[:/](\d{1,18})", re.ASCII)


class LetterPosition(NamedTuple):
    """Partition and offset of a letter in the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class PositionType(click.ParamType):
    """The position of a letter, such as ``0:17``."""

    name = "letter"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> LetterPosition:
        """Parse the text."""
        found = _POSITION.fullmatch(str(value))
        if found is None:
            self.fail(
                f"{str(value)[:40]!r} is not a dead letter's position: it is PARTITION:OFFSET, "
                "such as 0:17",
                param,
                ctx,
            )
        return LetterPosition(int(found[1]), int(found[2]))


class TimeType(click.ParamType):
    """A time: ISO 8601, or a time span before now."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse the text."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_moment(str(value), datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


POSITION = PositionType()
TIME = TimeType()

POSITIONS_ARGUMENT = argument("positions", nargs=-1, type=POSITION, metavar="[PARTITION:OFFSET]...")
LIMIT_RANGE = click.IntRange(1, 10_000_000)
# Their names are those of ``LetterFilter``.
FILTER_OPTIONS: Sequence[Callable[[Any], Any]] = (
    option("--reason", default=None, help="Only letters with this dlq-reason."),
    option(
        "--status",
        "http_status",
        type=click.IntRange(100, 599),
        default=None,
        help="Only of this HTTP status.",
    ),
    option("--key", default=None, help="Only letters of this key or order."),
    option("--event-id", default=None, help="Only letters of this event."),
    option(
        "--since",
        type=TIME,
        default=None,
        help="Only given up then or later: ISO 8601 (UTC), or a time span such as 2h.",
    ),
    option("--until", type=TIME, default=None, help="Only given up before; as --since."),
)


def letter_filter(**filters: Any) -> LetterFilter:
    """Return the filter of ``FILTER_OPTIONS``.

    Raises:
        ClickException: --since is not before --until, so no letter can match.
    """
    found = LetterFilter(**filters)
    if found.since is not None and found.until is not None and found.since >= found.until:
        raise usage_error("--since must be before --until")
    return found


def check_selection(
    positions: Sequence[LetterPosition], everything: bool, filters: LetterFilter
) -> None:
    """Check that letters are selected in one way.

    Raises:
        ClickException: They are not selected, or by positions and filters both.
    """
    if positions and (everything or filters):
        raise usage_error("give positions (PARTITION:OFFSET), or --all and filters, not both")
    if not positions and not everything and not filters:
        raise usage_error(
            "say which letters: their positions (PARTITION:OFFSET), filters such as --reason or "
            "--since, or --all"
        )
