"""The rows of the fallback table, and their outcomes.

A row is PENDING until it is PUBLISHED, or FAILED and waiting for a person. A worker claims rows
before it publishes them. A claim is a lease: it runs out by itself if the worker dies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from order_relay.model.headers import Header

# A row written more than this after now shows that the clock was set back.
CLOCK_SECONDS = 60.0


class Status(StrEnum):
    """The values of the ``status`` column."""

    PENDING = "PENDING"
    PUBLISHED = "PUBLISHED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A record to keep until Kafka acknowledges it.

    Attributes:
        topic: The topic to publish to.
        key: The record's key, or None; rows of one topic and key are published in order.
        payload: The record's value; None is a tombstone.
        headers: The record's headers, ``event-id`` among them.
        partition: The partition to use, or None to let the key decide. Ignored if the topic has
            no such partition.
        error_message: Why it is saved; None for an outbox row.
        max_retry: Refusals after which the row is FAILED.
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
    """A row of the table. All times are in UTC, with a zone.

    Attributes:
        updated_at: When it was last written: saved, claimed, renewed, settled or requeued.
        malformed: What is wrong with a row written by other programs that cannot be read back and
            so cannot be published; None for all others.
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

    @property
    def lane(self) -> object:
        """Equal for rows that must be published in order: those of one topic and key."""
        return self.id if self.key is None else (self.topic, self.key)


def lanes_of(rows: Iterable[FallbackRow]) -> list[list[FallbackRow]]:
    """Group rows by lane; the order within a lane is kept."""
    lanes: dict[object, list[FallbackRow]] = {}
    for row in rows:
        lanes.setdefault(row.lane, []).append(row)
    return list(lanes.values())


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A position in the order in which due rows are claimed."""

    next_retry_at: datetime
    id: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows leased to one worker.

    Attributes:
        token: Proof of the lease.
        until: When the lease runs out, by the store's clock.
        rows: The rows, by id. Of each topic and key they include the first PENDING row and all
            between it and the last one claimed.
        position: Where the next claim of the same pass continues; None: nothing is left.
    """

    token: str
    until: datetime
    rows: tuple[FallbackRow, ...]
    position: Position | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a claimed row, which ends its lease.

    Attributes:
        status: PUBLISHED; FAILED, for a person; or PENDING: refused and due again at
            ``next_retry_at``, or without one released as it was before the claim.
        retry_count: The new value; None leaves the old one. The same goes for the next two.
    """

    row_id: int
    status: Status = Status.PENDING
    retry_count: int | None = None
    next_retry_at: datetime | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class FallbackStats:
    """How many rows there are.

    Attributes:
        oldest_pending_seconds: Age of the oldest PENDING row; 0 without one. If the clock was set
            back since the row was saved: the time since that was noticed.
        oldest_failed_seconds: How long the oldest FAILED row has waited for a person, or 0.
    """

    pending: int = 0
    published: int = 0
    failed: int = 0
    oldest_pending_seconds: float = 0.0
    oldest_failed_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RowFilter:
    """Conditions on rows, all of which must hold; None is no condition.

    ``error_contains`` is a part of the error message, in upper or lower case.
    """

    ids: Collection[int] | None = None
    status: Status | None = None
    topic: str | None = None
    key: bytes | None = None
    error_contains: str | None = None
