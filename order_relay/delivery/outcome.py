"""How a record ended, or goes so far: for whoever keeps books."""

from __future__ import annotations

import msgspec

from order_relay.model.order_paid import OrderId


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a record was finished.

    Attributes:
        delivered: The logger answered 2xx; else its dead letter is kept.
        attempts: POSTs made for it in this worker; 0 for one that was never sent.
        order_id: The order; ``None`` for a record that is no event.
        paid_at: ``paidAt`` as the event gives it; empty for a record that is no event.
        started_ms: When its delivery began, milliseconds since the epoch.
        reason: The dead letter's short code; empty if it was delivered.
        http_status: The last refusal's status; ``None`` without one.
        last_error: What the last failed attempt said; empty without one.
        duplicate: Its event was delivered before: it was not sent.
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
    """How a record that is not finished fails.

    Attributes:
        failures: Attempts so far, all of which failed.
        last_error: What the last one said.
        http_status: The logger's last refusal; ``None`` where it did not answer.
    """

    failures: int
    last_error: str
    http_status: int | None
