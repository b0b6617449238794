"""Log lines for people and programs, and repeated ones, which are limited."""

import ast
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from order_relay.logs.json_format import NAMES, JsonLines
from order_relay.logs.log_line import CONSOLE_URL, FiguresLine, LogLine
from order_relay.logs.rate_limit import INTERVAL_SECONDS, RepeatFilter, escape_controls
from tests.support.child import run_python

ROOT = Path(__file__).parents[2]
# The fields of every JSON line, by both of their names.
TAKEN = {"process", "message", *NAMES, *NAMES.values()}


def test_it_reads_as_a_phrase_and_its_data() -> None:
    """External text is quoted, the rest is unchanged; the trace id comes last."""
    line = LogLine("Retrying message", trace_id="ab", offset=41, status=None, detail="a\n'b'")
    assert str(line) == "Retrying message offset=41 status=None detail=\"a\\n'b'\" trace_id=ab"
    assert line.message == "Retrying message"
    assert list(line.fields) == ["offset", "status", "detail", "trace_id"]


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\r", "\u2028", "\u202e", "\x00", "\udc80"])
def test_no_value_steers_a_terminal_or_fakes_a_line(text: str) -> None:
    """The topic of a row written by hand may have any text."""
    line = str(LogLine("Fallback message refused", topic=text, detail=text))
    assert line.isprintable()
    assert ascii(text)[1:-1] in ascii(line).replace("\\\\", "\\")


def test_stacks_are_lines() -> None:
    """They are for people, and our own."""
    assert str(LogLine("Stacks of all threads", stacks="a\nb")).splitlines()[1] == "b"


def test_the_page_of_the_console_is_told_where_there_is_one() -> None:
    """As a URL, with any id in it."""
    page = ("/dead-letters", {"event_id": "ä &1"})
    assert str(LogLine("Given up", offset=1, page=page)) == "Given up offset=1"
    token = CONSOLE_URL.set("http://relay:6066")
    try:
        line = LogLine("Given up", offset=1, page=page)
    finally:
        CONSOLE_URL.reset(token)
    url = "http://relay:6066/dead-letters?event_id=%C3%A4+%261"
    assert str(line) == f"Given up offset=1 console={url}"


def test_figures_read_as_a_sentence() -> None:
    """The phrase that people grep has the figures, also in JSON."""
    line = FiguresLine("Fallback message stats", pending=2, published=45, failed=1)
    assert str(line) == "Fallback message stats - pending: 2, published: 45, failed: 1"
    assert line.message == str(line)
    assert line.fields == {"pending": 2, "published": 45, "failed": 1}
    assert str(FiguresLine("X", oldest_unfinished_seconds=1.5)) == "X - oldest unfinished: 1.5 s"


def test_no_line_calls_its_data_what_every_line_has() -> None:
    """The JSON line would lose it."""
    found = 0
    folders = ("order_relay", "app", "agents", "tables")
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "LogLine",
                "FiguresLine",
            ):
                found += 1
                assert not TAKEN & {keyword.arg for keyword in node.keywords}, path
    assert found > 10


def record(message: Any, *args: object, error: BaseException | None = None, **extra: Any) -> str:
    """The line of a record, which is one line."""
    trace = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("app.test", logging.WARNING, "file.py", 1, message, args, trace)
    vars(made).update(extra, created=1_766_140_200.1239, msecs=123.9)
    line = JsonLines().format(made)
    assert "\n" not in line
    return line


def fields(message: object, *args: object, **extra: Any) -> dict[str, Any]:
    """The fields of a record's line."""
    found = json.loads(record(message, *args, **extra), parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


def test_a_line_s_data_are_fields_of_their_kind() -> None:
    """The phrase is the message; numbers stay numbers, None is null."""
    found = fields(
        LogLine("Retrying message", offset=41, wait_seconds=1.5, status=None, detail="x")
    )
    assert found.pop("process") is not None
    assert found == {
        "timestamp": "2025-12-19T10:30:00.123Z", "level": "WARNING", "logger": "app.test",
        "message": "Retrying message", "offset": 41, "wait_seconds": 1.5, "status": None,
        "detail": "x",
    }  # fmt: skip


def test_figures_are_in_the_message_and_beside_it() -> None:
    """The phrase can be grepped as in text, and an unknown figure is null."""
    found = fields(FiguresLine("Delivery stats", delivered=3, age=float("nan")))
    assert found["message"] == "Delivery stats - delivered: 3, age: nan"
    assert found["delivered"] == 3
    assert found["age"] is None


def test_a_library_s_line_is_its_text() -> None:
    """Arguments are put in; extra data become fields, but never ours."""
    found = fields("Heartbeat failed for group %s", "g", left="x", timestamp="never", level=7)
    assert found["message"] == "Heartbeat failed for group g"
    assert found["left"] == "x"
    assert found["level"] == "WARNING"
    assert found["timestamp"].startswith("2025")


def test_a_stack_trace_is_one_field() -> None:
    """The whole, with escaped line ends."""
    try:
        int("bad\nvalue")
    except ValueError as error:
        found = json.loads(record("It failed", error=error))
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("invalid literal for int() with base 10: 'bad\\nvalue'")
    assert "exc_info" not in found


def endless() -> list[Any]:
    """A list within itself."""
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "value", [object(), b"\xff", {1, 2}, {(1, 2): 3}, endless(), "\udcff \u2028 \x00"]
)
def test_whatever_a_line_holds_it_is_written(value: object) -> None:
    """Data never prevent a log line, which is one line of ASCII."""
    line = record(LogLine("Odd data", value=value))
    assert json.loads(line)["message"] == "Odd data"
    assert line.isascii()


