"""Dead letters as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from order_relay.cli.output import iso_time, make_table, plain
from order_relay.dead_letters.letter import Letter, header_value
from order_relay.model.byte_text import to_text


def letter_fields(letter: Letter, *, redriven: bool) -> dict[str, Any]:
    """Return the fields of ``dlq-list --json``. Bytes are written as by ``dlq-show``."""
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


def whole_letter(letter: Letter, *, redriven: bool) -> dict[str, Any]:
    """Return all fields of a letter, with its headers and value."""
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
