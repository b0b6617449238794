"""An index of a dead-letter topic: counts, filters and groups without reading the topic again."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redriven import Redriven
from order_relay.model.byte_text import to_text

# Longer texts are cut: the index is for finding letters, the topic has the whole text.
TEXT_LENGTH = 300
# What the relay writes fits: a filter must find in the index what it finds in the topic.
MESSAGE_LENGTH = 2100
CACHE_KIB = 16 * 1024
_VARIABLE_PARTS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+", re.IGNORECASE)

_SCHEMA = """
CREATE TABLE messages (id INTEGER PRIMARY KEY, kind TEXT NOT NULL UNIQUE);
CREATE TABLE letters (
    partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, failed_at REAL, reason TEXT NOT NULL,
    status TEXT, key TEXT, order_id TEXT, event_id TEXT, attempts TEXT, redrives INTEGER NOT NULL,
    message TEXT, kind INTEGER NOT NULL, PRIMARY KEY (partition, "offset")
) WITHOUT ROWID;
-- It covers counts, groups and automatic redriving: of a million letters they take half a second.
CREATE INDEX groups ON letters (reason, status, kind, failed_at, redrives);
"""


@dataclass(frozen=True, slots=True)
class IndexedLetter:
    """An open letter as the index knows it; texts may be cut. ``failed_at`` is in seconds."""

    partition: int
    offset: int
    failed_at: float | None
    reason: str
    http_status: str | None
    key: str | None
    order_id: str | None
    event_id: str | None
    attempts: str | None
    redrives: int
    message: str | None


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Open letters with one reason, one status and one kind of message.

    Attributes:
        reason: The code of ``dlq-reason``; empty without one.
        http_status: The status of the target's last answer.
        kind: The message, with ``#`` for each number and each UUID.
        count: The number of letters.
        oldest: When the first was given up, seconds since the epoch; None: unknown.
        newest: When the last was given up.
    """

    reason: str
    http_status: str | None
    kind: str
    count: int
    oldest: float | None
    newest: float | None

    @property
    def common_text(self) -> str:
        """The longest part of the message that all letters of the group have."""
        return max(self.kind.split("#"), key=len).strip()


