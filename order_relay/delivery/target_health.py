"""Whose fault is it? What the answers say about the target, and about a record.

Pure rules, with the clock injected: the caller tells what every attempt came to, and asks before
it gives a record up, and before it sends while the breaker is not closed.

* A record is given up only if its failures cannot be what the target does to everybody now: see
  ``TargetHealth.gives_up``. Evidence are the first attempts of other keys; retries of hopeless
  records must not speak against the target.
* During an outage nothing is sent but probes, and no attempt is counted: see ``Breaker``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from order_relay.delivery.answer import Answer
from order_relay.delivery.retry import RetryPolicy, Verdict

# First attempts say what the target does to everybody for so long; for a record that has failed
# for longer, so long.
EVIDENCE_SECONDS = 60
MAX_EVIDENCE_SECONDS = 600
# What it does lately counts where it is worse, and there are enough of them.
RECENT_SECONDS = 10
RECENT_ATTEMPTS = 5
# Up to this share four attempts are evidence enough, and it is taken as it is.
EXACT_SHARE = 0.1
# A record is given up once its failures are less likely than this for a good one.
GOOD_RECORD_GIVEN_UP = 1e-4
# Not more first attempts of others fail where a 404 is the fault of the record that got it.
FEW_FAIL = 0.2
# Keys counted by themselves in each second; a second with more has evidence enough.
KEYS_EACH_SECOND = 32

# Failures of any kind open the breaker, too, where nothing succeeded for so long.
WITHOUT_SUCCESS_SECONDS = 10.0
# After the breaker has opened; and from any probe to that of a record that was never sent.
SHORT_WAIT_SECONDS = 1.0
# After so many probes with records that were never sent, bad records alone do not explain the
# failures: the next ones wait as long as all others.
SHORT_WAITS = 5


class FirstAttempts:
    """First attempts of the last minutes: how many there were, and how many failed.

    Counted by the second, and within it by key, so that a key can be left out. Memory is bounded:
    of a second with more than KEYS_EACH_SECOND keys, the rest is counted together.
    """

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque(maxlen=MAX_EVIDENCE_SECONDS + 1)
        self._latest = _Second(-1)

    def add(self, key: Hashable, failed: bool, now: float) -> None:
        """Count one that ended now; ``now`` never goes back."""
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

    def count(self, seconds: float, now: float, without: Hashable = None) -> tuple[int, int]:
        """Return attempts and failures of the last ``seconds``, without those of a key."""
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
        """Return the share that failed, of the last ``seconds`` or lately if that is worse.

        Few attempts are a rough measure: where many fail, one standard error is added.

        ``None`` if there was no attempt at all.
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


class _Second:
    __slots__ = ("attempts", "failures", "number", "of_keys")

    def __init__(self, number: int) -> None:
        self.number = number
        self.attempts = self.failures = 0
        self.of_keys: dict[Hashable, list[int]] = {}


