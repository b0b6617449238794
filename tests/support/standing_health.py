"""Health of a worker whose deliveries stand where a test puts them."""

from typing import Any

from order_relay.monitoring.health import Health


class StandingDeliveries:
    """Nothing is in hand, and nothing ever moved, unless a test says so."""

    last_activity = 0.0
    queued = 0


def standing_health(deliveries: StandingDeliveries | None = None, **options: Any) -> Health:
    """Health with a closed breaker and a clock that stands, unless other options are given."""
    given: dict[str, Any] = {
        "breaker_closed": lambda: True,
        "attempt_timeout_seconds": 10.0,
        "clock": lambda: 0.0,
    }
    return Health(deliveries or StandingDeliveries(), **(given | options))
