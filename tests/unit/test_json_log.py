"""Log records as JSON lines: ours, and whatever libraries make."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from order_relay.logs.json_format import formatter
from order_relay.logs.log_line import FiguresLine, LogLine
from tests.support.run_python import run_python


def record(message: Any, *args: object, error: BaseException | None = None, **extra: Any) -> str:
    """The line of a record, which is one line."""
    trace = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("app.test", logging.WARNING, "file.py", 1, message, args, trace)
    vars(made).update(extra, created=1_766_140_200.1239)
    line = formatter().format(made)
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
        "timestamp": "2025-12-19T10:30:00.123Z",
        "level": "WARNING",
        "logger": "app.test",
        "message": "Retrying message",
        "offset": 41,
        "wait_seconds": 1.5,
        "status": None,
        "detail": "x",
    }


def test_figures_are_in_the_message_and_beside_it() -> None:
    """The phrase can be grepped as in text, and what is no number is null."""
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
    """All of it, with its line ends escaped."""
    try:
        int("bad\nvalue")
    except ValueError as error:
        found = json.loads(record("It failed", error=error))
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("invalid literal for int() with base 10: 'bad\\nvalue'")
    assert "exc_info" not in found


def endless() -> list[Any]:
    """A list that holds itself."""
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "value",
    [object(), b"\xff", {1, 2}, {(1, 2): 3}, endless(), "\udcff \u2028 \x00"],
)
def test_whatever_a_line_holds_it_is_written(value: object) -> None:
    """A log line is never lost for its data, and stays one line of ASCII."""
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
    """What a program says that warns, and fails in three ways that nobody catches."""
    ended = run_python(UNCAUGHT, tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    return [json.loads(line) for line in ended.stderr.splitlines()]


def test_what_nobody_catches_is_logged(said: list[dict[str, Any]]) -> None:
    """Warnings, errors of threads and of finalizers, and what ends the program: one line each."""
    warning, thread, late, end = said
    assert "mind this" in warning["message"]
    assert warning["logger"] == "py.warnings"
    assert thread["message"] == "Uncaught exception in a thread"
    assert thread["thread"] == "worker"
    assert "ZeroDivisionError" in thread["exception"]
    assert "too late" in late["exception"]
    assert end["level"] == "CRITICAL"
    assert "SystemError: the end" in end["exception"]
