"""Health of a worker whose deliveries stand where a test puts them."""

from collections.abc import Callable
from typing import Any

from order_relay.deliveries.lookup import OrderLookup
from order_relay.monitoring.health import Health
from order_relay.web.server import ConsumerPages


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


def consumer_pages(
    health: Health, orders: OrderLookup | None = None, probe_now: Callable[[], str] = lambda: ""
) -> ConsumerPages:
    """The pages of a consumer; there are no figures to ask for."""
    nothing: Any = None
    return ConsumerPages(health, nothing, nothing, orders, probe_now)
