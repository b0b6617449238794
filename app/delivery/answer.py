"""What comes of one attempt at the external logger, and the port through which it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from app.delivery.retry import Verdict
from app.trace_context import TraceContext


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt.

    Attributes:
        verdict: What it means for the record.
        status: HTTP status; ``None`` when no answer came.
        detail: The body of an error answer (bounded), or what went wrong.
        retry_after_seconds: What Retry-After asked for, 0 to 60.
        error_type: Full name of the error's class when no answer came.
    """

    verdict: Verdict
    status: int | None = None
    detail: str = ""
    retry_after_seconds: float = 0.0
    error_type: str | None = None


class ExternalLogger(Protocol):
    """Where records are delivered."""

    async def post(
        self, body: bytes, idempotency_key: str, trace: TraceContext | None = None
    ) -> Answer:
        """Make one attempt. Ends within the time-out; failures are answers, not errors.

        ``trace`` goes along as headers. A cancelled attempt may have reached the logger.
        """
