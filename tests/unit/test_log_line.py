"""A log line as people and as programs read it."""

import ast
from pathlib import Path

import pytest

from order_relay.logs.json_format import NAMES
from order_relay.logs.log_line import CONSOLE_URL, FiguresLine, LogLine

ROOT = Path(__file__).parents[2]
# The fields of every JSON line, by both their names.
TAKEN = {"process", "message", *NAMES, *NAMES.values()}


def test_it_reads_as_a_phrase_and_its_data() -> None:
    """Text from outside is quoted, the rest is as it is; the trace's id comes last."""
    line = LogLine("Retrying message", trace_id="ab", offset=41, status=None, detail="a\n'b'")
    assert str(line) == "Retrying message offset=41 status=None detail=\"a\\n'b'\" trace_id=ab"
    assert line.message == "Retrying message"
    assert list(line.fields) == ["offset", "status", "detail", "trace_id"]


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\r", "\u2028", "\u202e", "\x00", "\udc80"])
def test_no_value_steers_a_terminal_or_fakes_a_line(text: str) -> None:
    """A topic of a row that was written by hand may hold anything."""
    line = str(LogLine("Fallback message refused", topic=text, detail=text))
    assert line.isprintable()
    assert ascii(text)[1:-1] in ascii(line).replace("\\\\", "\\")


def test_stacks_are_lines() -> None:
    """They are for people, and made by us."""
    assert str(LogLine("Stacks of all threads", stacks="a\nb")).splitlines()[1] == "b"


def test_the_page_of_the_console_is_told_where_there_is_one() -> None:
    """As a URL, whatever the id has in it."""
    page = ("/dead-letters", {"event_id": "ä &1"})
    assert str(LogLine("Given up", offset=1, page=page)) == "Given up offset=1"
    token = CONSOLE_URL.set("http://relay:6066")
    try:
        line = LogLine("Given up", offset=1, page=page)
    finally:
        CONSOLE_URL.reset(token)
    url = "http://relay:6066/dead-letters?event_id=%C3%A4+%261"
    assert str(line) == f"Given up offset=1 console={url}"


def test_without_a_trace_nothing_is_said_of_it() -> None:
    """Most records have none."""
    assert (
        str(LogLine("Retrying message", offset=41, trace_id=None)) == "Retrying message offset=41"
    )


def test_figures_read_as_a_sentence() -> None:
    """The phrase that people grep holds the figures, in JSON too."""
    line = FiguresLine("Fallback message stats", pending=2, published=45, failed=1)
    assert str(line) == "Fallback message stats - pending: 2, published: 45, failed: 1"
    assert line.message == str(line)
    assert line.fields == {"pending": 2, "published": 45, "failed": 1}
    assert str(FiguresLine("X", oldest_unfinished_seconds=1.5)) == "X - oldest unfinished: 1.5 s"


def test_no_line_calls_its_data_what_every_line_has() -> None:
    """Else the JSON line would lose it."""
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
