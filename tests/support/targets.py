"""A target's state, as the relay reports it."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from order_relay.delivery.breaker import Breaker
from order_relay.delivery.dispatcher import Dispatcher
from order_relay.delivery.target_health import Target, TargetState

WORKS = Target(TargetState.WORKS, 75.0, None, 0.0, 256, None, "", None, None, "")


def target(state: TargetState = TargetState.WORKS, **others: Any) -> Target:
    """A target that works, unless told otherwise."""
    return replace(WORKS, state=state, **others)


def standing_dispatcher(breaker: Breaker, look: Callable[[], Target] = target) -> Dispatcher:
    """A dispatcher that sends nothing, and reports this target."""
    return cast(Dispatcher, SimpleNamespace(breaker=breaker, target=look, paused=False))
