"""Limits how fast records are sent to a target that cannot take everything.

Pure rules with an injected clock. There are two limits, since targets have two kinds:

* ``Pace`` limits the rate, for a target that refuses with 429, or with 503 and Retry-After. What it
  accepts between two refusals is what it can take. The rate stays just below that, and grows only
  after some time (as in CUBIC, RFC 9438, which the adaptive retries of the AWS SDKs use, too).
  During Retry-After nothing is sent.
* ``Concurrency`` limits concurrent attempts, for a target that answers too late: additive increase,
  multiplicative decrease. It grows with every answer, so a few time-outs among many quick answers
  hardly matter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

# Pause after a refusal without Retry-After: first a short one, to see whether it was one of many;
# then this long; then twice as long each time, as long as nothing is accepted in between.
SHORT_HOLD_SECONDS = 0.1
HOLD_SECONDS = 1.0
MAX_HOLD_SECONDS = 10.0
# Refusals show a limit if, of the attempts under way (this many or more), this share is refused,
# too. With fewer under way, they show a limit after this many refusals in a row, each after at most
# this many accepted records. Late answers of those under way are awaited for this long.
UNDER_WAY = 5
LATE_SECONDS = 5.0
LIMIT_SHARE = 0.3
REFUSALS_IN_A_ROW = 5
MAX_ACCEPTED_BETWEEN = 20
# Refusals do not come from the rate if this many cuts in a row do not help for SOON_SECONDS each.
MAX_USELESS_CUTS = 8
# Nor do they if, after this many refusals of a lower and lower rate, the share of refusals is still
# this part of what it was: one of three instances refuses, say. Then the rate is not limited for
# USELESS_SECONDS, unless more is refused now: of this many attempts a share halfway to all. If more
# than MAX_REFUSED is refused at any rate, the target is spared nevertheless.
JUDGED_REFUSALS = 6
STILL_REFUSED = 0.33
MAX_REFUSED = 0.75
JUDGED_ATTEMPTS = 50
USELESS_SECONDS = 300.0
# Nor do they if this share of them, and this many, came from keys that have a limit of their own.
EXCUSED_SHARE = 0.5
MIN_EXCUSED = 4
# A cut never goes below what the target accepted on average in this time.
AVERAGE_SECONDS = 16.0

# Shares of the rate that the target accepts: where the rate settles, and where it restarts after a
# refusal.
RATE_SHARE = 0.99
RESTART_SHARE = 0.95
# How long after a refusal the rate stays there; then it grows faster and faster.
STEADY_SECONDS = 20.0
GROWTH = 0.012  # the rate grows by exp(GROWTH * seconds**3): 10 % after 2 s, 60 times after 7 s
# The limit ends if nothing was refused for this long.
LIMIT_EXPIRY_SECONDS = 29.0
# Beyond this rate, more than a worker sends, the growing limit is not what the target accepts.
MAX_KNOWN_RATE = 10_000.0
# A guess may be far too low: it doubles in this time, then faster.
DOUBLING_SECONDS = 4.0
# A rate that is refused this soon was too high, and is cut by this factor. One that is refused
# almost at once was wrong, and is cut more.
SOON_SECONDS = 4.0
CUT_FACTOR = 0.85
AT_ONCE_SECONDS = 0.5
DEEP_CUT_FACTOR = 0.5
# The accepted rate is measured over this time, and over at least this many records.
MEASURED_SECONDS = 1.0
MEASURED_RECORDS = 20
MIN_RATE = 0.2
# Timers are precise to a millisecond: at a high rate several records are sent together.
BURST_SECONDS = 0.01

# Factor for the concurrency after a time-out.
TIMEOUT_FACTOR = 0.5
# Without another time-out for this long, the full concurrency is allowed again.
RECOVERED_SECONDS = 30.0
# Time-outs do not come from the concurrency if more than MAX_USELESS_CUTS in a row leave their
# share at this or more: one of two backends hangs, say. Then it is full for so long.
USELESS_SHARE = 0.05


class Pace:
    """Limits the attempts a second.

    Attributes:
        free: Whether there is no limit at all; then ``wait_seconds`` need not be called.
    """

    def __init__(self, clock: Callable[[], float], max_rate: float | None = None) -> None:
        """Start without a learned limit; ``max_rate`` is in attempts a second."""
        self._clock = clock
        self._max_rate = max_rate if max_rate is not None else math.inf
        self.free = max_rate is None
        # When the last refusal came, and until when nothing is sent after it.
        self._refused_at = float("-inf")
        self._held_until = 0.0
        self._asked_hold = 0.0
        # Results of the attempts that were under way then; judged after the pause.
        self._under_way_refused = self._under_way_accepted = 0
        self._judging = False
        self._under_way = 0
        self._judged_by = 0.0
        self._refusals_in_a_row = self._accepted_in_a_row = 0
        # The learned limit: the rate just after the last refusal, and the rate that the target
        # accepts. Both are infinite without a limit.
        self._start = self._target = math.inf
        self._is_guess = False
        self._last_target = 0.0
        self._before_cut = 0.0
        self._useless_cuts = 0
        # The share of refusals when the limit was learned, and what was seen since then.
        self._share_at_first = 0.0
        self._seen_refused = self._seen_accepted = 0
        # Refusals since a limit was removed, and those of keys that turned out to have their own.
        self._cuts = self._excused = 0
        # Until then that share shows no limit.
        self._no_limit_until = float("-inf")
        self._refuses_single_keys = False
        # When sending began after each pause, and what was accepted until the next one.
        self._periods: deque[tuple[float, int]] = deque()
        self._accepted = 0
        self._accepted_at: deque[float] = deque()
        # Records accepted in this second and in the one before; counted only without a limit.
        self._second_began = clock()
        self._this_second = self._second_before = 0
        self._useless_refusals = 0
        self._tokens = 1.0
        self._tokens_at = 0.0

    @property
    def throttled(self) -> bool:
        """Whether refusals stop or limit sending now."""
        now = self._clock()
        self._advance(now)
        return now < self._held_until or self._start != math.inf

    @property
    def limited(self) -> bool:
        """Whether the rate that the target accepts is known."""
        return self._learned_rate(self._clock()) <= MAX_KNOWN_RATE

    @property
    def rate(self) -> float:
        """The current limit in attempts a second; infinite without a limit."""
        now = self._clock()
        self._advance(now)
        return min(self._learned_rate(now), self._max_rate)

    @property
    def probing(self) -> bool:
        """Whether nothing was accepted since the last refusal."""
        return not self._accepted and math.isfinite(self._refused_at)

    def wait_seconds(self) -> float:
        """Return the seconds until the next attempt may be made; 0 for now."""
        if self.free:
            return 0.0
        now = self._clock()
        self._advance(now)
        if now < self._held_until:
            return self._held_until - now
        rate = min(self._learned_rate(now), self._max_rate)
        if rate == math.inf:
            return 0.0
        burst = max(1.0, rate * BURST_SECONDS)
        self._tokens = min(self._tokens + max(now - self._tokens_at, 0.0) * rate, burst)
        self._tokens_at = max(now, self._tokens_at)
        return 0.0 if self._tokens >= 1.0 - 1e-6 else (1.0 - self._tokens) / rate

    def sent(self) -> None:
        """Count an attempt that ``wait_seconds`` allowed."""
        self._tokens -= 1.0

    def accepted(self, sent_at: float) -> None:
        """Report an accepted attempt, and when it was sent."""
        now = self._clock()
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
    ) -> bool:
        """Report a throttled attempt; returns whether it may lower the rate.

        Args:
            sent_at: When it was sent. An attempt that was under way at the last refusal only helps
                to judge that one.
            retry_after_seconds: The wait that the target asked for; 0 without one.
            under_way: How many other attempts are under way, if it is known.
        """
        now = self._clock()
        if sent_at <= self._refused_at or now < self._held_until:
            self._under_way_refused += 1
            self._held_until = max(self._held_until, now + retry_after_seconds)
            self._tokens_at = self._held_until
            return False
        self._advance(now)
        self._cuts += 1
        soon = self._accepted <= MAX_ACCEPTED_BETWEEN
        self._refusals_in_a_row = self._refusals_in_a_row + 1 if soon else 1
        self._accepted_in_a_row = self._accepted_in_a_row + self._accepted if soon else 0
        self._asked_hold = retry_after_seconds
        self._under_way_refused = self._under_way_accepted = 0
        if self._start == math.inf:
            self._judging = True
            self._refused_at = now
            self._under_way = under_way or 0
            self._judged_by = now + (retry_after_seconds or SHORT_HOLD_SECONDS) + LATE_SECONDS
            self._hold(now, retry_after_seconds or SHORT_HOLD_SECONDS)
        else:
            self._learn(now)
        return True

    def excuse(self, refusals: int, *, first: bool) -> None:
        """Report a refusal of a key that has a limit of its own.

        Args:
            refusals: How many earlier ones of this key may have lowered the rate.
            first: Whether there was no earlier one.
        """
        now = self._clock()
        self._refusals_in_a_row = max(self._refusals_in_a_row - refusals, 0)
        self._excused += refusals
        if self._excused >= max(EXCUSED_SHARE * self._cuts, MIN_EXCUSED):
            share = self._cuts / max(self._cuts + self._seen_accepted + self._accepted, 1)
            self._remove_limit()
            self._share_at_first = share
            self._refuses_single_keys = True
            self._no_limit_until = now + USELESS_SECONDS
        elif first:
            self._no_limit_until = now + USELESS_SECONDS
            self._seen_refused += 1
            self._seen_accepted += self._accepted
            self._accepted = 0
            seen = self._seen_refused + self._seen_accepted
            if seen >= JUDGED_ATTEMPTS:
                if self._seen_refused >= LIMIT_SHARE * seen:
                    self._no_limit_until = float("-inf")
                self._seen_refused = self._seen_accepted = 0

    @property
    def refuses_single_keys(self) -> bool:
        """Whether refusals came from keys with limits of their own, and few came lately."""
        return self._refuses_single_keys and self._clock() < self._no_limit_until

    def ended(self, sent_at: float) -> None:
        """Report an attempt that ended otherwise, for example with 500: nothing is due of it."""
        if sent_at <= self._refused_at:
            self._under_way -= 1

    def _judge(self) -> None:
        """Decide whether refusals show a limit, or were single cases.

        They show a limit if LIMIT_SHARE of the attempts under way was refused, too. With few
        attempts under way, they do if they come again and again.
        """
        self._judging = False
        under_way = self._under_way_refused + self._under_way_accepted
        if under_way >= UNDER_WAY:
            is_limit = self._under_way_refused >= LIMIT_SHARE * under_way
            share = (self._under_way_refused + 1) / (under_way + 1)
        else:
            is_limit = self._refusals_in_a_row >= REFUSALS_IN_A_ROW
            share = self._refusals_in_a_row / (self._refusals_in_a_row + self._accepted_in_a_row)
        if self._clock() < self._no_limit_until:
            self._seen_refused += 1 + self._under_way_refused
            self._seen_accepted += self._accepted
            seen = self._seen_refused + self._seen_accepted
            is_limit = False
            if seen >= JUDGED_ATTEMPTS:
                is_limit = self._seen_refused > (1.0 + self._share_at_first) / 2.0 * seen
                self._seen_refused = self._seen_accepted = 0
        if is_limit:
            self._share_at_first = share
            self._no_limit_until = float("-inf")
            self._learn(self._refused_at)
        else:
            self._accepted = 0
            self.free = self._max_rate == math.inf

    def _learn(self, now: float) -> None:
        """Set the limit by what was accepted before a refusal, and pause."""
        self._useless_refusals = 0 if self._accepted else self._useless_refusals + 1
        hold = self._asked_hold or min(
            HOLD_SECONDS * 2.0 ** min(self._useless_refusals, 10), MAX_HOLD_SECONDS
        )
        rate = self._learned_rate(now)
        pause = min(hold, MEASURED_SECONDS)  # a target that counts by the second starts anew in it
        if rate == math.inf:
            # What came while the refusal was judged may have begun the second.
            seconds = max(now - self._second_began, 0.0)
            seconds += MEASURED_SECONDS * bool(self._second_before)
            accepted = self._this_second + self._second_before
            self._target = accepted / (seconds + pause) if accepted else self._last_target
            self._periods.append((now - seconds, accepted))
            self._start, self._is_guess = self._target, True
        elif self._accepted > self._under_way_accepted:  # else it refuses everything at any rate
            seconds = now - self._held_until
            average = max(self._accepted / (seconds + pause), self._long_average(now))
            self._useless_cuts = self._useless_cuts + 1 if seconds < SOON_SECONDS else 0
            self._before_cut = rate
            if seconds < AT_ONCE_SECONDS:
                self._target = self._start = max(average, DEEP_CUT_FACTOR * rate)
                self._is_guess = True
            elif seconds < SOON_SECONDS or not self._is_measured(now):
                guess = RESTART_SHARE * self._start if self._is_guess else 0.0
                self._target = self._start = min(rate, max(average, CUT_FACTOR * rate, guess))
                self._is_guess = False
            else:
                times = self._accepted_at
                measured = (len(times) - 1) / (now - times[0])
                self._target = max(min(rate, measured), average)
                self._start = RESTART_SHARE * self._target
                self._is_guess = False
        elif not self._accepted:  # nor did the last cut help
            self._target = self._start = max(self._start, self._before_cut)
        self._target = max(self._target, MIN_RATE)
        self._start = max(self._start, MIN_RATE)
        if rate < math.inf:
            self._seen_refused += 1
            self._seen_accepted += self._accepted
        self._refused_at = now
        self._hold(now, hold)
        if self._useless_cuts >= MAX_USELESS_CUTS:
            self._remove_limit()  # a real limit shows at the next burst
        elif self._seen_refused >= JUDGED_REFUSALS and self._seen_accepted:
            share = self._seen_refused / (self._seen_refused + self._seen_accepted)
            self._seen_refused = self._seen_accepted = 0
            if STILL_REFUSED * self._share_at_first <= share <= MAX_REFUSED:
                self._remove_limit()
                self._share_at_first = share
                self._refuses_single_keys = False
                self._no_limit_until = now + USELESS_SECONDS

    def _long_average(self, now: float) -> float:
        """Return how many attempts a second were accepted in the last AVERAGE_SECONDS."""
        periods = self._periods
        periods.append((self._held_until, self._accepted))
        while len(periods) > 1 and periods[1][0] <= now - AVERAGE_SECONDS:
            periods.popleft()
        return sum(accepted for _, accepted in periods) / (now - periods[0][0] + HOLD_SECONDS)

    def _hold(self, now: float, seconds: float) -> None:
        self._accepted_at.clear()
        self._held_until = max(self._held_until, now + seconds)
        if not self._judging:
            self._accepted = 0
        self._tokens, self._tokens_at = 1.0, self._held_until
        self.free = False

    def _remove_limit(self) -> None:
        self._last_target = self._target
        self._start = self._target = math.inf
        self._is_guess = False
        self._useless_cuts = 0
        self._before_cut = 0.0
        self._seen_refused = self._seen_accepted = 0
        self._cuts = self._excused = 0
        self._periods.clear()
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
        target = RATE_SHARE * self._target
        if seconds < STEADY_SECONDS:
            start = min(self._start, target)
            left = 1.0 - seconds / STEADY_SECONDS
            return target - (target - start) * left * left * left
        late = seconds - STEADY_SECONDS
        return target * math.exp(GROWTH * late * late * late)

    def _advance(self, now: float) -> None:
        """Judge refusals, or remove the limit, if it is time."""
        if self._judging and now >= self._held_until:
            answered = self._under_way_refused + self._under_way_accepted
            if answered < min(UNDER_WAY, self._under_way) and now < self._judged_by:
                self._held_until = now + SHORT_HOLD_SECONDS  # answers are late
            else:
                self._judge()
        if self._start != math.inf and now - self._held_until > LIMIT_EXPIRY_SECONDS:
            self._remove_limit()
        if self._start == math.inf and not self._judging and now >= self._held_until:
            self.free = self._max_rate == math.inf


class Limited(Protocol):
    """What has a limit."""

    limit: int


class Concurrency:
    """Lowers the limit of concurrent attempts after time-outs, and raises it again."""

    def __init__(self, clock: Callable[[], float], lanes: Limited) -> None:
        """Start with the limit that ``lanes`` has: it is the maximum."""
        self._clock = clock
        self._lanes = lanes
        self._maximum = lanes.limit
        self._limit = float(lanes.limit)
        self._lowered_at = self._full_until = float("-inf")
        # Since the last reduction.
        self._answers = self._timeouts = 0
        self._useless_cuts = 0

    def answered(self) -> None:
        """Report an answer in time."""
        if self._lanes.limit == self._maximum:
            return
        self._answers += 1
        self._limit += 1.0 / self._limit
        if self._clock() - self._lowered_at >= RECOVERED_SECONDS:
            self._limit = float(self._maximum)
        if (limit := min(int(self._limit), self._maximum)) != self._lanes.limit:
            self._lanes.limit = limit

    def timed_out(self, sent_at: float, *, outage: bool = False) -> None:
        """Report a time-out; attempts sent before the last reduction do not count.

        An ``outage`` shows nothing about the concurrency, but after it sending begins slowly.
        """
        now = self._clock()
        self._timeouts += 1
        if sent_at < self._lowered_at or now < self._full_until:
            return
        if not outage:
            share = self._timeouts / (self._timeouts + self._answers)
            self._useless_cuts = self._useless_cuts + 1 if share >= USELESS_SHARE else 0
        self._lowered_at = now
        self._answers = self._timeouts = 0
        self._limit = max(self._limit * TIMEOUT_FACTOR, 1.0)
        if self._useless_cuts > MAX_USELESS_CUTS:
            self._useless_cuts = 0
            self._full_until = now + USELESS_SECONDS
            self._limit = float(self._maximum)
        self._lanes.limit = int(self._limit)
