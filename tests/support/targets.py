"""What a target does, as the relay would say it."""

from order_relay.delivery.target_health import Target, TargetState


def target(
    state: TargetState = TargetState.WORKS,
    *,
    seconds: float = 75.0,
    rate: float | None = None,
    share_failed: float = 0.0,
    concurrency: int = 256,
    last_status: int | None = None,
    last_text: str = "",
    last_seconds: float | None = None,
    next_probe_seconds: float | None = None,
    opened_because: str = "",
) -> Target:
    """A target that works, unless told otherwise."""
    return Target(
        state,
        seconds,
        rate,
        share_failed,
        concurrency,
        last_status,
        last_text,
        last_seconds,
        next_probe_seconds,
        opened_because,
    )