class BreakerState(IntEnum):
    """The breaker's state; the number is what the ``breaker_state`` metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Opens in an outage, and says when a probe may be sent.

    closed ──first attempts or all attempts fail──▶ open ──a probe is due──▶ half-open (one is out)
      ▲                                              ▲                        │      │
      └────────────────── success ───────────────────┼──────── success ───────┘      │
                                                     └───────────── failure ─────────┘
    """

    def __init__(
        self,
        threshold: int,
        probe_interval_seconds: float,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState], None] = lambda state: None,
    ) -> None:
        """Make a closed breaker.

        Args:
            threshold: First attempts in a row that open it when they fail; or as many attempts of
                any kind, where nothing succeeded for WITHOUT_SUCCESS_SECONDS. 0 never opens it.
            probe_interval_seconds: From one probe to the next, however long the outage lasts.
            clock: Monotonic seconds.
            on_change: Called after whatever changes who may send.
        """
        self._threshold = threshold
        self._interval_seconds = probe_interval_seconds
        self._short_wait_seconds = min(SHORT_WAIT_SECONDS, probe_interval_seconds)
        self._clock = clock
        self._on_change = on_change
        self._first_failures = 0
        self._failures = 0
        self._succeeded_at = clock()
        self._probe_at = 0.0
        self._never_sent_probe_at = 0.0
        self._never_sent_probes = 0
        self._last_ticket = 0
        self._out: set[int] = set()
        """Tickets of the probes of this outage that are out."""
        self.state = BreakerState.CLOSED
        self.closed = True
        """Whether deliveries flow freely."""
        self.opened_because = ""
        """What opened it last, in words."""
        self.failed_probes = 0
        """Probes that failed since the breaker opened."""

    def probe_wait(self, *, never_sent: bool) -> float:
        """Return after how many seconds a probe may be sent; 0 now, or while closed.

        Args:
            never_sent: Whether it is made with a record that was never sent. Such a one says more
                than those that failed before: it may go after a second, unless several of them
                have gone.
        """
        if self.closed:
            return 0.0
        due = self._never_sent_probe_at if never_sent else self._probe_at
        return max(due - self._clock(), 0.0)

    def begin_probe(self, *, never_sent: bool) -> int:
        """A probe is sent, whether or not an earlier one is still out; returns its ticket.

        The caller must report ``succeeded``, ``failed`` or ``withdrawn``.
        """
        now = self._clock()
        self._probe_at = now + self._interval_seconds
        self._never_sent_probes += never_sent
        short = self._never_sent_probes <= SHORT_WAITS
        self._never_sent_probe_at = now + self._short_wait_seconds if short else self._probe_at
        self._last_ticket += 1
        self._out.add(self._last_ticket)
        self._move(BreakerState.HALF_OPEN)
        return self._last_ticket

    def probe_now(self) -> bool:
        """Let the next probe go at once; returns ``False`` while closed: nothing is to probe."""
        if self.closed:
            return False
        self._probe_at = self._never_sent_probe_at = self._clock()
        self._on_change(self.state)
        return True

    @property
    def probe_in_seconds(self) -> float | None:
        """After how long the next probe may go out; ``None`` while closed or one is out."""
        if self.state is not BreakerState.OPEN:
            return None
        return self.probe_wait(never_sent=False)

    def succeeded(self, now: float | None = None) -> None:
        """The target works: an attempt was answered 2xx, or with a judgement of its message."""
        self._succeeded_at = self._clock() if now is None else now
        self._first_failures = self._failures = 0
        if not self.closed:
            self.failed_probes = self._never_sent_probes = 0
            self._out.clear()
            self._move(BreakerState.CLOSED)

    def failed(self, ticket: int, *, first: bool) -> None:
        """An attempt failed in a way that speaks of an outage.

        Args:
            ticket: The probe's, or 0 for an attempt that began while the breaker was closed. Such
                a one, and a probe of an earlier outage, say nothing new once it is open.
            first: Whether it was the first attempt at its record.
        """
        if ticket in self._out:
            self.failed_probes += 1
            self._back(ticket)
        elif self.state is BreakerState.CLOSED:
            self._failures += 1
            self._first_failures += first
            self._open_if_due()

    def ended(self, ticket: int) -> None:
        """An attempt says nothing of an outage; if it was a probe, the next one goes in time."""
        if ticket in self._out:
            self._back(ticket)

    def withdrawn(self, ticket: int) -> None:
        """An attempt that was allowed did not come to an end; a probe is free again."""
        if ticket in self._out:
            self._probe_at = self._never_sent_probe_at = self._clock()
            self._back(ticket)

    def _open_if_due(self) -> None:
        since = self._clock() - self._succeeded_at
        if not 0 < self._threshold <= self._failures:
            return
        if self._first_failures >= self._threshold:
            self.opened_because = f"{self._first_failures} first attempts in a row failed"
        elif since >= WITHOUT_SUCCESS_SECONDS:
            self.opened_because = (
                f"{self._failures} attempts failed, none succeeded in {since:.0f} s"
            )
        else:
            return
        self._first_failures = self._failures = 0
        self._probe_at = self._clock() + self._short_wait_seconds
        self._never_sent_probe_at = self._probe_at
        self._move(BreakerState.OPEN)

    def _back(self, ticket: int) -> None:
        self._out.remove(ticket)
        self._move(BreakerState.HALF_OPEN if self._out else BreakerState.OPEN)

    def _move(self, state: BreakerState) -> None:
        self.state = state
        self.closed = state is BreakerState.CLOSED
        self._on_change(state)


