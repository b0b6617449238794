"""What the answer to one attempt means, how long to wait after it, and the ports of attempts."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Protocol

from order_relay.model.consumer import Delivery
from order_relay.model.record import Record
from order_relay.model.trace_context import TraceContext

RETRYABLE_STATUSES = frozenset({408, 425})
OUTAGE_STATUSES = frozenset({401, 403, 407})
GONE_STATUSES = frozenset({404, 405, 410})
MAX_RETRY_AFTER_SECONDS = 60.0
# The share of a wait by which it may be shorter, by chance.
JITTER = 0.25


class Verdict(StrEnum):
    """What an answer means for the record, and for the target."""

    SUCCESS = "success"
    RETRYABLE = "retryable"
    """A failed attempt for both: network errors, time-outs, 408, 425 and 5xx."""
    THROTTLED = "throttled"
    """Counts against neither: 429, and 503 with Retry-After. Everything is sent more slowly."""
    OUTAGE = "outage"
    """Never the record's fault: 401, 403, 407 (our credentials), redirects (our URL), TLS."""
    GONE = "gone"
    """Nothing at the address, for this record or for all: 404, 405, 410."""
    REJECTED = "rejected"
    """The message's own fault: any other 4xx. It is dead-lettered at once."""
    LOCAL = "local"
    """A fault of this host: no file descriptor, memory or name server. Counts against neither."""


def judge(status: int, *, retry_after: bool = False) -> Verdict:
    """Classify an HTTP status.

    Args:
        status: The status.
        retry_after: Whether the answer has a Retry-After header, valid or not.
    """
    if 200 <= status < 300:
        return Verdict.SUCCESS
    if status == 429 or (status == 503 and retry_after):
        return Verdict.THROTTLED
    if status in OUTAGE_STATUSES or 300 <= status < 400:
        return Verdict.OUTAGE
    if status in RETRYABLE_STATUSES or not 400 <= status < 500:
        return Verdict.RETRYABLE
    return Verdict.GONE if status in GONE_STATUSES else Verdict.REJECTED


# Kinds of failure without an HTTP status: no answer in time, no connection, a broken connection,
# TLS, a fault of this host, anything else; and an error of a consumer's function.
FAILURES = ("timeout", "connect", "reset", "tls", "local", "other", "function")
STATUS_CLASSES = ("2xx", "3xx", "4xx", "429", "5xx", *FAILURES)

JSON = "application/json"


@dataclass(frozen=True, slots=True, eq=False)
class FailedBatch:
    """A batch of ``size`` records that failed as a whole: the record at fault is unknown."""

    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one attempt.

    Attributes:
        verdict: What it means for the record.
        status: HTTP status; ``None`` when no answer came.
        detail: The body of an error answer (bounded), or the error's text.
        retry_after_seconds: The wait that the target asked for, 0 to 60.
        error_type: Full name of the error's class when no answer came.
        failure: The kind of failure when no answer came, one of FAILURES.
        body: The body of a 2xx, if the results of single records are wanted; with secrets.
        is_cut: Whether the body of a 2xx ended before its end.
        failed_batch: Set if several records failed together. Such a failure counts against the
            target, but against none of the records.
        batch_index: The record's position in its batch. The request counts once as an attempt, for
            index 0.
    """

    verdict: Verdict
    status: int | None = None
    detail: str = ""
    retry_after_seconds: float = 0.0
    error_type: str | None = None
    failure: str = "other"
    body: bytes = b""
    is_cut: bool = False
    failed_batch: FailedBatch | None = None
    batch_index: int = 0

    @property
    def status_class(self) -> str:
        """One of STATUS_CLASSES: the class of the status, or the kind of failure without one."""
        if self.status is None:
            return self.failure
        if self.status == 429:
            return "429"
        return f"{self.status // 100}xx" if 200 <= self.status < 600 else "other"


def earlier(seconds: float) -> float:
    """Return a wait that is up to a quarter shorter, by chance.

    Retries and probes after whole seconds would meet a target that fails for a part of each second
    in the same part again and again.
    """
    return seconds * random.uniform(1.0 - JITTER, 1.0)  # noqa: S311


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with a cap: ``min(initial * multiplier ** (n - 1), maximum)``.

    Attributes:
        max_retries: Attempts after the first one.
        initial_seconds: Wait before the first retry; 0, or at least a millisecond.
        multiplier: Factor from one wait to the next.
        max_seconds: Longest wait of the formula; a longer Retry-After overrides it.
        vary: Changes waits while others fail, too, and those between probes. By default not.
    """

    max_retries: int = 3
    initial_seconds: float = 1.0
    multiplier: float = 2.0
    max_seconds: float = 10.0
    vary: Callable[[float], float] = field(default=float, compare=False)

    def exhausted(self, attempts: int) -> bool:
        """Whether ``attempts`` attempts use up the policy's retries."""
        return attempts > self.max_retries

    def wait_seconds(
        self, failures: int, retry_after_seconds: float = 0.0, *, varies: bool = False
    ) -> float:
        """Return the wait after ``failures`` failures in a row (1 or more).

        It grows to ``max_seconds``, and stays there for records that go on after their retries.
        ``retry_after_seconds`` can lengthen it, but never shorten it. If it ``varies``, ``vary``
        changes it.
        """
        try:
            backoff = self.initial_seconds * self.multiplier ** (failures - 1)
        except OverflowError:
            backoff = self.max_seconds if self.initial_seconds else 0.0
        backoff = min(backoff, self.max_seconds)
        return max(self.vary(backoff) if varies else backoff, retry_after_seconds)


def parse_retry_after(value: str | None, now: datetime) -> float:
    """Read a Retry-After header: seconds or an HTTP-date (RFC 9110, section 10.2.3).

    Args:
        value: The header's value, ``None`` without one.
        now: The current time, with a zone.

    Returns:
        Seconds to wait, between 0 and 60; 0 for an unusable header.
    """
    if value is None:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        digits = value.lstrip("0") or "0"
        # int() refuses very long numbers; all of them are over the cap.
        return min(float(digits[:9]), MAX_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)


class EventHandler(Protocol):
    """Handles the events of a consumer."""

    async def handle(self, event: Any, delivery: Delivery) -> Answer:
        """Make one attempt. Failures are returned as answers, not raised.

        A cancelled attempt may have had its effect.
        """


class PostHandler(Protocol):
    """Sends records to a target."""

    async def post(
        self,
        body: bytes,
        idempotency_key: str,
        trace: TraceContext | None = None,
        *,
        content_type: str = JSON,
    ) -> Answer:
        """Make one attempt; it ends within the time-out. Failures are returned, not raised.

        ``trace`` is sent as headers. A cancelled attempt may have reached the target.
        """

    def redact(self, text: str) -> str:
        """Remove secrets from text of a 2xx answer's body; ``detail`` has none."""


class AttemptTracer(Protocol):
    """Traces attempts."""

    async def attempt(
        self,
        record: Record,
        trace: TraceContext | None,
        number: int,
        make: Callable[[TraceContext | None], Awaitable[Answer]],
    ) -> Answer:
        """Make an attempt within a span, and return its answer.

        Args:
            record: The record.
            trace: The record's trace context: the parent of the span.
            number: 1 for the record's first attempt.
            make: Makes the attempt. It gets the span as trace context, to send it to the target.
        """
