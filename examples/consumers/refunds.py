"""Every refund, from a topic of its own to an HTTP endpoint: another event, and no function."""

import msgspec

from order_relay import Consumer, HttpPost


class RefundPaid(msgspec.Struct, frozen=True, rename="camel"):
    """A REFUND_PAID event: ``{"refundId":"r-1","order":123,"amountCents":1990}``.

    A value of another shape is a dead letter; fields that are not named here pass.
    """

    refund_id: str
    order: int | str
    amount_cents: int


refunds = Consumer(
    "refunds",
    topic="refund-paid-events",
    group="refunds-group",
    event=RefundPaid,
    # What /orders/<id>?consumer=refunds knows a refund by.
    subject=lambda refund: refund.order,
    # REFUNDS_URL sets another one; the body is the record's value, byte for byte.
    handler=HttpPost("http://localhost:3002/refunds"),
)