class LetterIndex:
    """The open letters of one topic, in a temporary SQLite database of this process.

    A small one stays in memory; SQLite moves a large one to a temporary file, so that a million
    letters take 16 MiB of memory. Calls block, and must not overlap.
    """

    def __init__(self) -> None:
        # An empty name: a private database, which SQLite deletes when it is closed.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{CACHE_KIB};"
        )
        self._database.executescript(_SCHEMA)
        # SQLite knows upper and lower case of ASCII only.
        self._database.create_function(
            "lowered", 1, lambda text: text and text.lower(), deterministic=True
        )
        self._kinds: dict[str, int] = {}

    def close(self) -> None:
        """Delete the index."""
        self._database.close()

    def add(self, letters: Iterable[Letter]) -> None:
        """Add open letters; one that is there already is replaced."""
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT OR REPLACE INTO letters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [self._row(letter) for letter in letters],
        )
        self._database.execute("COMMIT")

    def close_redriven(self, partition: int, redriven: Redriven) -> None:
        """Remove letters that were redriven or discarded."""
        self.remove_below(partition, redriven.below)
        self._database.execute("BEGIN")
        self._database.executemany(
            'DELETE FROM letters WHERE partition = ? AND "offset" = ?',
            ((partition, offset) for offset in redriven.offsets_beyond()),
        )
        self._database.execute("COMMIT")

    def remove_below(self, partition: int, offset: float) -> int:
        """Remove the letters before an offset (infinity: all); return how many there were."""
        return self._database.execute(
            'DELETE FROM letters WHERE partition = ? AND "offset" < ?', (partition, offset)
        ).rowcount

    def by_reason(self) -> list[tuple[str, int, float | None]]:
        """Return each reason with the number of its open letters and the time of the oldest."""
        return self._database.execute(
            "SELECT reason, COUNT(*), MIN(failed_at) FROM letters GROUP BY reason"
        ).fetchall()

    def count(self, wanted: LetterFilter) -> int:
        """Return how many letters match."""
        return int(self._select("COUNT(*) FROM letters", wanted).fetchone()[0])

    def find(
        self, wanted: LetterFilter, *, after: tuple[int, int] = (-1, -1), limit: int
    ) -> list[IndexedLetter]:
        """Return letters that match, by partition and offset.

        Args:
            wanted: The conditions.
            after: Partition and offset of the last letter of the page before.
            limit: The length of a page.
        """
        # By the index all letters of a reason would be sorted for one page.
        found = self._select(
            'partition, "offset", failed_at, reason, status, key, order_id, event_id, attempts, '
            f"redrives, substr(message, 1, {TEXT_LENGTH}) FROM letters",
            wanted,
            'AND (partition, "offset") > (?, ?) ORDER BY partition, "offset" LIMIT ?',
            *after,
            limit,
            scan=True,
        )
        return [IndexedLetter(*row) for row in found]

    def is_open(self, partition: int, offset: int) -> bool:
        """Return whether there is an open letter at a position."""
        found = self._database.execute(
            'SELECT 1 FROM letters WHERE partition = ? AND "offset" = ?', (partition, offset)
        )
        return found.fetchone() is not None

    def due(
        self, waits_seconds: Sequence[float], now: float, *, limit: int
    ) -> list[tuple[int, int]]:
        """Return letters that ran out of retries and have waited for long enough.

        Args:
            waits_seconds: The wait before the first redrive, the second, and so on.
            now: Seconds since the epoch.
            limit: At most so many.
        """
        waited = " OR ".join(
            f"(redrives = {redrives} AND failed_at <= ?)" for redrives in range(len(waits_seconds))
        )
        return self._select(
            'partition, "offset" FROM letters',
            LetterFilter(reason="retries_exhausted"),
            f'AND ({waited}) ORDER BY partition, "offset" LIMIT ?',
            *(now - wait for wait in waits_seconds),
            limit,
        ).fetchall()

    def groups(self, wanted: LetterFilter, *, limit: int) -> list[LetterGroup]:
        """Return the groups of letters that match, the largest first."""
        by = "+reason, +status, +kind" if _needs_table(wanted) else "reason, status, kind"
        found = self._select(
            "found.reason, found.status, messages.kind, letters, oldest, newest FROM ("
            "SELECT reason, status, kind, COUNT(*) AS letters, MIN(failed_at) AS oldest, "
            "MAX(failed_at) AS newest FROM letters",
            wanted,
            f"GROUP BY {by} ORDER BY letters DESC, reason LIMIT ?) AS found "
            "JOIN messages ON messages.id = found.kind ORDER BY letters DESC, found.reason",
            limit,
        )
        return [LetterGroup(*row) for row in found]

    def _select(
        self, what: str, wanted: LetterFilter, more: str = "", *values: object, scan: bool = False
    ) -> sqlite3.Cursor:
        """Select letters; ``scan``: go through the table, not through the index."""
        where, given = _condition(wanted, scan=scan or _needs_table(wanted))
        return self._database.execute(
            f"SELECT {what} WHERE {where} {more}",
            (*given, *values),
        )

    def _row(self, letter: Letter) -> tuple[object, ...]:
        failed_at = letter.failed_at
        order_id = letter.order_id
        message = letter.text("kafka_dlt-exception-message")
        return (
            letter.partition,
            letter.offset,
            failed_at.timestamp() if failed_at is not None else None,
            (letter.reason or "")[:TEXT_LENGTH],
            _cut(letter.text("dlq-http-status")),
            _cut(to_text(letter.key)),
            _cut(None if order_id is None else str(order_id)),
            _cut(to_text(letter.event_id)),
            _cut(letter.text("dlq-attempts")),
            letter.redrives,
            message and message[:MESSAGE_LENGTH],
            self._kind(message or ""),
        )

    def _kind(self, message: str) -> int:
        kind = _VARIABLE_PARTS.sub("#", message[:TEXT_LENGTH])
        if kind not in self._kinds:
            if len(self._kinds) > 10_000:  # texts that no rule makes alike
                self._kinds.clear()
            self._database.execute("INSERT OR IGNORE INTO messages (kind) VALUES (?)", (kind,))
            found = self._database.execute("SELECT id FROM messages WHERE kind = ?", (kind,))
            self._kinds[kind] = found.fetchone()[0]
        return self._kinds[kind]


def _cut(text: str | None) -> str | None:
    return text and text[:TEXT_LENGTH]


def _needs_table(wanted: LetterFilter) -> bool:
    """Return whether the index lacks a field: by it each letter would be looked up by itself."""
    return (wanted.key, wanted.event_id, wanted.message) != (None, None, None)


def _condition(wanted: LetterFilter, *, scan: bool) -> tuple[str, Sequence[object]]:
    """Return the SQL condition of a filter, and its values."""
    conditions: list[str] = ["1"]
    values: list[object] = []

    def add(condition: str, *given: object) -> None:
        conditions.append(condition)
        values.extend(given)

    if wanted.reason is not None:
        # With the plus SQLite does not use the index for it.
        add("+reason = ?" if scan else "reason = ?", wanted.reason)
    if wanted.key is not None:
        add("(key = ? OR order_id = ?)", wanted.key[:TEXT_LENGTH], wanted.key[:TEXT_LENGTH])
    if wanted.event_id is not None:
        add("event_id = ?", wanted.event_id[:TEXT_LENGTH])
    if wanted.http_status is not None:
        add("status = ?", str(wanted.http_status))
    if wanted.message is not None:
        add("instr(lowered(message), ?) > 0", wanted.message.lower())
    if wanted.since is not None:
        add("failed_at >= ?", wanted.since.timestamp())
    if wanted.until is not None:
        add("failed_at < ?", wanted.until.timestamp())
    return " AND ".join(conditions), values
