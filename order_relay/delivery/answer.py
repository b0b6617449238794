"""What comes of one attempt at the target, and the port through which it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from order_relay.delivery.retry import Verdict
from order_relay.model.consumer import Delivery
from order_relay.model.trace_context import TraceContext

# Without an answer: none in time; no connection; one that broke off; TLS; a lack of our own. And a
# consumer's function, whatever it said.
FAILURES = ("timeout", "connect", "reset", "tls", "local", "other", "function")
STATUS_CLASSES = ("2xx", "3xx", "4xx", "429", "5xx", *FAILURES)


JSON = "application/json"


class Company:
    """Records whose attempt failed together: whose fault it was nobody knows."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        """Of so many records."""
        self.size = size


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt.

    Attributes:
        verdict: What it means for the record.
        status: HTTP status; ``None`` when no answer came.
        detail: The body of an error answer (bounded), or what went wrong.
        retry_after_seconds: What Retry-After asked for, 0 to 60.
        error_type: Full name of the error's class when no answer came.
        failure: What kind of failure it was when no answer came, one of FAILURES.
        body: Of a 2xx, where results of single records are wanted; as UTF-8, secrets included.
        company: Set where several records failed together. Such a failure counts against the
            target, and against none of them.
        place: Of the record among those that it was for: as an attempt it counts at place 0 alone.
    """

    verdict: Verdict
    status: int | None = None
    detail: str = ""
    retry_after_seconds: float = 0.0
    error_type: str | None = None
    failure: str = "other"
    body: bytes = b""
    company: Company | None = None
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
    """What handles events."""

    async def handle(self, event: Any, delivery: Delivery) -> Answer:
        """Make one attempt; failures are answers, not errors.

        A cancelled attempt may have done its work.
        """


class PostHandler(Protocol):
    """Where records are delivered."""

    async def post(
        self,
        body: bytes,
        idempotency_key: str,
        trace: TraceContext | None = None,
        *,
        content_type: str = JSON,
    ) -> Answer:
        """Make one attempt. Ends within the time-out; failures are answers, not errors.

        ``trace`` goes along as headers. A cancelled attempt may have reached the target.
        """

    def redact(self, text: str) -> str:
        """Take secrets out of text from the body of an answer 2xx; ``detail`` has none."""
