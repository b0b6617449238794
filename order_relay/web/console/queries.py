"""The queries of the console's pages, and the same fields in the body of a change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlencode

from order_relay.dead_letters.filters import LetterFilter, parse_moment
from order_relay.fallback.store import RowFilter, Status


class BadQuery(ValueError):
    """A parameter is wrong; the text names it and what is allowed."""


LETTER_QUERY = ("reason", "status", "key", "event_id", "message", "since", "until")
ROW_QUERY = ("status", "topic", "key", "error")


def letter_filter(query: Mapping[str, str]) -> LetterFilter:
    """Return the filter that a query, or the fields of a change, describe.

    Raises:
        BadQuery: A value is wrong.
    """
    now = datetime.now(UTC)
    times = {}
    for name in ("since", "until"):
        if text := query.get(name):
            try:
                times[name] = parse_moment(text, now)
            except ValueError as error:
                raise BadQuery(f"{name} {error}") from None
    status = query.get("status")
    if times.get("since", now) > times.get("until", datetime.max.replace(tzinfo=UTC)):
        raise BadQuery("since must be before until")
    return LetterFilter(
        reason=query.get("reason") or None,
        key=query.get("key") or None,
        event_id=query.get("event_id") or None,
        message=query.get("message") or None,
        http_status=whole_number("status", status) if status else None,
        since=times.get("since"),
        until=times.get("until"),
    )


def row_filter(query: Mapping[str, str]) -> RowFilter:
    """Return the filter that a query, or the fields of a change, describe.

    Raises:
        BadQuery: A value is wrong.
    """
    status = query.get("status")
    if status and status not in Status.__members__:
        raise BadQuery(f"status {status[:40]!r} must be one of: {', '.join(Status)}")
    for name in ROW_QUERY:
        if "\0" in query.get(name, ""):  # PostgreSQL refuses such a text
            raise BadQuery(f"{name} must not have the character NUL")
    key = query.get("key")
    return RowFilter(
        status=Status(status) if status else None,
        topic=query.get("topic") or None,
        key=key.encode() if key else None,
        error_contains=query.get("error") or None,
    )


def whole_number(name: str, text: str) -> int:
    """Return the number that a text is; raises ``BadQuery``."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadQuery(f"{name} {text[:40]!r} must be a whole number")
    return int(text)


def position(text: str) -> tuple[int, int]:
    """Return the partition and offset after which a page begins; raises ``BadQuery``."""
    if not text:
        return (-1, -1)
    partition, _, offset = text.partition(":")
    return whole_number("after", partition), whole_number("after", offset)


def link(query: Mapping[str, str], **changes: str | None) -> str:
    """Return the query as a link, with some parameters changed."""
    merged = {**query, **changes}
    return "?" + urlencode({name: value for name, value in merged.items() if value})
