"""How long orders take from payment to the logger's 2xx."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
# Enough for exact figures of any counted run worth watching; older ones make room.
KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds that half, 95 % and 99 % of the deliveries stay within."""

    p50: float
    p95: float
    p99: float


class DeliveryTimes:
    """Remembers when open orders were paid, and how long the last ones took."""

    def __init__(self) -> None:
        self._paid_at: dict[str, float] = {}
        self._took: deque[tuple[float, float]] = deque(maxlen=KEPT)

    def paid(self, event_id: str, now: float) -> None:
        """The clock starts for an order."""
        self._paid_at[event_id] = now

    def delivered(self, event_id: str, now: float) -> None:
        """The clock stops; unknown ids are ignored."""
        paid_at = self._paid_at.pop(event_id, None)
        if paid_at is not None:
            self._took.append((now, now - paid_at))

    def ended_otherwise(self, event_id: str) -> None:
        """The order will not be delivered."""
        self._paid_at.pop(event_id, None)

    def percentiles(self, since: float = -math.inf) -> Percentiles | None:
        """Return the percentiles (nearest rank) of deliveries made after ``since``, if any."""
        seconds = sorted(took for at, took in self._took if at > since)
        if not seconds:
            return None

        def rank(share: float) -> float:
            return seconds[math.ceil(share * len(seconds)) - 1]

        return Percentiles(rank(0.50), rank(0.95), rank(0.99))
