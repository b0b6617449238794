"""What Kafka's clients say again and again is said now and then."""

import logging
from typing import Any

import pytest

from order_relay.logs.log_line import LogLine
from order_relay.logs.rate_limit import INTERVAL_SECONDS, RepeatFilter, escape_controls


class Log:
    """A filter with a clock, and the lines that passed it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._filter = RepeatFilter(lambda: self.now)
        self.lines: list[str] = []

    def say(self, name: str, text: Any, *args: object, level: int = logging.WARNING) -> None:
        record = logging.LogRecord(name, level, "file.py", 1, text, args, None)
        if self._filter.filter(record):
            self.lines.append(record.getMessage())
            self.fields = getattr(record.msg, "fields", {})


@pytest.mark.parametrize(
    ("name", "shown"), [("order_relay.worker.fallback_service", r"no \x1b[1m\n 5%"), ("x", None)]
)
def test_our_own_lines_are_one_line(name: str, shown: str | None) -> None:
    """Errors hold what rows hold; libraries' tables of several lines are theirs."""
    text = "no \x1b[1m\n 5%"
    record = logging.LogRecord(name, logging.ERROR, "file.py", 1, "no %s 5%%", ("\x1b[1m\n",), None)
    assert escape_controls(record)
    assert record.getMessage() == (shown or text)


def test_a_clients_complaint_passes_once_in_an_interval() -> None:
    """The first passes; those within the interval are counted and told with the next."""
    log = Log()
    for second in range(int(INTERVAL_SECONDS) + 1):
        log.now = float(second)
        log.say("aiokafka.conn", "Unable connect to node %s", second)

    assert log.lines == [
        "Unable connect to node 0",
        f"Unable connect to node {INTERVAL_SECONDS:.0f} "
        f"({INTERVAL_SECONDS - 1:.0f} more like it since)",
    ]


def test_lines_left_out_are_counted_in_a_field_of_our_own_line() -> None:
    """So that the JSON line has it, too."""
    log = Log()
    for attempt in range(3):
        log.say("order_relay.kafka.consumer", LogLine("Seek failed", attempt=attempt))
        log.now += INTERVAL_SECONDS * 0.7
    assert log.lines == ["Seek failed attempt=0", "Seek failed attempt=2 left_out=1"]
    assert log.fields == {"attempt": 2, "left_out": 1}


def test_different_complaints_do_not_hide_each_other() -> None:
    """Each text, level and logger is limited for itself."""
    log = Log()
    for _ in range(3):
        log.say("aiokafka.conn", "one %s", "x")
        log.say("aiokafka.conn", "two")
        log.say("aiokafka.conn", "one %s", "y", level=logging.ERROR)
        log.say("aiokafka.client", "one %s", "z")

    assert log.lines == ["one x", "two", "one y", "one z"]


@pytest.mark.parametrize(
    "name",
    [
        "order_relay.delivery.dispatcher",
        "order_relay.worker.relay_app",
        "faust.app",
        "aiokafkaesque",
    ],
)
def test_the_relays_own_lines_always_pass(name: str) -> None:
    """What people grep for and count is never left out."""
    log = Log()
    for _ in range(3):
        log.say(name, "Retrying message")

    assert log.lines == ["Retrying message"] * 3


def test_what_is_below_a_warning_always_passes() -> None:
    """Whoever asks for debug lines gets them all."""
    log = Log()
    for _ in range(3):
        log.say("aiokafka.conn", "sent", level=logging.DEBUG)

    assert len(log.lines) == 3
