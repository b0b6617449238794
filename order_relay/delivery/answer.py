"""The result of one attempt, and the ports through which attempts are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from order_relay.delivery.retry import Verdict
from order_relay.model.consumer import Delivery
from order_relay.model.trace_context import TraceContext

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
        body: The body of a 2xx, if the results of single records are wanted; as UTF-8, with
            secrets.
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
