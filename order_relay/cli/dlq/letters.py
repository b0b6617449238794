"""``order-relay dlq list`` and ``dlq show``: dead letters as JSON and as tables."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from order_relay.cli.command import (
    CONSUMER,
    JSON,
    choose_consumer,
    command,
    load_application,
    usage_error,
)
from order_relay.cli.dlq.options import FILTERS, LIMIT_RANGE, POSITION, letter_filter
from order_relay.cli.output import (
    count_of,
    iso_time,
    json_line,
    make_table,
    plain,
    print_fields,
    stderr_console,
    stdout_console,
    writing_stdout,
)
from order_relay.dead_letters.letter import Letter, LetterPosition, header_value
from order_relay.dead_letters.open_topic import open_topic
from order_relay.model.byte_text import to_text


@command(
    click.option("--all", "everything", is_flag=True, help="Also those that were redriven."),
    *FILTERS,
    click.option("--limit", type=LIMIT_RANGE, default=100, help="At most so many; by default 100."),
    click.option("--count", is_flag=True, help="Only count them, by reason."),
    CONSUMER,
    JSON,
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
    """List dead letters, by partition and offset: those that were not redriven, or --all."""
    wanted = letter_filter(**filters)
    shown: list[tuple[Letter, bool]] = []
    total = 0
    counts: Counter[str | None] = Counter()
    async with open_topic(choose_consumer(load_application(), consumer).settings) as topic:
        async for letter, redriven in topic.matching(wanted, everything=everything):
            total += 1
            if count:
                counts[letter.reason] += 1
            elif as_json:
                json_line(letter_fields(letter, redriven=redriven))
                if total == limit:
                    return 0
            elif total <= limit:
                shown.append((letter, redriven))
    if count:
        _print_counts(counts, as_json=as_json)
    if shown:
        stdout_console().print(letters_table(shown, with_state=everything))
    if not total and (count or not as_json):
        stderr_console().print("No letters")
    elif shown and total > limit:
        stderr_console().print(f"{limit:,} of {count_of(total, 'letter')}; --limit shows more")
    return 0


def _print_counts(counts: Counter[str | None], *, as_json: bool) -> None:
    table = make_table(("reason", "letters"), right=("letters",))
    for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0] or "")):
        if as_json:
            json_line({"reason": reason, "letters": number})
        table.add_row(plain(reason if reason is not None else "(none)", 60), f"{number:,}")
    if not as_json and counts:
        stdout_console().print(table)


@command(
    click.argument("position", nargs=-1, metavar="PARTITION:OFFSET"),
    click.option(
        "--value", "only_value", is_flag=True, help="Only write the value to stdout, byte for byte."
    ),
    CONSUMER,
    JSON,
)
async def show_letter(
    *, position: tuple[str, ...], only_value: bool, consumer: str | None, as_json: bool
) -> int:
    r"""Show everything of one dead letter, by its position: PARTITION:OFFSET.

    Spring's numbers are decoded; what is not UTF-8 text is shown in hexadecimal digits after \x.
    """
    where = _parsed(position)
    if only_value and as_json:
        raise usage_error("give --value or --json, not both")
    async with open_topic(choose_consumer(load_application(), consumer).settings) as topic:
        letter = await topic.letter(*where)
        if letter is None:
            raise click.ClickException(f"there is no letter {where} in topic {topic.log.topic}")
        redriven = where.offset in topic.redriven[where.partition]
    fields = {
        **letter_fields(letter, redriven=redriven),
        "topic": letter.topic,
        "timestamp_ms": letter.timestamp_ms,
        "headers_unreadable": letter.headers_unreadable,
    }
    headers = [(name, header_value(name, value)) for name, value in letter.headers]
    value = to_text(letter.value)
    if only_value:
        with writing_stdout():
            sys.stdout.flush()
            sys.stdout.buffer.write(letter.value or b"")
            sys.stdout.buffer.flush()
    elif as_json:
        json_line({**fields, "headers": headers, "value": value})
    else:
        rows = [(name, "" if value is None else value) for name, value in fields.items()]
        rows += [(f"header {name}", "(null)" if one is None else one) for name, one in headers]
        print_fields([*rows, ("value", "(null: a tombstone)" if value is None else value)])
    return 0


def _parsed(texts: tuple[str, ...]) -> LetterPosition:
    if not 1 <= len(texts) <= 2:  # also partition and offset as two arguments
        raise usage_error("say which letter: one PARTITION:OFFSET, such as 0:17")
    return POSITION.convert(":".join(texts), None, None)


def letter_fields(letter: Letter, *, redriven: bool) -> dict[str, Any]:
    """Return the fields of ``dlq list --json``. Bytes are written as by ``dlq show``."""
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "state": _state(redriven),
        "failed_at": iso_time(letter.failed_at, "milliseconds"),
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
    table = make_table(columns, right=("letter", "status", "attempts", "redrives"))
    for letter, redriven in letters:
        key = to_text(letter.key)
        order_id = letter.order_id
        cells: list[str | Text] = [
            str(letter.position),
            iso_time(letter.failed_at) or "",
            plain(letter.reason, 40),
            plain(letter.text("dlq-http-status"), 5),
            plain(letter.text("dlq-attempts"), 8),
            str(letter.redrives),
            plain(key if key is not None else f"(order {order_id})" if order_id else "", 40),
            plain(to_text(letter.event_id), 60),
        ]
        table.add_row(*cells, *([_state(redriven)] if with_state else []))
    return table


def _state(redriven: bool) -> str:
    return "redriven" if redriven else "open"
