"""Rows of the fallback table as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from order_relay.cli.output import age, iso_time, make_table, plain
from order_relay.fallback.store import FallbackRow, Status
from order_relay.model.byte_text import to_text

ERROR_LENGTH = 200


def row_fields(row: FallbackRow) -> dict[str, Any]:
    """Return the fields of a row for JSON, named as the SQL columns.

    Bytes are written as in the table; see ``order_relay.fallback.sql.schema``.
    """
    return {
        "id": row.id,
        "status": row.status.value,
        "topic": row.topic,
        "message_key": to_text(row.key),
        "payload": to_text(row.payload),
        "headers": [[name, to_text(value)] for name, value in row.headers],
        "message_partition": row.partition,
        "retry_count": row.retry_count,
        "max_retry": row.max_retry,
        "next_retry_at": iso_time(row.next_retry_at),
        "error_message": row.malformed or row.error_message,
        "created_at": iso_time(row.created_at),
        "updated_at": iso_time(row.updated_at),
        "published_at": iso_time(row.published_at),
    }


def rows_table(rows: Sequence[FallbackRow], now_seconds: float) -> Table:
    """Return rows as a table; ``now_seconds`` is the store's time, since the epoch."""
    table = make_table(
        ("id", "status", "topic", "key", "age", "retries", "next try", "error"),
        right=("id", "age", "retries"),
    )
    for row in rows:
        wait = row.next_retry_at.timestamp() - now_seconds
        table.add_row(
            str(row.id),
            row.status.value,
            plain(row.topic, 60),
            plain(to_text(row.key), 40),
            age(max(0.0, now_seconds - row.created_at.timestamp())),
            f"{row.retry_count}/{row.max_retry}",
            (f"in {age(wait)}" if wait > 0 else "due") if row.status is Status.PENDING else "",
            plain(row.malformed or row.error_message, ERROR_LENGTH),
        )
    return table
