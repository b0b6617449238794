"""The last hours of a consumer on this worker: figures by the minute, and what its target did."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from order_relay.delivery.target_health import Target

HOURS = 6
MINUTE_SECONDS = 60.0
LOOK_SECONDS = 1.0
STATES_KEPT = 100


@dataclass(eq=False)
class History:
    """Keeps the last six hours in memory; it begins with the worker.

    Attributes:
        target: Returns the state of the target.
        figures: Returns the figures of a minute; see ``Stats.minute``.
        clock: Seconds since the epoch.
    """

    target: Callable[[], Target]
    figures: Callable[[], Mapping[str, float]]
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._minutes: deque[dict[str, float]] = deque(maxlen=int(HOURS * 3600 / MINUTE_SECONDS))
        self._states: deque[dict[str, Any]] = deque(maxlen=STATES_KEPT)

    async def run(self) -> None:
        """Look every second until cancelled; the dispatcher notes a new state when it is read."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Note the state of the target, and once a minute the figures."""
        now = self.clock()
        target = self.target()
        state = target.state.name.lower()
        if not self._states or self._states[-1]["state"] != state:
            self._states.append({"at": now, "state": state, "said": str(target)})
        if not self._minutes or now - self._minutes[-1]["at"] >= MINUTE_SECONDS:
            self._minutes.append({"at": now, **self.figures()})

    def as_json(self) -> dict[str, Any]:
        """Return everything that is kept, the oldest first; docs/reference/web.md explains it."""
        return {"minutes": list(self._minutes), "target": list(self._states)}
