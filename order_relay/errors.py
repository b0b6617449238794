"""What a handler raises to say more than "it failed", and the error of a wrong declaration.

    Exception
    ├── HandlerSignal
    │   ├── Reject          the record is at fault: dead letter at once
    │   ├── RetryLater      the target is busy: counts against nobody
    │   └── Unavailable     the target refuses us: an outage, counts against the target only
    └── InvalidConsumer     a consumer is declared wrongly; the start ends

Any other exception of a handler is a failed attempt, which is retried.
"""

from __future__ import annotations


class HandlerSignal(Exception):
    """Root of what a handler may raise on purpose."""


class Reject(HandlerSignal):
    """The record can never be handled: it goes to the dead-letter topic at once."""

    def __init__(self, reason: str = "") -> None:
        """Reject the record; ``reason`` is written into its dead letter."""
        super().__init__(reason or "the handler rejected the record")


class RetryLater(HandlerSignal):
    """The target asks for a pause: no attempt is counted, all of the consumer slows down.

    Attributes:
        seconds: How long to wait; 0: as long as the consumer thinks best.
    """

    def __init__(self, seconds: float = 0.0, reason: str = "") -> None:
        """Come again after ``seconds``, 60 at most."""
        super().__init__(reason or "the handler asked to retry later")
        self.seconds = seconds


class Unavailable(HandlerSignal):
    """The target takes nothing from us at all, such as with wrong credentials.

    Nothing is counted against the record. Once several fail so the breaker opens, and one record
    after the other is tried until the target works again.
    """

    def __init__(self, reason: str = "") -> None:
        """Say that the target is not available, and why."""
        super().__init__(reason or "the handler says that its target is unavailable")


class InvalidConsumer(Exception):
    """A consumer is declared wrongly; the message names what is wrong and what is allowed."""
