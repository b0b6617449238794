"""Replays the fallback table for as long as the worker runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from order_relay.worker.relay_app import RelayApp


def register(app: RelayApp) -> None:
    """Register the task that publishes saved rows every minute."""

    async def fallback_replay() -> None:
        """Replay until the worker stops. Workers share the rows by claiming them; none leads."""
        await app.fallback.replay_until_stopped()

    # Not a Faust task: those start when the worker has partitions, which rows do not need.
    app.background.append(fallback_replay)
