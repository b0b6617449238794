"""Arguments and options that select dead letters: positions, or filters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from order_relay.cli.command import usage_error
from order_relay.dead_letters.filters import LetterFilter, parse_moment
from order_relay.dead_letters.letter import LetterPosition

_POSITION = re.compile(r"(\d{1,9})[:/](\d{1,18})", re.ASCII)


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
        try:
            return parse_moment(str(value), datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


POSITION = PositionType()
TIME = TimeType()
LIMIT_RANGE = click.IntRange(1, 10_000_000)
# Their names are those of ``LetterFilter``.
FILTERS: Sequence[Callable[[Any], Any]] = (
    click.option("--reason", help="Only letters with this dlq-reason."),
    click.option(
        "--status", "http_status", type=click.IntRange(100, 599), help="Only of this HTTP status."
    ),
    click.option("--key", help="Only letters of this key or order."),
    click.option("--event-id", help="Only letters of this event."),
    click.option(
        "--since",
        type=TIME,
        help="Only given up then or later: ISO 8601 (UTC), or a time span such as 2h.",
    ),
    click.option("--until", type=TIME, help="Only given up before; as --since."),
)


def letter_filter(**filters: Any) -> LetterFilter:
    """Return the filter of ``FILTERS``.

    Raises:
        UsageError: --since is not before --until, so no letter can match.
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
        UsageError: They are not selected, or by positions and filters both.
    """
    if positions and (everything or filters):
        raise usage_error("give positions (PARTITION:OFFSET), or --all and filters, not both")
    if not positions and not everything and not filters:
        raise usage_error(
            "say which letters: their positions (PARTITION:OFFSET), filters such as --reason or "
            "--since, or --all"
        )
