"""The fallback store in memory, for tests of the code that uses a store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from order_relay.fallback.store import (
    CLOCK_SECONDS,
    Claim,
    FallbackRow,
    FallbackStats,
    NewMessage,
    Outcome,
    Position,
    RowFilter,
    Status,
)
from order_relay.fallback.table import FallbackTable


class MemoryFallbackStore(FallbackTable):
    """A fallback table that exists only in memory.

    Attributes:
        rows: Every row by id.
        error: Raised by every method while it is set.
    """

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.rows: dict[int, FallbackRow] = {}
        self.error: Exception | None = None
        self._time = clock
        self._last_id = 0

    async def now(self) -> datetime:
        self._check()
        return self._time()

    async def save(self, message: NewMessage) -> int:
        self._check()
        self._last_id += 1
        now = self._time()
        self.rows[self._last_id] = FallbackRow(
            id=self._last_id,
            topic=message.topic,
            key=message.key,
            payload=message.payload,
            headers=tuple(message.headers),
            partition=message.partition,
            retry_count=0,
            max_retry=message.max_retry,
            status=Status.PENDING,
            next_retry_at=now,
            error_message=message.error_message,
            created_at=now,
            updated_at=now,
        )
        return self._last_id

    async def claim(
        self,
        *,
        limit: int,
        lease_seconds: float,
        after: Position | None = None,
        token: str | None = None,
    ) -> Claim:
        self._check()
        now = self._time()
        latest = now + timedelta(seconds=lease_seconds + CLOCK_SECONDS)
        if after is None:
            soon = now + timedelta(seconds=CLOCK_SECONDS)
            until = now + timedelta(seconds=lease_seconds)
            for row in list(self.rows.values()):
                if row.status is Status.PENDING and min(row.next_retry_at, row.updated_at) > soon:
                    lease = row.lease_until and min(row.lease_until, until)
                    self._write(row.id, next_retry_at=now, lease_until=lease)
        lanes = self._lanes()
        heads = sorted(
            (
                lane[0]
                for lane in lanes
                if self._free(lane[0], now, latest)
                and (after is None or _position(lane[0]) > after)
            ),
            key=_position,
        )[:limit]
        chosen = {row.id for row in heads}
        followers: list[int] = []
        for lane in lanes:
            if lane[0].id in chosen:
                for row in lane[1:]:
                    if not self._free(row, now, latest):
                        break
                    followers.append(row.id)
        chosen.update(sorted(followers)[: limit - len(heads)])
        token = token or uuid.uuid4().hex
        until = now + timedelta(seconds=lease_seconds)
        for row_id in chosen:
            self._write(row_id, lease_token=token, lease_until=until)
        rows = tuple(self.rows[row_id] for row_id in sorted(chosen))
        return Claim(token, until, rows, _position(heads[-1]) if len(heads) >= limit else None)

    async def renew(self, claim_token: str, ids: Collection[int], lease_seconds: float) -> set[int]:
        self._check()
        renewed = self._held(claim_token, ids)
        for row_id in renewed:
            self._write(row_id, lease_until=self._time() + timedelta(seconds=lease_seconds))
        return renewed

    async def settle(self, claim_token: str, outcomes: Sequence[Outcome]) -> set[int]:
        self._check()
        renewed = self._held(claim_token, [outcome.row_id for outcome in outcomes])
        for one in outcomes:
            if one.row_id in renewed:
                row = self.rows[one.row_id]
                published = one.status is Status.PUBLISHED
                self._write(
                    one.row_id,
                    lease_token=None,
                    lease_until=None,
                    status=one.status,
                    retry_count=row.retry_count if one.retry_count is None else one.retry_count,
                    next_retry_at=one.next_retry_at or row.next_retry_at,
                    error_message=one.error_message or row.error_message,
                    published_at=self._time() if published else row.published_at,
                )
        return renewed

    async def leased(self, claim_token: str, ids: Collection[int]) -> set[int]:
        self._check()
        return self._held(claim_token, ids)

    async def stats(self) -> FallbackStats:
        self._check()
        counts = dict.fromkeys(Status, 0)
        for row in self.rows.values():
            counts[row.status] += 1
        pending = [row for row in self.rows.values() if row.status is Status.PENDING]
        failed = [row for row in self.rows.values() if row.status is Status.FAILED]
        now = since = self._time()
        given_up_at = min(failed, key=lambda row: row.id).updated_at if failed else now
        if pending:
            oldest = min(pending, key=lambda row: row.id)
            since = oldest.created_at if oldest.created_at <= now else oldest.updated_at
        return FallbackStats(
            counts[Status.PENDING],
            counts[Status.PUBLISHED],
            counts[Status.FAILED],
            max(0.0, (now - since).total_seconds()),
            max(0.0, (now - given_up_at).total_seconds()),
        )

    async def purge(self, *, published_before: datetime, limit: int) -> int:
        self._check()
        old = sorted(
            (row.published_at, row.id)
            for row in self.rows.values()
            if row.status is Status.PUBLISHED
            and row.published_at is not None
            and row.published_at < published_before
        )[:limit]
        for _, row_id in old:
            del self.rows[row_id]
        return len(old)

    async def find(
        self, rows: RowFilter, *, after_id: int = 0, limit: int = 100
    ) -> list[FallbackRow]:
        self._check()
        return [row for row in self._matching(rows) if row.id > after_id][:limit]

    async def count(self, rows: RowFilter) -> int:
        self._check()
        return len(self._matching(rows))

    async def requeue(self, ids: Collection[int]) -> set[int]:
        self._check()
        failed = {i for i in ids if i in self.rows and self.rows[i].status is Status.FAILED}
        for row_id in failed:
            self._write(row_id, status=Status.PENDING, retry_count=0, next_retry_at=self._time())
        return failed

    async def discard(self, ids: Collection[int], status: Status | None = None) -> set[int]:
        self._check()
        now = self._time()
        gone = set()
        for row_id in set(ids) & set(self.rows):
            row = self.rows[row_id]
            leased = row.lease_until is not None and row.lease_until > now
            if status not in (None, row.status):
                continue
            if row.status is Status.FAILED or (row.status is Status.PENDING and not leased):
                del self.rows[row_id]
                gone.add(row_id)
        return gone

    async def close(self) -> None:
        """Keep the rows."""

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _write(self, row_id: int, **changes: object) -> None:
        self.rows[row_id] = replace(self.rows[row_id], updated_at=self._time(), **changes)  # type: ignore[arg-type]

    def _held(self, token: str, ids: Collection[int]) -> set[int]:
        return {i for i in ids if i in self.rows and self.rows[i].lease_token == token}

    def _lanes(self) -> list[list[FallbackRow]]:
        """PENDING rows that must not overtake each other, by id."""
        lanes: dict[object, list[FallbackRow]] = {}
        for row in self.rows.values():
            if row.status is Status.PENDING:
                lanes.setdefault(row.lane, []).append(row)
        return list(lanes.values())

    @staticmethod
    def _free(row: FallbackRow, now: datetime, latest: datetime) -> bool:
        leased = row.lease_until is not None and now < row.lease_until <= latest
        return row.next_retry_at <= now and not leased

    def _matching(self, rows: RowFilter) -> list[FallbackRow]:
        words = None if rows.error_contains is None else rows.error_contains.lower()
        return [
            row
            for row in self.rows.values()
            if (rows.ids is None or row.id in rows.ids)
            and (rows.status is None or row.status is rows.status)
            and (rows.topic is None or row.topic == rows.topic)
            and (rows.key is None or row.key == rows.key)
            and (words is None or words in (row.error_message or "").lower())
        ]


def _position(row: FallbackRow) -> Position:
    return Position(row.next_retry_at, row.id)
