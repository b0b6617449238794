"""Which dead letters a command means: places, or all that a filter finds."""

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
    """Where a letter stands in the dead-letter topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class PositionType(click.ParamType):
    """The place of a letter."""

    name = "letter"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> LetterPosition:
        """Return the place that the text means."""
        found = _POSITION.fullmatch(str(value))
        if found is None:
            self.fail(
                f"{str(value)[:40]!r} is not a dead letter's position: it is PARTITION:OFFSET, "
                "such as 0:17",
                param,
                ctx,
            )
        return LetterPosition(int(found[1]), int(found[2]))


class MomentType(click.ParamType):
    """A moment: ISO 8601, or so long ago."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the moment that the text means."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_moment(str(value), datetime.now(UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


POSITION = PositionType()
MOMENT = MomentType()

POSITIONS_ARGUMENT = argument("positions", nargs=-1, type=POSITION, metavar="[PARTITION:OFFSET]...")
LIMIT_RANGE = click.IntRange(1, 10_000_000)
YES_OPTION = option("--yes", is_flag=True, default=False, help="Do not ask.")


def filter_options() -> list[Callable[[Any], Any]]:
    """Return the options that narrow letters down; see ``letter_filter``."""
    return [
        option("--reason", default=None, help="Only letters with this dlq-reason."),
        option(
            "--status",
            type=click.IntRange(100, 599),
            default=None,
            help="Only of this HTTP status.",
        ),
        option("--key", default=None, help="Only letters of this key or order."),
        option("--event-id", default=None, help="Only letters of this event."),
        option(
            "--since",
            type=MOMENT,
            default=None,
            help="Only given up then or later: ISO 8601 (UTC), or a time span such as 2h.",
        ),
        option("--until", type=MOMENT, default=None, help="Only given up before; as --since."),
    ]


def letter_filter(
    *,
    reason: str | None,
    status: int | None,
    key: str | None,
    event_id: str | None,
    since: datetime | None,
    until: datetime | None,
) -> LetterFilter:
    """Return the filter that the options mean.

    Raises:
        ClickException: Nothing can be between --since and --until.
    """
    if since is not None and until is not None and since >= until:
        raise usage_error("--since must be before --until")
    return LetterFilter(
        reason=reason,
        key=key,
        event_id=event_id,
        since=since,
        until=until,
        http_status=status,
    )


def check_choice(
    positions: Sequence[LetterPosition], everything: bool, filters: LetterFilter
) -> None:
    """See that it is said which letters are meant.

    Raises:
        ClickException: It is not, or it is said twice.
    """
    if positions and (everything or filters):
        raise usage_error("give places (PARTITION:OFFSET), or --all and filters, not both")
    if not positions and not everything and not filters:
        raise usage_error(
            "say which letters: their places (PARTITION:OFFSET), filters such as --reason or "
            "--since, or --all"
        )
