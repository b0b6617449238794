"""The outbox, by plain SQL: Django's own connection writes the event's row."""

import json
from typing import Any

from django.conf import settings
from django.db import connection

# These four columns are all that an event needs: it is PENDING and due at once.
INSERT = (
    "INSERT INTO kafka_fallback_message (topic, message_key, payload, headers)"
    " VALUES (%s, %s, %s, %s)"
)


def add_event(event: dict[str, Any]) -> None:
    """Write an event into the outbox; call it in the order's ``transaction.atomic()``."""
    order_id = event["orderId"]
    headers = {"event-id": f"order-{order_id}-paid"}
    with connection.cursor() as cursor:
        cursor.execute(
            INSERT,
            [settings.ORDER_PAID_TOPIC, str(order_id), json.dumps(event), json.dumps(headers)],
        )
