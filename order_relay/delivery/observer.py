"""What the delivery code tells about itself, for metrics."""

from __future__ import annotations

from typing import Protocol


class DeliveryObserver(Protocol):
    """Hears of every attempt and every end. Must neither block nor raise."""

    def attempted(self, result: str, status_class: str, seconds: float) -> None:
        """One attempt ended.

        Args:
            result: A value of ``Verdict``.
            status_class: One of ``order_relay.delivery.answer.STATUS_CLASSES``.
            seconds: From the request to the answer.
        """

    def retrying(self) -> None:
        """A record will be tried again."""

    def delivered(self, paid_to_delivered_seconds: float) -> None:
        """The logger answered 2xx."""

    def duplicate(self) -> None:
        """A record's event was delivered before: the record is finished, and was not sent."""

    def skipped(self) -> None:
        """A record was another consumer's redriven letter: it is finished, and was not sent."""

    def dead_lettered(self, reason: str) -> None:
        """A dead letter was acknowledged."""

    def abandoned(self, records: int) -> None:
        """Records were given up unfinished: their partition moved, or the worker stops."""