class TargetState(StrEnum):
    """What the target does, in a word."""

    WORKS = "works"
    THROTTLES = "throttles"
    FAILS_FOR_SOME = "fails for some records"
    DOWN = "is down"
    REFUSES_US = "refuses us"


@dataclass(frozen=True, slots=True)
class Target:
    """What the target does now.

    Attributes:
        state: In a word.
        seconds: For how long it has been seen to do so.
        rate: Attempts a second that it bears; ``None`` unless it throttles.
        share_failed: Of the first attempts of the last minute.
        concurrency: Attempts at a time that it is sent at most.
        last_status: HTTP status of the last answer that was no success; ``None`` without one.
        last_text: What that answer said.
        last_seconds: How long ago it was; ``None`` if there was none.
        next_probe_seconds: When the next probe goes; ``None`` while none is to go, or one is out.
        opened_because: What opened the breaker; empty while it is closed.
    """

    state: TargetState
    seconds: float
    rate: float | None
    share_failed: float
    concurrency: int
    last_status: int | None
    last_text: str
    last_seconds: float | None
    next_probe_seconds: float | None
    opened_because: str

    def __str__(self) -> str:
        """Say it in a line."""
        said = f"{self.state.value} for {self.seconds:.0f} s"
        if self.rate is not None:
            said += f", takes {self.rate:.3g} a second"
        if self.share_failed:
            said += f", {self.share_failed:.0%} of first attempts fail"
        if self.state is not TargetState.WORKS and self.last_seconds is not None:
            status = f"{self.last_status} " if self.last_status is not None else ""
            said += f"; last said {status}{self.last_text[:200]!r} {self.last_seconds:.0f} s ago"
        if self.next_probe_seconds is not None:
            said += f"; next probe in {self.next_probe_seconds:.1f} s"
        return said


@dataclass(frozen=True, slots=True)
class LastFailure:
    """The last answer that was no success.

    Attributes:
        status: HTTP status; ``None`` when no answer came.
        text: What it said.
        at: When, by the clock.
    """

    status: int | None
    text: str
    at: float


