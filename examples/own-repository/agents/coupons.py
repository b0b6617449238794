"""A coupon for every paid order."""

import logging

from order_relay import Consumer, Delivery, OrderPaid, Reject

logger = logging.getLogger(__name__)

coupons = Consumer("coupons", topic="order-paid-events", group="coupon-group", event=OrderPaid)


@coupons.handler
async def issue(order: OrderPaid, delivery: Delivery) -> None:
    """Issue a coupon once: the key tells repeats."""
    if order.userId == 0:
        raise Reject("no such user")
    logger.info("Coupon issued user_id=%s key=%s", order.userId, delivery.idempotency_key)
