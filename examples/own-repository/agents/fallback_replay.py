"""From the worker's life to the replay of the fallback table: an adapter, nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from order_relay.worker.relay_app import RelayApp


def register(app: RelayApp) -> None:
    """Register the task that publishes saved rows every minute."""

    async def fallback_replay() -> None:
        """Replay until the worker stops; claims, not a leader, share the rows among workers."""
        await app.fallback.replay_until_stopped()

    # Not a Faust task: those begin when the worker has its partitions, and rows need none.
    app.background.append(fallback_replay)
