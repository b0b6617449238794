"""What a target does, as the relay would say it."""

from dataclasses import replace
from typing import Any

from order_relay.delivery.target_health import Target, TargetState

WORKS = Target(TargetState.WORKS, 75.0, None, 0.0, 256, None, "", None, None, "")


def target(state: TargetState = TargetState.WORKS, **others: Any) -> Target:
    """A target that works, unless told otherwise."""
    return replace(WORKS, state=state, **others)
