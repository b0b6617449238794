"""The fallback table as the rest of publishing sees it: rows, what becomes of them, and the store.

A row is PENDING until it is PUBLISHED, or FAILED and waiting for a person. A worker that wants to
publish rows claims them: the claim is a lease that runs out by itself if the worker dies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from order_relay.model.headers import Header

# How far ahead of now a row may have been written; more shows that the clock was set back.
CLOCK_SECONDS = 60.0


class Status(StrEnum):
    """What the ``status`` column holds."""

    PENDING = "PENDING"
    PUBLISHED = "PUBLISHED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A record to keep until Kafka takes it.

    Attributes:
        topic: Where it goes.
        key: Its key as bytes, or None; rows of one topic and key are published in order.
        payload: Its value as bytes; None is a tombstone.
        headers: Its headers, ``event-id`` among them.
        partition: The partition to use, or None to let the key decide. Ignored where the topic
            has no such partition.
        error_message: Why it is saved; None for an outbox row.
        max_retry: Refusals after which it is FAILED.
    """

    topic: str
    key: bytes | None
    payload: bytes | None
    headers: tuple[Header, ...] = ()
    partition: int | None = None
    error_message: str | None = None
    max_retry: int = 3


@dataclass(frozen=True, slots=True)
class FallbackRow:
    """A row as it stands. All times are UTC, with their zone.

    Attributes:
        updated_at: When it was last written: saved, claimed, renewed, settled or requeued.
        malformed: What is wrong with a row that was written by hand and cannot be read back;
            it can never be published.
    """

    id: int
    topic: str
    key: bytes | None
    payload: bytes | None
    headers: tuple[Header, ...]
    partition: int | None
    retry_count: int
    max_retry: int
    status: Status
    next_retry_at: datetime
    error_message: str | None
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None = None
    lease_token: str | None = None
    lease_until: datetime | None = None
    malformed: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the order in which due rows are claimed."""

    next_retry_at: datetime
    id: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows leased to one worker.

    Attributes:
        token: Proof of the lease.
        until: When the lease runs out, by the store's clock.
        rows: The rows, by id. Of each topic and key the earliest unfinished row is among them, and
            none between it and the last is missing.
        position: Where the next claim of the same pass goes on; None: nothing is left.
    """

    token: str
    until: datetime
    rows: tuple[FallbackRow, ...]
    position: Position | None


# --- what becomes of a claimed row ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Acked:
    """Kafka has it: PUBLISHED."""

    row_id: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Kafka refused it; it waits for another attempt."""

    row_id: int
    retry_count: int
    next_retry_at: datetime
    error_message: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Kafka refused it for good, or once too often: FAILED, for a person."""

    row_id: int
    retry_count: int
    error_message: str


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing was tried: as it was before the claim."""

    row_id: int


RowOutcome: TypeAlias = Acked | Retry | GiveUp | Release


@dataclass(frozen=True, slots=True)
class FallbackStats:
    """How many rows there are.

    Attributes:
        oldest_pending_seconds: Age of the oldest PENDING row; 0 when there is none. Where the clock
            was set back since it was saved: how long ago that was noticed.
    """

    pending: int = 0
    published: int = 0
    failed: int = 0
    oldest_pending_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Which rows a person means; every condition that is given must hold.

    Attributes:
        ids: These rows.
        status: Rows of this status.
        topic: Rows of this topic.
        key: Rows with this key.
        error_contains: Rows whose error message has this in it, in any case of letters.
    """

    ids: Collection[int] | None = None
    status: Status | None = None
    topic: str | None = None
    key: bytes | None = None
    error_contains: str | None = None


class FallbackStore(Protocol):
    """Where the rows are kept. Safe to use from many tasks and, by lease, from many processes.

    Every method raises ``DatabaseUnavailable`` when the database does not answer or refuses; then
    nothing was changed, or (connection lost at the commit) everything was. Every change is
    committed when the method returns.
    """

    async def now(self) -> datetime:
        """Return the time by the clock that all workers of this store share; UTC."""

    async def save(self, message: NewMessage) -> int:
        """Keep a message as a PENDING row that is due at once.

        A cancelled call may or may not have kept it.

        Returns:
            The row's id.
        """

    async def claim(
        self,
        *,
        limit: int,
        lease_seconds: float,
        after: Position | None = None,
        ids: Collection[int] | None = None,
    ) -> Claim:
        """Lease due rows to the caller.

        A row is due when it is PENDING, its ``next_retry_at`` has come, nobody holds a lease on
        it, and every earlier PENDING row of the same topic and key is claimed with it. FAILED
        rows hold nobody back. Rows without a key hold nobody back either. Without ``after``, rows
        that were written more than ``CLOCK_SECONDS`` from now become due: the clock was set back.

        Args:
            limit: At most so many rows.
            lease_seconds: How long the lease holds unless renewed.
            after: The ``position`` of the claim before; None starts at the longest due.
            ids: Of these rows only; others of their keys are not taken along.
        """

    async def renew(self, claim_token: str, ids: Collection[int], lease_seconds: float) -> set[int]:
        """Let a lease run ``lease_seconds`` from now.

        Returns:
            The rows that are still the caller's; the others belong to somebody else by now.
        """

    async def settle(self, claim_token: str, outcomes: Sequence[RowOutcome]) -> set[int]:
        """Write down what became of claimed rows, and end their lease. May be repeated.

        Returns:
            The rows that were still the caller's; of the others nothing was written.
        """

    async def stats(self) -> FallbackStats:
        """Count the rows; fast with a million of them, but not for every request."""

    async def purge(self, *, published_before: datetime, limit: int) -> int:
        """Delete at most ``limit`` PUBLISHED rows, the oldest first; return how many."""

    async def find(
        self, rows: RowFilter, *, after_id: int = 0, limit: int = 100
    ) -> list[FallbackRow]:
        """Return rows by id, from the first after ``after_id``."""

    async def count(self, rows: RowFilter) -> int:
        """Count the rows that the filter means."""

    async def requeue(self, ids: Collection[int]) -> set[int]:
        """Make FAILED rows PENDING again, due at once, with all their retries before them.

        Returns:
            The rows that were FAILED; the others are left alone.
        """

    async def discard(self, ids: Collection[int]) -> set[int]:
        """Delete FAILED rows, and PENDING ones that nobody is publishing.

        Returns:
            The rows that were deleted.
        """

    async def close(self) -> None:
        """Let go of the database. May be called twice."""


async def find_saved(store: FallbackStore, topic: str, key: bytes) -> FallbackRow | None:
    """Return a row of a topic and key that waits for Kafka, or for a person.

    Raises:
        DatabaseUnavailable: The database did not answer, or refused.
    """
    for status in (Status.PENDING, Status.FAILED):
        if rows := await store.find(RowFilter(status=status, topic=topic, key=key), limit=1):
            return rows[0]
    return None
