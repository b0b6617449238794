"""Health of a worker whose deliveries stand where a test puts them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from order_relay.deliveries.lookup import OrderLookup
from order_relay.delivery.dispatcher import Dispatcher
from order_relay.monitoring.health import Health
from order_relay.settings import load_settings
from order_relay.web.server import ConsumerPages


class StandingDeliveries:
    """Nothing is in hand, and nothing ever moved, unless a test says so."""

    def __init__(self, breaker: Any = None) -> None:
        self.last_activity = 0.0
        self.queued = 0
        self.breaker = breaker or SimpleNamespace(closed=True)
        self.paused = False


def standing_health(
    deliveries: StandingDeliveries | None = None,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    excused: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> Health:
    """Health with a closed breaker and a clock that stands, unless others are given."""
    dispatcher = cast(Dispatcher, deliveries or StandingDeliveries())
    return Health(dispatcher, load_settings(**settings), excused=excused, clock=clock)


def consumer_pages(
    health: Health, orders: OrderLookup | None = None, probe_now: Callable[[], str] = lambda: ""
) -> ConsumerPages:
    """The pages of a consumer; there are no figures to ask for."""
    nothing: Any = None
    return ConsumerPages(health, nothing, nothing, orders, probe_now)
