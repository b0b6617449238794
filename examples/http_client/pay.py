"""Publish a paid order over HTTP: ``python pay.py ORDER_ID``. Needs nothing but Python."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

URL = os.environ.get("RELAY_URL", "http://127.0.0.1:6066") + "/order-paid"
ATTEMPTS = 5
# While Kafka is down an answer takes up to PRODUCER_DELIVERY_TIMEOUT_MS, 2 minutes.
TIMEOUT_SECONDS = 150.0
# The same request may succeed later. Any other refusal is final.
TRY_AGAIN = {408, 429, 503}


def publish(event: dict[str, Any], event_id: str) -> dict[str, Any]:
    """Post an event until it is durable, always with the same id.

    Raises:
        urllib.error.URLError: The relay refused it, or did not answer. Keep the event.
    """
    headers = {"Content-Type": "application/json", "event-id": event_id}
    if token := os.environ.get("API_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    # S310 is about addresses from strangers; this one is from the environment.
    request = urllib.request.Request(URL, json.dumps(event).encode(), headers, method="POST")  # noqa: S310
    for attempt in range(1, ATTEMPTS + 1):
        wait_seconds = 2.0 ** (attempt - 1)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            if error.code not in TRY_AGAIN or attempt == ATTEMPTS:
                raise
            wait_seconds = float(error.headers.get("Retry-After", wait_seconds))
            error.close()
        except OSError:  # no answer: it may be durable already, hence the same id again
            if attempt == ATTEMPTS:
                raise
        time.sleep(wait_seconds)
    raise AssertionError("unreachable")


def main() -> None:
    """Pay one order."""
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit("usage: python pay.py ORDER_ID, a whole number")
    order_id = int(sys.argv[1])
    event = {
        "eventType": "ORDER_PAID",
        "orderId": order_id,
        "userId": 456,
        "paidAt": datetime.now(UTC).isoformat(timespec="seconds"),
        "orderItems": [{"productId": 1, "orderQuantity": 2}],
    }
    try:
        # Made from the order: a second run for the same order is the same event.
        print(json.dumps(publish(event, event_id=f"order-{order_id}-paid")))
    except urllib.error.HTTPError as error:
        sys.exit(f"refused with {error.code}: {error.read().decode()}")
    except OSError as error:
        sys.exit(f"no answer from {URL}: {error}")


if __name__ == "__main__":
    main()
