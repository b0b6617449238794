"""The result of a delivery, final or so far, and the port that counts results as metrics."""

from __future__ import annotations

from typing import Protocol

import msgspec

from order_relay.model.order_paid import OrderId


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The final result of a delivery.

    Attributes:
        delivered: Whether the target accepted it; otherwise its dead letter is stored.
        attempts: Attempts made in this worker; 0 if it was never sent.
        order_id: The order; ``None`` if the record is not a valid event.
        paid_at: The event's ``paidAt`` as text; empty if there is none.
        started_ms: When its delivery began, in milliseconds since the epoch.
        reason: The dead letter's short code; empty if it was delivered.
        http_status: HTTP status of the last failed attempt; ``None`` without one.
        last_error: Text of the last failed attempt; empty without one.
        duplicate: Not sent: its event was delivered before, or is another consumer's.
    """

    delivered: bool
    attempts: int
    order_id: OrderId | None = None
    paid_at: str = ""
    started_ms: int = 0
    reason: str = ""
    http_status: int | None = None
    last_error: str = ""
    duplicate: bool = False


class FailureState(msgspec.Struct, frozen=True, gc=False):
    """The failures so far of a record that is not finished.

    Attributes:
        failures: Attempts so far; all of them failed.
        last_error: Text of the last one.
        http_status: HTTP status of the last one; ``None`` if no answer came.
    """

    failures: int
    last_error: str
    http_status: int | None


class DeliveryObserver(Protocol):
    """Is told of every attempt and every result. Must neither block nor raise."""

    def attempted(self, result: str, status_class: str, seconds: float) -> None:
        """An attempt ended.

        Args:
            result: A value of ``Verdict``.
            status_class: One of ``order_relay.delivery.answer.STATUS_CLASSES``.
            seconds: Time from the request to the answer.
        """

    def retrying(self) -> None:
        """A record will be tried again."""

    def delivered(self, paid_to_delivered_seconds: float) -> None:
        """The target accepted a record."""

    def duplicate(self) -> None:
        """A record was finished without being sent: its event was delivered before."""

    def skipped(self) -> None:
        """A record was finished without being sent: another consumer's redriven dead letter."""

    def dead_lettered(self, reason: str) -> None:
        """A dead letter was acknowledged."""

    def abandoned(self, records: int) -> None:
        """Unfinished records were abandoned: their partition moved, or the worker stops."""
