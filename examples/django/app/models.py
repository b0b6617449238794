"""The service's own table."""

from typing import Any

from django.db import models
from django.utils import timezone


class Order(models.Model):
    """A paid order."""

    user_id = models.BigIntegerField()
    paid_at = models.DateTimeField(default=timezone.now)
    items = models.JSONField()

    def paid_event(self) -> dict[str, Any]:
        """Return the order's ORDER_PAID event; the order must have its id."""
        return {
            "eventType": "ORDER_PAID",
            "orderId": self.pk,
            "userId": self.user_id,
            "paidAt": self.paid_at.isoformat(),
            "orderItems": self.items,
        }