class TargetHealth:
    """What all attempts together say.

    Attributes:
        breaker: Whether records may be sent at all.
        last_failure: The last answer that was no success; ``None`` before the first.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Callable[[], float],
        *,
        breaker_threshold: int,
        breaker_probe_interval_seconds: float,
        on_breaker_change: Callable[[BreakerState], None] = lambda state: None,
    ) -> None:
        """Begin with nothing known.

        Args:
            policy: Retries that a record has in any case.
            clock: Monotonic seconds.
            breaker_threshold: See ``Breaker``; 0 also gives records up without evidence.
            breaker_probe_interval_seconds: See ``Breaker``.
            on_breaker_change: See ``Breaker``.
        """
        self._policy = policy
        self._clock = clock
        self._needs_evidence = breaker_threshold > 0
        self._first_attempts = FirstAttempts()
        self._successes = _LatestOfKeys()
        self._failures = _LatestOfKeys()
        self._refused_us = False
        self._state = TargetState.WORKS
        self._state_since = clock()
        self.breaker = Breaker(
            breaker_threshold, breaker_probe_interval_seconds, clock, on_breaker_change
        )
        self.last_failure: LastFailure | None = None

    # --- what attempts came to -------------------------------------------------------------------

    def succeeded(self, key: Hashable, *, first: bool, now: float | None = None) -> None:
        """An attempt was answered 2xx; now, or at this moment of the clock."""
        now = self._clock() if now is None else now
        self._successes.add(key, now)
        if first:
            self._first_attempts.add(key, False, now)
        self.breaker.succeeded(now)

    def judged(self, key: Hashable, answer: Answer, *, first: bool) -> None:
        """The target refused a message for its own fault: it works."""
        self._note(answer)
        if first:
            self._first_attempts.add(key, failed=False, now=self._clock())
        self.breaker.succeeded()

    def gone(self, key: Hashable, answer: Answer) -> None:
        """There is nothing at the address; whether it ``failed`` or is ``judged`` is told later."""
        self._note(answer)
        self._failures.add(key, self._clock())

    def failed(self, key: Hashable, answer: Answer, ticket: int, *, first: bool) -> None:
        """An attempt failed, be it for the target's fault or for the record's."""
        self._note(answer)
        self._refused_us = answer.verdict is Verdict.OUTAGE
        now = self._clock()
        self._failures.add(key, now)
        if answer.batch_index:
            return
        if first:
            self._first_attempts.add(key, failed=True, now=now)
        self.breaker.failed(ticket, first=first)

    def throttled(self, answer: Answer, ticket: int) -> None:
        """The target is there, and has had enough: this speaks against nobody."""
        self._note(answer)
        if ticket:
            self.breaker.succeeded()

    def said_nothing(self, answer: Answer, ticket: int) -> None:
        """An attempt failed for want of something of our own."""
        self._note(answer)
        self.breaker.ended(ticket)

    # --- whose fault is it? ----------------------------------------------------------------------

    def gives_up(self, key: Hashable, failures: int, failing_since: float) -> bool:
        """Whether a record whose attempts all failed is given up.

        Let p be the share of failures among the first attempts of other keys, of the last minute
        (or since this record began to fail, if that is longer) or of the last ten seconds where
        that is worse; over 0.1 with one standard error more. The target itself explains the
        record's failures as long as p to the power of their number is above 1 in 10,000: p = 0.1
        explains up to three, p = 0.5 up to 13, and p = 1 any number. Where no other key says
        anything, the retries decide alone.

        Args:
            key: Of the record.
            failures: Its attempts that failed, one after another.
            failing_since: When the first of them was made, by the clock.
        """
        if not self._policy.exhausted(failures):
            return False
        if not self._needs_evidence:
            return True
        now = self._clock()
        seconds = max(EVIDENCE_SECONDS, now - failing_since)
        share = self._first_attempts.share_failed(now, key, seconds)
        return share is None or share**failures <= GOOD_RECORD_GIVEN_UP * (1.0 + 1e-9)

    def is_there_for_others(self, key: Hashable) -> bool:
        """Whether a target that has nothing at its address (404, 405, 410) means this key alone.

        It does if another key succeeded in the last minute, none has failed after that, and few of
        the others fail.
        """
        now = self._clock()
        succeeded_at = self._successes.of_others(key)
        if not self.breaker.closed or now - succeeded_at > EVIDENCE_SECONDS:
            return False
        share = self._first_attempts.share_failed(now, key) or 0.0
        return succeeded_at > self._failures.of_others(key) and share <= FEW_FAIL

    @property
    def share_failed(self) -> float:
        """The share of first attempts of the last minute that failed."""
        attempts, failures = self._first_attempts.count(EVIDENCE_SECONDS, self._clock())
        return failures / attempts if attempts else 0.0

    # --- what is said of it ----------------------------------------------------------------------

    def state(self, *, throttles: bool) -> tuple[TargetState, float]:
        """Return what the target does, and for how many seconds it has been seen to do so."""
        now = self._clock()
        if not self.breaker.closed:
            state = TargetState.REFUSES_US if self._refused_us else TargetState.DOWN
        elif throttles:
            state = TargetState.THROTTLES
        elif self.share_failed:
            state = TargetState.FAILS_FOR_SOME
        else:
            state = TargetState.WORKS
        if state is not self._state:
            self._state, self._state_since = state, now
        return state, now - self._state_since

    def _note(self, answer: Answer) -> None:
        self.last_failure = LastFailure(answer.status, answer.detail, self._clock())


class _LatestOfKeys:
    """When something last happened to any key but one."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._at = self._at_others = float("-inf")

    def add(self, key: Hashable, now: float) -> None:
        if key != self._key:
            self._at_others = self._at
            self._key = key
        self._at = now

    def of_others(self, key: Hashable) -> float:
        return self._at_others if key == self._key else self._at