UNCAUGHT = """
import threading, warnings
from order_relay.logs import json_format
json_format.set_up()
warnings.warn("mind this")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
class Late:
    def __del__(self): raise ValueError("too late")
Late()
raise SystemError("the end")
"""


@pytest.fixture
def said(tmp_path: Path) -> list[dict[str, Any]]:
    """The log of a program with a warning and three uncaught errors."""
    ended = run_python(UNCAUGHT, tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    return [json.loads(line) for line in ended.stderr.splitlines()]


def test_what_is_not_caught_is_logged(said: list[dict[str, Any]]) -> None:
    """A warning, errors of a thread and a finalizer, and the fatal error: one line each."""
    warning, thread, late, end = said
    assert "mind this" in warning["message"]
    assert warning["logger"] == "py.warnings"
    assert thread["message"] == "Uncaught exception in a thread"
    assert thread["thread"] == "worker"
    assert "ZeroDivisionError" in thread["exception"]
    assert "too late" in late["exception"]
    assert end["level"] == "CRITICAL"
    assert "SystemError: the end" in end["exception"]


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
    """Errors may quote rows; multi-line texts of libraries stay unchanged."""
    text = "no \x1b[1m\n 5%"
    record = logging.LogRecord(name, logging.ERROR, "file.py", 1, "no %s 5%%", ("\x1b[1m\n",), None)
    assert escape_controls(record)
    assert record.getMessage() == (shown or text)


def test_a_clients_complaint_passes_once_in_an_interval() -> None:
    """The first passes; those within the interval are counted with the next."""
    log = Log()
    for second in range(int(INTERVAL_SECONDS) + 1):
        log.now = float(second)
        log.say("aiokafka.conn", "Unable connect to node %s", second)

    assert log.lines == [
        "Unable connect to node 0",
        f"Unable connect to node {INTERVAL_SECONDS:.0f} "
        f"({INTERVAL_SECONDS - 1:.0f} more like it since)",
    ]


def test_each_handler_gets_the_complaint() -> None:
    """They share the filter, and each gets the same lines."""
    now = 0.0
    repeats = RepeatFilter(lambda: now)
    for attempt in range(3):
        record = logging.LogRecord("aiokafka.conn", logging.WARNING, "f.py", 1, "No", (), None)
        said = [record.getMessage() for _ in range(2) if repeats.filter(record)]
        assert said == [["No", "No"], [], ["No (1 more like it since)"] * 2][attempt]
        now += INTERVAL_SECONDS * 0.7


def test_lines_left_out_are_counted_in_a_field_of_our_own_line() -> None:
    """So the JSON line has it, too."""
    log = Log()
    for attempt in range(3):
        log.say("order_relay.kafka.consumer", LogLine("Seek failed", attempt=attempt))
        log.now += INTERVAL_SECONDS * 0.7
    assert log.lines == ["Seek failed attempt=0", "Seek failed attempt=2 left_out=1"]
    assert log.fields == {"attempt": 2, "left_out": 1}


def test_each_partition_that_lost_records_is_told() -> None:
    """Its line has the offsets, by which the orders are found."""
    log = Log()
    lost = "Records were deleted topic=%s partition=%d first=%d last=%d count=%d"
    for partition in range(3):
        log.say("order_relay.kafka.consumer.relay_consumer", lost, "t", partition, 0, 9, 10)

    assert len(log.lines) == 3


def test_different_complaints_do_not_hide_each_other() -> None:
    """Each text, level and logger has its own limit."""
    log = Log()
    for _ in range(3):
        log.say("aiokafka.conn", "one %s", "x")
        log.say("aiokafka.conn", "two")
        log.say("aiokafka.conn", "one %s", "y", level=logging.ERROR)
        log.say("aiokafka.client", "one %s", "z")

    assert log.lines == ["one x", "two", "one y", "one z"]


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *((name, logging.WARNING) for name in ("order_relay.delivery.dispatcher", "faust.app",
                                               "order_relay.worker.relay_app", "aiokafkaesque")),
        ("aiokafka.conn", logging.DEBUG),
    ],
)  # fmt: skip
def test_the_relays_own_lines_always_pass(name: str, level: int) -> None:
    """What people grep and count is never left out; nor is what is below a warning."""
    log = Log()
    for _ in range(3):
        log.say(name, "Retrying message", level=level)

    assert log.lines == ["Retrying message"] * 3
