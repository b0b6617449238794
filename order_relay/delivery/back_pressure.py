"""How fast a target is sent to that cannot take everything: pure rules, the clock injected.

Two limits, since targets have two kinds:

* ``Pace``, records a second, for a target that refuses with 429, or 503 and Retry-After. Its
  refusals say exactly what it bears: what it accepted meanwhile. The rate goes there, stays just
  below, and tries for more only when some time has passed (as CUBIC does, RFC 9438, which the
  adaptive retries of the AWS SDKs use for the same). Retry-After holds back everything.
* ``Concurrency``, attempts at a time, for a target that answers too late: additive increase,
  multiplicative decrease. It grows with every answer, so that a few time-outs among many quick
  answers change next to nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

# A refusal that names no time holds back for so long, until it is seen whether it was one of many;
# then for so long; and twice as long each time that nothing at all is accepted between.
SHORT_HOLD_SECONDS = 0.1
HOLD_SECONDS = 1.0
MAX_HOLD_SECONDS = 10.0
# It is a limit where of those under way, so many at least, this share is refused, too; or, where
# fewer are under way, where so many refusals come, each after so few that were accepted.
# Answers of those under way that are late are waited for, so long.
UNDER_WAY = 5
LATE_SECONDS = 5.0
MOST = 0.3
HOLDS_IN_A_ROW = 5
IN_A_ROW_ACCEPTED = 20
# It is none where so many cuts of the rate, one after another, do not help for SOON_SECONDS.
CUTS_IN_VAIN = 8

# What the target bears, the rate that it is held just below, and where it begins after a refusal.
BELOW = 0.99
AFTER_REFUSAL = 0.95
# For so long after a refusal the rate stays there, then it grows, faster and faster.
STEADY_SECONDS = 20.0
GROWTH = 0.012  # the rate grows by exp(GROWTH * seconds**3): 10 % after 2 s, 60 times after 7 s
# The limit ends when nothing was refused for so long.
FREE_SECONDS = 29.0
# A guess may be too low by far: it doubles in this time, and then faster.
DOUBLING_SECONDS = 4.0
# A rate that is refused so soon was too high; and almost at once, altogether mistaken.
SOON_SECONDS = 4.0
TOO_HIGH = 0.85
MISTAKEN_SECONDS = 0.5
MISTAKEN = 0.5
# What was accepted is measured over a second, and so many at least.
MEASURED_SECONDS = 1.0
MEASURED_RECORDS = 20
MIN_RATE = 0.2
# Timers are good to a millisecond: of a high rate several go at a time.
BURST_SECONDS = 0.01

# The share of attempts at a time that are left after one came too late.
AFTER_TIME_OUT = 0.5
# Without another time-out all are allowed again.
RECOVERED_SECONDS = 30.0


class Pace:
    """Attempts a second that a target is sent.

    Attributes:
        free: Whether nothing is limited: nobody needs to ask.
    """

    def __init__(self, clock: Callable[[], float], max_rate: float | None = None) -> None:
        """Begin without a limit but ``max_rate``, attempts a second."""
        self._clock = clock
        self._max_rate = max_rate if max_rate is not None else math.inf
        self.free = max_rate is None
        # The last refusal, and until when it holds everything back.
        self._refused_at = float("-inf")
        self._held_until = 0.0
        self._asked_hold = 0.0
        # What came of those that were under way then; judged once the hold is over.
        self._under_way_refused = self._under_way_accepted = 0
        self._is_to_judge = False
        self._awaited = 0
        self._judged_by = 0.0
        self._holds_in_a_row = 0
        # The limit that was learned: where it began after the last refusal, and what the target
        # bears; infinite without one.
        self._start = self._target = math.inf
        self._is_guess = False
        self._cuts_in_vain = 0
        self._accepted = 0
        self._accepted_at: deque[float] = deque()
        # Accepted in this second and in the one before; counted only without a limit.
        self._second_began = clock()
        self._this_second = self._second_before = 0
        self._refused_in_vain = 0
        self._tokens = 1.0
        self._tokens_at = 0.0

    @property
    def throttled(self) -> bool:
        """Whether the target's refusals hold everything back now, or limit the rate."""
        now = self._clock()
        self._look_at_the_time(now)
        return now < self._held_until or self._start != math.inf

    @property
    def limited(self) -> bool:
        """Whether a rate is known that the target bears."""
        return self._start != math.inf

    @property
    def rate(self) -> float:
        """Attempts a second now; infinite without a limit."""
        now = self._clock()
        self._look_at_the_time(now)
        return min(self._learned_rate(now), self._max_rate)

    def wait_seconds(self) -> float:
        """Return after how many seconds the next attempt may be made; 0 now."""
        if self.free:
            return 0.0
        now = self._clock()
        self._look_at_the_time(now)
        if now < self._held_until:
            return self._held_until - now
        rate = min(self._learned_rate(now), self._max_rate)
        if rate == math.inf:
            return 0.0
        burst = max(1.0, rate * BURST_SECONDS)
        self._tokens = min(self._tokens + max(now - self._tokens_at, 0.0) * rate, burst)
        self._tokens_at = max(now, self._tokens_at)
        return 0.0 if self._tokens >= 1.0 - 1e-9 else (1.0 - self._tokens) / rate

    def sent(self) -> None:
        """An attempt is made, as ``wait_seconds`` allowed."""
        self._tokens -= 1.0

    def accepted(self, sent_at: float, now: float | None = None) -> None:
        """The target took what was sent then; now, or at this moment of the clock."""
        now = self._clock() if now is None else now
        if sent_at <= self._refused_at:
            self._under_way_accepted += 1
        self._accepted += 1
        if self._start == math.inf:
            if now - self._second_began >= MEASURED_SECONDS:
                gap = now - self._second_began >= 2 * MEASURED_SECONDS
                self._second_before = 0 if gap else self._this_second
                self._second_began, self._this_second = now, 0
            self._this_second += 1
            return
        times = self._accepted_at
        times.append(now)
        while len(times) > MEASURED_RECORDS and times[1] < now - MEASURED_SECONDS:
            times.popleft()

    def refused(
        self, sent_at: float, retry_after_seconds: float, under_way: int | None = None
    ) -> None:
        """The target has had enough.

        Args:
            sent_at: When the refused record was sent. Those that were under way when another one
                was refused say how hard the limit is, and no more.
            retry_after_seconds: What it asked for; 0 if it did not.
            under_way: How many others are under way, if that is known.
        """
        now = self._clock()
        if sent_at <= self._refused_at or now < self._held_until:
            self._under_way_refused += 1
            self._held_until = max(self._held_until, now + retry_after_seconds)
            self._tokens_at = self._held_until
            return
        self._look_at_the_time(now)
        soon = self._accepted <= IN_A_ROW_ACCEPTED
        self._holds_in_a_row = self._holds_in_a_row + 1 if soon else 1
        self._asked_hold = retry_after_seconds
        self._under_way_refused = self._under_way_accepted = 0
        if self._start == math.inf:
            self._is_to_judge = True
            self._refused_at = now
            self._awaited = min(UNDER_WAY, under_way or 0)
            self._judged_by = now + (retry_after_seconds or SHORT_HOLD_SECONDS) + LATE_SECONDS
            self._hold(now, retry_after_seconds or SHORT_HOLD_SECONDS)
        else:
            self._learn(now)

    def _judge(self) -> None:
        """Is it a limit, or was somebody unlucky? If most that was under way was refused it is.

        With little under way it is if it happens again and again.
        """
        self._is_to_judge = False
        under_way = self._under_way_refused + self._under_way_accepted
        if under_way >= UNDER_WAY:
            is_limit = self._under_way_refused >= MOST * under_way
        else:
            is_limit = self._holds_in_a_row >= HOLDS_IN_A_ROW
        if is_limit:
            self._learn(self._refused_at)
        else:
            self._accepted = 0
            self.free = self._max_rate == math.inf

    def _learn(self, now: float) -> None:
        """Set the limit by what was accepted before a refusal, and hold everything back."""
        self._refused_in_vain = 0 if self._accepted else self._refused_in_vain + 1
        hold = self._asked_hold or min(
            HOLD_SECONDS * 2.0 ** min(self._refused_in_vain, 10), MAX_HOLD_SECONDS
        )
        rate = self._learned_rate(now)
        pause = min(hold, MEASURED_SECONDS)  # in which a target that counts by the second forgets
        if rate == math.inf:
            seconds = now - self._second_began + MEASURED_SECONDS * bool(self._second_before)
            self._target = (self._this_second + self._second_before) / (seconds + pause)
            self._start, self._is_guess = self._target, True
        else:
            seconds = now - self._held_until
            average = self._accepted / (seconds + pause)
            soon = not self._is_guess and seconds < SOON_SECONDS
            self._cuts_in_vain = self._cuts_in_vain + 1 if soon else 0
            if seconds < MISTAKEN_SECONDS:
                self._target = self._start = max(average, MISTAKEN * rate)
                self._is_guess = True
            elif seconds < SOON_SECONDS or not self._is_measured(now):
                guess = AFTER_REFUSAL * self._start if self._is_guess else 0.0
                self._target = self._start = min(rate, max(average, TOO_HIGH * rate, guess))
                self._is_guess = False
            else:
                times = self._accepted_at
                measured = (len(times) - 1) / (now - times[0])
                self._target = max(min(rate, measured), average)
                self._start = AFTER_REFUSAL * self._target
                self._is_guess = False
        self._target = max(self._target, MIN_RATE)
        self._start = max(self._start, MIN_RATE)
        self._refused_at = now
        self._hold(now, hold)
        if self._cuts_in_vain >= CUTS_IN_VAIN:
            self._forget()  # it refuses at any rate: if there is a limit, the next burst shows it

    def _hold(self, now: float, seconds: float) -> None:
        self._accepted_at.clear()
        self._held_until = max(self._held_until, now + seconds)
        if not self._is_to_judge:
            self._accepted = 0
        self._tokens, self._tokens_at = 1.0, self._held_until
        self.free = False

    def _forget(self) -> None:
        self._start = self._target = math.inf
        self._is_guess = False
        self._cuts_in_vain = 0
        self._second_began = self._clock()
        self._this_second = self._second_before = 0

    def _is_measured(self, now: float) -> bool:
        times = self._accepted_at
        return len(times) >= MEASURED_RECORDS and now - times[0] >= 0.9 * MEASURED_SECONDS

    def _learned_rate(self, now: float) -> float:
        if self._start == math.inf:
            return math.inf
        seconds = max(now - self._held_until, 0.0)
        if self._is_guess:
            return self._start * math.exp2(seconds / DOUBLING_SECONDS * (1.0 + seconds / 8.0))
        target = BELOW * self._target
        if seconds < STEADY_SECONDS:
            start = min(self._start, target)
            left = 1.0 - seconds / STEADY_SECONDS
            return target - (target - start) * left * left * left
        late = seconds - STEADY_SECONDS
        return target * math.exp(GROWTH * late * late * late)

    def _look_at_the_time(self, now: float) -> None:
        """Judge, or forget a limit, when it is time."""
        if self._is_to_judge and now >= self._held_until:
            answered = self._under_way_refused + self._under_way_accepted
            if answered < self._awaited and now < self._judged_by:
                self._held_until = now + SHORT_HOLD_SECONDS  # their answers are late
            else:
                self._judge()
        if self._start != math.inf and now - self._held_until > FREE_SECONDS:
            self._forget()
        if self._start == math.inf and not self._is_to_judge and now >= self._held_until:
            self.free = self._max_rate == math.inf


class Concurrency:
    """Attempts at a time.

    Attributes:
        limit: How many there may be now.
    """

    def __init__(self, clock: Callable[[], float], maximum: int) -> None:
        """Begin with all allowed."""
        self._clock = clock
        self._maximum = maximum
        self._limit = float(maximum)
        self._lowered_at = float("-inf")
        self.limit = maximum

    def answered(self) -> bool:
        """An attempt was answered in time; returns whether more are allowed now."""
        if self.limit == self._maximum:
            return False
        self._limit += 1.0 / self._limit
        if self._clock() - self._lowered_at >= RECOVERED_SECONDS:
            self._limit = float(self._maximum)
        before, self.limit = self.limit, min(int(self._limit), self._maximum)
        return self.limit > before

    def timed_out(self, sent_at: float) -> None:
        """An attempt was not answered in time; those sent before others were say nothing new."""
        if sent_at < self._lowered_at:
            return
        self._lowered_at = self._clock()
        self._limit = max(self._limit * AFTER_TIME_OUT, 1.0)
        self.limit = int(self._limit)
