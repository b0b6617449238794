"""How answers are judged, and how long the relay waits."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from order_relay.delivery.answer import RetryPolicy, Verdict, judge, parse_retry_after
from order_relay.settings.settings import MAX_INT

NOW = datetime(2025, 12, 19, 10, 30, tzinfo=UTC)


def test_every_status_has_its_class() -> None:
    """All statuses from 100 to 599 are judged as the design says."""
    expected = {
        **dict.fromkeys(range(100, 200), Verdict.RETRYABLE),  # not a final answer
        **dict.fromkeys(range(200, 300), Verdict.SUCCESS),
        **dict.fromkeys(range(300, 400), Verdict.OUTAGE),  # the URL is wrong, not the message
        **dict.fromkeys(range(400, 500), Verdict.REJECTED),
        **dict.fromkeys((401, 403, 407), Verdict.OUTAGE),
        **dict.fromkeys((408, 425), Verdict.RETRYABLE),
        429: Verdict.THROTTLED,
        **dict.fromkeys((404, 405, 410), Verdict.GONE),
        **dict.fromkeys(range(500, 600), Verdict.RETRYABLE),
    }

    assert {status: judge(status) for status in range(100, 600)} == expected


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_a_status_outside_http_says_nothing_about_the_message(status: int) -> None:
    """A status outside HTTP never counts against the message."""
    assert judge(status) is Verdict.RETRYABLE


def test_the_waits_of_the_design() -> None:
    """By default there are three retries after 1, 2 and 4 s, and no wait is over 10 s."""
    policy = RetryPolicy()

    assert [policy.wait_seconds(failures) for failures in range(1, 8)] == [1, 2, 4, 8, 10, 10, 10]
    assert [policy.exhausted(attempts) for attempts in range(6)] == [False] * 4 + [True] * 2
    assert RetryPolicy(max_retries=0).exhausted(1)


# As the settings have it: whole milliseconds.
@given(
    initial=st.integers(0, MAX_INT).map(lambda ms: ms / 1000),
    multiplier=st.floats(1, 1e3),
    maximum=st.integers(0, MAX_INT).map(lambda ms: ms / 1000),
    failures=st.integers(1, 5000),
    retry_after=st.floats(0, 60),
)
@example(initial=0.001, multiplier=2.0, maximum=1.0, failures=1025, retry_after=0.0)
@example(initial=0.001, multiplier=2.0, maximum=1e6, failures=2000, retry_after=0.0)
def test_the_formula_of_the_waits(
    initial: float, multiplier: float, maximum: float, failures: int, retry_after: float
) -> None:
    """Each wait is min(initial * multiplier^(n-1), maximum), lengthened by Retry-After."""
    policy = RetryPolicy(3, initial, multiplier, maximum)
    exponent = failures - 1
    # Exact arithmetic, but without numbers of a million digits: the exponent is limited.
    if multiplier > 1 and exponent > 2000:
        exponent = min(exponent, 2000)
        failures = exponent + 1
    exact = min(Fraction(initial) * Fraction(multiplier) ** exponent, Fraction(maximum))

    wait = policy.wait_seconds(failures, retry_after)

    assert wait == pytest.approx(max(float(exact), retry_after), rel=1e-9)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 7 ", 7),
        ("007", 7),
        ("60", 60),
        ("61", 60),
        ("9" * 5000, 60),
        ("0" * 5000 + "7", 7),
        ("Fri, 19 Dec 2025 10:30:20 GMT", 20),
        ("Fri, 19 Dec 2025 12:30:20 +0200", 20),
        ("Friday, 19-Dec-25 10:30:20 GMT", 20),  # RFC 850: obsolete, but must be read
        ("Fri Dec 19 10:30:20 2025", 20),  # asctime: the same
        ("Fri, 19 Dec 2025 10:29:00 GMT", 0),
        ("Fri, 19 Dec 2098 10:30:00 GMT", 60),
        (None, 0),
        ("", 0),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("\u0667", 0),  # a digit in Arabic, not in HTTP
        ("²", 0),
        ("Fri, 99 Dec 2025 10:30:20 GMT", 0),
        ("Fri, 19 Dec 99999999999999999999 10:30:20 GMT", 0),
        ("Fri, 19 Dec 2025 10:30:20 +9999999999999", 0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    """Seconds and HTTP-dates are read and capped at 60 s; other values are 0."""
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize("zone", ["Asia/Seoul", "America/New_York"])
def test_a_date_without_a_zone_is_utc(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP's dates are UTC wherever the worker runs."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", zone)
        time.tzset()
        seconds = parse_retry_after("Fri Dec 19 10:30:20 2025", NOW)
    time.tzset()

    assert seconds == 20


@given(st.integers(-10_000_000, 10_000_000))
def test_a_retry_after_date_is_read_to_the_second(seconds: int) -> None:
    """The wait is the time until the date, from 0 to 60 s."""
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    assert parse_retry_after(date, NOW) == min(max(seconds, 0), 60)


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ .*"))
def test_no_retry_after_breaks_the_reader(value: str) -> None:
    """Any header gives 0 to 60 s."""
    assert 0 <= parse_retry_after(value, NOW) <= 60
