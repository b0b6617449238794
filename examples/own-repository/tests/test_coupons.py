"""The handler by itself: no Kafka, no worker."""

import pytest
from agents.coupons import issue

from order_relay import Delivery, OrderPaid, Reject

DELIVERY = Delivery("coupons", "order-1-paid", 1, "order-paid-events", 0, 0, b"1", b"{}", (), 0)


def order(user_id: int) -> OrderPaid:
    return OrderPaid("ORDER_PAID", 1, user_id, "2025-12-19T10:30:00", [])


async def test_a_coupon_is_issued(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        await issue(order(7), DELIVERY)
    assert "Coupon issued user_id=7 key=order-1-paid" in caplog.text


async def test_an_order_without_a_user_is_rejected() -> None:
    with pytest.raises(Reject, match="no such user"):
        await issue(order(0), DELIVERY)
