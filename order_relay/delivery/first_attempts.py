"""Counts the first attempts of records: the evidence of what the target does to all of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Hashable
from itertools import islice
from operator import attrgetter

# How long first attempts are evidence. For a record that has failed for longer, its own failing
# time counts, up to the maximum.
EVIDENCE_SECONDS = 60
MAX_EVIDENCE_SECONDS = 600
# The most recent attempts decide where they are worse, and at least this many.
RECENT_SECONDS = 10
RECENT_ATTEMPTS = 5
# For a single failure, the attempts sent in the same second and in so many before and after it
# decide where they are worse, and so many of them failed.
NEARBY_SECONDS = 1
NEARBY_FAILURES = 5
# Up to this share no standard error is added: four failures are evidence enough.
EXACT_SHARE = 0.1
# Keys counted separately in each second. A second with more keys has enough evidence anyway.
KEYS_EACH_SECOND = 32


class FirstAttempts:
    """Counts the first attempts of the last ten minutes, and their failures.

    The counts are kept for each second and key, so that one key can be excluded. Memory is bounded:
    in each second, keys beyond KEYS_EACH_SECOND are counted together.
    """

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=MAX_EVIDENCE_SECONDS + 1)
        self._latest = _Second(-1)
        # Failures by the second in which they were sent: time-outs end long after that.
        self._failures_sent: dict[int, dict[Hashable, int]] = {}

    def add(self, key: Hashable, failed: bool, now: float, sent_at: float = math.inf) -> None:
        """Count an attempt that ended now; ``now`` must not decrease."""
        second = self._latest
        if now >= second.number + 1:
            second = self._latest = _Second(int(now))
            self._seconds.append(second)
        second.attempts += 1
        second.failures += failed
        of_key = second.of_keys.get(key)
        if of_key is not None:
            of_key[0] += 1
            of_key[1] += failed
        elif len(second.of_keys) < KEYS_EACH_SECOND:
            second.of_keys[key] = [1, int(failed)]
        if failed:
            self._add_sent(key, int(min(sent_at, now)))

    def _add_sent(self, key: Hashable, number: int) -> None:
        of_keys = self._failures_sent.get(number)
        if of_keys is None:
            of_keys = self._failures_sent[number] = {}
            if len(self._failures_sent) > MAX_EVIDENCE_SECONDS:
                del self._failures_sent[next(iter(self._failures_sent))]
        if key not in of_keys and len(of_keys) >= KEYS_EACH_SECOND:
            key = _OTHER_KEYS
        of_keys[key] = of_keys.get(key, 0) + 1

    def share_nearby(self, sent_at: float, without: Hashable = None) -> float:
        """Return the share of the attempts sent at about the same time that failed.

        Two standard errors less, since a few attempts are a rough measure. 0 if few failed.
        """
        first = int(sent_at) - NEARBY_SECONDS
        last = first + 2 * NEARBY_SECONDS
        failures = 0
        for number in range(first, last + 1):
            of_keys = self._failures_sent.get(number, {})
            failures += sum(of_keys.values()) - of_keys.get(without, 0)
        if failures < NEARBY_FAILURES:
            return 0.0
        successes = 0  # they end soon after they were sent
        begin = bisect_left(self._seconds, first, key=_number)
        for second in islice(self._seconds, begin, begin + last + 1 - first):
            if second.number <= last:
                own_attempts, own_failures = second.of_keys.get(without, (0, 0))
                successes += second.attempts - second.failures - own_attempts + own_failures
        attempts = failures + successes
        share = failures / attempts
        return max(share - 2.0 * math.sqrt(share * (1.0 - share) / attempts), 0.0)

    def count(self, seconds: float, now: float, without: Hashable = None) -> tuple[int, int]:
        """Return attempts and failures of the last ``seconds``, excluding one key."""
        attempts = failures = 0
        for second in reversed(self._seconds):
            if second.number + 1 <= now - seconds:
                break
            own_attempts, own_failures = second.of_keys.get(without, (0, 0))
            attempts += second.attempts - own_attempts
            failures += second.failures - own_failures
        return attempts, failures

    def share_failed(
        self, now: float, without: Hashable = None, seconds: float = EVIDENCE_SECONDS
    ) -> float | None:
        """Return the share that failed in the last ``seconds``, or recently if that is worse.

        Above EXACT_SHARE one standard error is added, since a few attempts are a rough measure.

        ``None`` if there was no attempt.
        """
        attempts, failures = self.count(seconds, now, without)
        if not attempts:
            return None
        share = _share(attempts, failures)
        attempts, failures = self.count(RECENT_SECONDS, now, without)
        if attempts >= RECENT_ATTEMPTS:
            share = max(share, _share(attempts, failures))
        return share


def _share(attempts: int, failures: int) -> float:
    share = failures / attempts
    if share > EXACT_SHARE:
        share += math.sqrt(share * (1.0 - share) / attempts)
    return min(share, 1.0)


# Keys that are counted together.
_OTHER_KEYS = object()
_number = attrgetter("number")


class _Second:
    __slots__ = ("attempts", "failures", "number", "of_keys")

    def __init__(self, number: int) -> None:
        self.number = number
        self.attempts = self.failures = 0
        self.of_keys: dict[Hashable, list[int]] = {}
