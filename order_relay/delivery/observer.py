"""The port through which deliveries are counted as metrics."""

from __future__ import annotations

from typing import Protocol


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
