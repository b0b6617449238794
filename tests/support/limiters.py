"""The rate limiters of targets: buckets, fixed and sliding windows."""

from collections import deque


class TokenBucket:
    """A limit per second on average, with a bounded burst."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, 0.0

    def takes(self, at: float) -> bool:
        """Whether one more may come at this time; time never goes back."""
        self._tokens = min(self._burst, self._tokens + (at - self._at) * self._rate)
        self._at = at
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class FixedWindow:
    """A limit per second of the clock."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._second, self._count = -1, 0

    def takes(self, at: float) -> bool:
        """Whether one more may come at this time; time never goes back."""
        if int(at) != self._second:
            self._second, self._count = int(at), 0
        self._count += 1
        return self._count <= self._rate


class SlidingWindow:
    """A limit for any period of one second."""

    def __init__(self, rate: int) -> None:
        self._times: deque[float] = deque(maxlen=rate)

    def takes(self, at: float) -> bool:
        """Whether one more may come at this time; time never goes back."""
        if len(self._times) == self._times.maxlen and self._times[0] > at - 1.0:
            return False
        self._times.append(at)
        return True
