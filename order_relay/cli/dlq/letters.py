"""``order-relay dlq list`` and ``dlq show``: options that select letters, letters as text."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from order_relay.cli import command, output
from order_relay.dead_letters.filters import LetterFilter, parse_moment
from order_relay.dead_letters.letter import Letter, LetterPosition, header_value
from order_relay.dead_letters.open_topic import open_topic
from order_relay.model.byte_text import to_text

POSITION = command.Parsed("letter", LetterPosition.parse)
TIME = command.Parsed("time", lambda text: parse_moment(text, datetime.now(UTC)))
LIMIT_RANGE = click.IntRange(1, 10_000_000)
# Their names are those of ``LetterFilter``.
FILTERS: Sequence[Callable[[Any], Any]] = (
    click.option("--reason", help="Only with this dlq-reason."),
    click.option(
        "--status", "http_status", type=click.IntRange(100, 599), help="Only with this HTTP status."
    ),
    click.option("--key", help="Only of this key or order."),
    click.option("--event-id", help="Only of this event."),
    click.option("--message", type=command.PART, help="Only with this text in the message."),
    click.option(
        "--since",
        type=TIME,
        help="Given up then or later: ISO 8601 (UTC), or a time span such as 2h.",
    ),
    click.option("--until", type=TIME, help="Given up before; as --since."),
)


def letter_filter(**filters: Any) -> LetterFilter:
    """Return the filter of ``FILTERS``.

    Raises:
        UsageError: --since is not before --until, so no letter can match.
    """
    found = LetterFilter(**filters)
    if found.since is not None and found.until is not None and found.since >= found.until:
        raise click.UsageError("--since must be before --until")
    return found


def check_selection(
    positions: Sequence[LetterPosition], everything: bool, filters: LetterFilter
) -> None:
    """Check that letters are selected in one way.

    Raises:
        UsageError: They are not selected, or by positions and filters both.
    """
    if positions and (everything or filters):
        raise click.UsageError("give positions (PARTITION:OFFSET), or --all and filters, not both")
    if not positions and not everything and not filters:
        raise click.UsageError(
            "say which letters: their positions (PARTITION:OFFSET), filters such as --reason or "
            "--since, or --all"
        )


@command.define(
    click.option("--all", "everything", is_flag=True, help="Also those that are not open."),
    *FILTERS,
    click.option("--limit", type=LIMIT_RANGE, default=100, help="At most so many; by default 100."),
    click.option("--count", is_flag=True, help="Count them by reason."),
    command.CONSUMER,
    command.JSON,
)
async def list_letters(
    *,
    everything: bool,
    limit: int,
    count: bool,
    consumer: str | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """List open dead letters: those that were neither redriven nor discarded."""
    wanted = letter_filter(**filters)
    shown: list[tuple[Letter, bool]] = []
    total = 0
    counts: Counter[str | None] = Counter()
    async with open_topic(command.consumer_named(consumer).settings) as topic:
        async for letter, redriven in topic.matching(wanted, everything=everything):
            total += 1
            if count:
                counts[letter.reason] += 1
            elif as_json:
                output.json_line(letter_fields(letter, redriven=redriven))
                if total == limit:
                    return 0
            elif total <= limit:
                shown.append((letter, redriven))
    if count:
        _print_counts(counts, as_json=as_json)
    if shown:
        output.stdout_console().print(letters_table(shown, with_state=everything))
    if not total and (count or not as_json):
        output.stderr_console().print("No letters match" if wanted else "No letters")
    elif shown and total > limit:
        output.stderr_console().print(
            f"{limit:,} of {output.count_of(total, 'letter')}; --limit shows more"
        )
    return 0


def _print_counts(counts: Counter[str | None], *, as_json: bool) -> None:
    table = output.make_table(("reason", "letters"), right=("letters",))
    for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0] or "")):
        if as_json:
            output.json_line({"reason": reason, "letters": number})
        table.add_row(output.plain(reason if reason is not None else "(none)", 60), f"{number:,}")
    if not as_json and counts:
        output.stdout_console().print(table)


@command.define(
    click.argument("position", type=POSITION, metavar="PARTITION:OFFSET"),
    click.option(
        "--value", "only_value", is_flag=True, help="Only write the value, byte for byte."
    ),
    command.CONSUMER,
    command.JSON,
)
async def show_letter(
    *, position: LetterPosition, only_value: bool, consumer: str | None, as_json: bool
) -> int:
    r"""Show everything of one dead letter.

    Bytes that are not UTF-8 text are shown in hexadecimal digits after \x.
    """
    if only_value and as_json:
        raise click.UsageError("give --value or --json, not both")
    async with open_topic(command.consumer_named(consumer).settings) as topic:
        try:
            letter = await topic.letter(*position)
        except LookupError as error:
            raise click.ClickException(str(error)) from None
        redriven = position.offset in topic.redriven[position.partition]
    fields = {
        **letter_fields(letter, redriven=redriven),
        "topic": letter.topic,
        "timestamp_ms": letter.timestamp_ms,
        "headers_unreadable": letter.headers_unreadable,
    }
    headers = [(name, header_value(name, value)) for name, value in letter.headers]
    value = to_text(letter.value)
    if only_value:
        with output.writing_stdout():
            sys.stdout.flush()
            sys.stdout.buffer.write(letter.value or b"")
            sys.stdout.buffer.flush()
    elif as_json:
        output.json_line({**fields, "headers": headers, "value": value})
    else:
        fields["state"] = _shown_state(redriven)
        rows = [(name, "" if value is None else value) for name, value in fields.items()]
        rows += [(f"header {name}", "(null)" if one is None else one) for name, one in headers]
        output.print_fields([*rows, ("value", "(null: a tombstone)" if value is None else value)])
    return 0


def letter_fields(letter: Letter, *, redriven: bool) -> dict[str, Any]:
    """Return the fields of ``dlq list --json``. Bytes are written as by ``dlq show``."""
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "state": "redriven" if redriven else "open",
        "failed_at": output.iso_time(letter.failed_at, "milliseconds"),
        "reason": letter.reason,
        "http_status": letter.text("dlq-http-status"),
        "attempts": letter.text("dlq-attempts"),
        "redrives": letter.redrives,
        "key": to_text(letter.key),
        "order_id": letter.order_id,
        "event_id": to_text(letter.event_id),
        "message": letter.text("kafka_dlt-exception-message"),
        "original_topic": letter.text("kafka_dlt-original-topic"),
        "original_partition": letter.number("kafka_dlt-original-partition"),
        "original_offset": letter.number("kafka_dlt-original-offset"),
    }


def letters_table(letters: Iterable[tuple[Letter, bool]], *, with_state: bool) -> Table:
    """Return letters as a table, each with whether it was redriven."""
    columns = ["letter", "failed at", "reason", "status", "attempts", "redrives", "key", "event-id"]
    if with_state:
        columns.append("state")
    table = output.make_table(columns, right=("letter", "status", "attempts", "redrives"))
    for letter, redriven in letters:
        key = to_text(letter.key)
        order_id = letter.order_id
        cells: list[str | Text] = [
            str(letter.position),
            output.iso_time(letter.failed_at) or "",
            output.plain(letter.reason, 40),
            output.plain(letter.text("dlq-http-status"), 5),
            output.plain(letter.text("dlq-attempts"), 8),
            str(letter.redrives),
            output.plain(key if key is not None else f"(order {order_id})" if order_id else "", 40),
            output.plain(to_text(letter.event_id), 60),
        ]
        table.add_row(*cells, *([_shown_state(redriven)] if with_state else []))
    return table


def _shown_state(redriven: bool) -> str:
    # The group's commit does not tell them apart. Programs read "redriven" for both.
    return "redriven or discarded" if redriven else "open"
