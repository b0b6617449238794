"""Targets that take so many a second, in the ways in which they count."""

from collections import deque


class TokenBucket:
    """So many a second on average, of which so many at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, 0.0

    def takes(self, at: float) -> bool:
        """Whether one more may come at this second; seconds never go back."""
        self._tokens = min(self._burst, self._tokens + (at - self._at) * self._rate)
        self._at = at
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class FixedWindow:
    """So many in each second of the clock."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._second, self._count = -1, 0

    def takes(self, at: float) -> bool:
        """Whether one more may come at this second; seconds never go back."""
        if int(at) != self._second:
            self._second, self._count = int(at), 0
        self._count += 1
        return self._count <= self._rate


class SlidingWindow:
    """So many in the last second, whenever."""

    def __init__(self, rate: int) -> None:
        self._times: deque[float] = deque(maxlen=rate)

    def takes(self, at: float) -> bool:
        """Whether one more may come at this second; seconds never go back."""
        if len(self._times) == self._times.maxlen and self._times[0] > at - 1.0:
            return False
        self._times.append(at)
        return True
