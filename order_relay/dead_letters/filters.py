"""Filters on dead letters, and the times that people type into them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from order_relay.dead_letters.letter import Letter, in_utc
from order_relay.model.byte_text import to_text

_SPAN = re.compile(r"(\d{1,6})(s|m|min|h|d|w)", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Conditions on a letter, all of which must hold; ``None`` is no condition.

    Attributes:
        reason: The code of ``dlq-reason``; empty for letters without one.
        key: The key or the order's id, as text.
        event_id: The event's id, as text.
        since: Given up at this time or later.
        until: Given up before this time.
        http_status: The status of the target's last answer.
        message: Text that the error message contains, in upper or lower case.
    """

    reason: str | None = None
    key: str | None = None
    event_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    http_status: int | None = None
    message: str | None = None

    def __bool__(self) -> bool:
        return self != LetterFilter()

    def __str__(self) -> str:
        """Return the conditions for people, such as ``those with reason rejected``; ``all``."""
        given = {
            "reason": self.reason, "status": self.http_status, "key": self.key,
            "event id": self.event_id, "message": self.message,
            "since": self.since, "until": self.until,
        }  # fmt: skip
        named = [f"{name} {value}" for name, value in given.items() if value is not None]
        return f"those with {', '.join(named)}" if named else "all"

    def finds(self, letter: Letter) -> bool:
        """Return whether a letter meets every condition."""
        return (
            (self.reason is None or self.reason == (letter.reason or ""))
            and (self.key is None or self._has_key(letter))
            and (self.event_id is None or self.event_id == to_text(letter.event_id))
            and (
                self.http_status is None or letter.text("dlq-http-status") == str(self.http_status)
            )
            and (self.message is None or self._has_message(letter))
            and self._in_time(letter)
        )

    def _has_message(self, letter: Letter) -> bool:
        found = letter.text("kafka_dlt-exception-message") or ""
        return (self.message or "").lower() in found.lower()

    def _has_key(self, letter: Letter) -> bool:
        if self.key == to_text(letter.key):
            return True
        order_id = letter.order_id
        return order_id is not None and self.key == str(order_id)

    def _in_time(self, letter: Letter) -> bool:
        if self.since is None and self.until is None:
            return True
        failed_at = letter.failed_at
        if failed_at is None:
            return False
        return (self.since is None or failed_at >= self.since) and (
            self.until is None or failed_at < self.until
        )


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the time that a text gives, in UTC.

    Args:
        text: ISO 8601, UTC where it names no zone; or a time span before now, such as ``2h``.
        now: The current time, with a zone.

    Raises:
        ValueError: The text is neither.
    """
    span = _SPAN.fullmatch(text.strip())
    try:
        if span is not None:
            return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
        return in_utc(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:40]!r} must be ISO 8601 such as 2025-12-19T10:30:00Z, "
            "or a time span such as 30m, 2h or 7d"
        ) from None
