"""Health of a worker whose deliveries stay as a test sets them."""

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

from order_relay.deliveries.lookup import OrderLookup
from order_relay.delivery.dispatcher import Dispatcher
from order_relay.monitoring.health import Health
from order_relay.settings import load_settings
from order_relay.web.consumer import ServedConsumer


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


class StandingDispatcher:
    """Sends nothing; records its calls."""

    def __init__(self, probe_now: Callable[[], str] = lambda: "") -> None:
        self.probe_now = probe_now
        self.pauses: list[bool] = []

    @property
    def paused(self) -> bool:
        """Whether the last call paused it."""
        return self.pauses[-1:] == [True]

    def pause(self, paused: bool) -> None:
        """See ``Dispatcher.pause``."""
        self.pauses.append(paused)


def served_consumer(**parts: Any) -> ServedConsumer:
    """A consumer that is served; what is not given must not be asked for."""
    given: dict[str, Any] = {"dispatcher": StandingDispatcher(), "orders": None} | parts
    names = [one.name for one in fields(ServedConsumer) if one.name != "one_job"]
    values: dict[str, Any] = {name: given.get(name) for name in names}
    return ServedConsumer(**values)


def consumer_pages(
    health: Health, orders: OrderLookup | None = None, probe_now: Callable[[], str] = lambda: ""
) -> ServedConsumer:
    """The pages of a consumer, without figures."""
    return served_consumer(health=health, orders=orders, dispatcher=StandingDispatcher(probe_now))
