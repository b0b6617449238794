"""Logging to an unread pipe, and printing text that the encoding lacks."""

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from order_relay.logs.standard_streams import NonBlockingStream, escape_unencodable
from tests.support.child import run
from tests.support.waiting import eventually

LIMIT_SECONDS = 30.0


class Pipe(io.StringIO):
    """A stream that blocks writes until it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = threading.Event()

    def write(self, text: str) -> int:
        self.is_read.wait(LIMIT_SECONDS)
        return super().write(text)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The logger that the stream itself uses."""
    logger = logging.getLogger("order_relay.logs.standard_streams")
    before = list(logger.handlers)
    yield logger
    logger.handlers[:] = before


async def test_an_unread_pipe_does_not_block(log: logging.Logger) -> None:
    """Up to a limit lines wait, others are left out; the log later counts them."""
    pipe, left_out = Pipe(), 0

    def count() -> None:
        nonlocal left_out
        left_out += 1

    stream = NonBlockingStream(pipe, on_left_out=count, max_waiting=100)
    log.addHandler(logging.StreamHandler(stream))
    for first in (0, 300):
        pipe.is_read.clear()
        for number in range(first, first + 300):
            log.warning("%d", number)
        pipe.is_read.set()
        await eventually(lambda: sum(told(pipe)) == left_out > 0, LIMIT_SECONDS, "how many are out")
    assert len(told(pipe)) == 2
    kept = [int(line) for line in pipe.getvalue().splitlines() if line.isdigit()]
    assert kept == sorted(set(kept))
    assert len(kept) + left_out == 600


def told(pipe: Pipe) -> list[int]:
    """The counts of left-out lines in the log."""
    said = re.findall("Log lines left out: the log was not read count=([0-9]+)\n", pipe.getvalue())
    return [int(count) for count in said]


def test_a_broken_pipe_does_not_block() -> None:
    """A broken pipe neither blocks nor raises."""
    read, write = os.pipe()
    os.close(read)
    stream = NonBlockingStream(os.fdopen(write, "w", encoding="ascii"), max_waiting=2)
    for _ in range(10):
        stream.write("x" * 500)
        stream.drain(LIMIT_SECONDS)
        stream.flush()


def test_what_was_logged_is_written_before_the_end() -> None:
    """``drain`` returns when everything is written."""
    out = io.StringIO()
    stream = NonBlockingStream(out)
    for number in range(1000):
        stream.write(f"{number}\n")
    stream.drain(LIMIT_SECONDS)
    assert out.getvalue().splitlines() == [str(number) for number in range(1000)]


def test_what_an_encoding_does_not_have_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that the locale cannot encode raises nothing."""
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
        monkeypatch.setattr(sys, name, stream)
    escape_unencodable()
    print("주문 …")
    print("\udc80", file=sys.stderr)
    assert written.getvalue() == rb"\uc8fc\ubb38 \u2026" + b"\n" + rb"\udc80" + b"\n"


@pytest.mark.parametrize(
    ("command", "status"), [("publish --dry-run -", 0), ("fallback discard --all", 2)]
)
def test_a_stdin_that_was_closed_is_empty(command: str, status: int, tmp_path: Path) -> None:
    """A command without stdin reads nothing and asks no question."""
    line = f'exec "$0" -m order_relay {command} <&-'
    ended = run("/bin/sh", "-c", line, sys.executable, folder=tmp_path)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
