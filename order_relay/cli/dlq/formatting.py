"""How dead letters are shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from order_relay.cli.output import make_table, moment, plain
from order_relay.dead_letters.letter import Letter, header_value
from order_relay.model.byte_text import to_text

OPEN = "open"
REDRIVEN = "redriven"


def state(*, redriven: bool) -> str:
    """Return the word for a letter that was redriven, or was not."""
    return REDRIVEN if redriven else OPEN


def letter_fields(letter: Letter, *, redriven: bool) -> dict[str, Any]:
    """Return what ``dlq-list --json`` tells of a letter. Bytes are told as in ``dlq-show``."""
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "state": state(redriven=redriven),
        "failed_at": _precise(letter.failed_at),
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


def whole_letter(letter: Letter, *, redriven: bool) -> dict[str, Any]:
    """Return everything of a letter, as JSON has it."""
    return {
        **letter_fields(letter, redriven=redriven),
        "topic": letter.topic,
        "timestamp_ms": letter.timestamp_ms,
        "headers_unreadable": letter.headers_unreadable,
        "headers": [[name, header_value(name, value)] for name, value in letter.headers],
        "value": to_text(letter.value),
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
            str(letter),
            moment(letter.failed_at) or "",
            plain(letter.reason, 40),
            plain(letter.text("dlq-http-status"), 5),
            plain(letter.text("dlq-attempts"), 8),
            str(letter.redrives),
            plain(key if key is not None else f"(order {order_id})" if order_id else "", 40),
            plain(to_text(letter.event_id), 60),
        ]
        table.add_row(*cells, *([state(redriven=redriven)] if with_state else []))
    return table


def letters_of(number: int) -> str:
    """Return ``1 letter`` or ``2 letters``."""
    return f"{number:,} {'letter' if number == 1 else 'letters'}"


def _precise(when: datetime | None) -> str | None:
    if when is None:
        return None
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
