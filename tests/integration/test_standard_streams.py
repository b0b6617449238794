"""What is logged while nobody reads the log, and printed in an encoding that does not have it."""

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator

import pytest

from order_relay.logs.standard_streams import NonBlockingStream, escape_unencodable
from tests.support.waiting import eventually

LIMIT_SECONDS = 30.0


class Pipe:
    """A pipe: its lines once they are read."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.writer = os.fdopen(write, "w", encoding="ascii")
        self._reader = os.fdopen(read, encoding="ascii")
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def read(self) -> None:
        """Read from now on."""
        self._thread.start()

    def leave(self) -> None:
        """Read nothing any more."""
        self._reader.close()

    def _read(self) -> None:
        for line in self._reader:
            self.lines.append(line.rstrip("\n"))


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The logger that the stream itself uses."""
    logger = logging.getLogger("order_relay.logs.standard_streams")
    before = list(logger.handlers)
    yield logger
    logger.handlers[:] = before


async def test_a_pipe_that_nobody_reads_makes_nobody_wait(log: logging.Logger) -> None:
    """Lines are kept up to a limit, others are left out; the log says later how many."""
    pipe = Pipe()
    left_out: list[int] = []
    stream = NonBlockingStream(pipe.writer, on_left_out=lambda: left_out.append(1), max_waiting=900)
    log.addHandler(logging.StreamHandler(stream))
    for number in range(3000):
        log.warning("%099d", number)
    assert 0 < len(left_out) < 3000

    def told() -> int:
        return sum(int(found[1]) for line in pipe.lines if (found := _LEFT_OUT.fullmatch(line)))

    pipe.read()
    await eventually(lambda: told() == len(left_out), LIMIT_SECONDS, "the log says how many")
    kept = [int(line) for line in pipe.lines if line.isdigit()]
    assert kept == sorted(set(kept))
    assert len(kept) + len(left_out) == 3000


_LEFT_OUT = re.compile("Log lines left out: the log was not read count=([0-9]+)")


def test_a_reader_that_has_left_makes_nobody_wait() -> None:
    """A broken pipe takes nothing, and fails nothing."""
    pipe = Pipe()
    pipe.leave()
    stream = NonBlockingStream(pipe.writer, max_waiting=2)
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
    """No text ends a command or a worker, whatever the locale."""
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
        monkeypatch.setattr(sys, name, stream)
    escape_unencodable()
    print("주문 …")
    print("\udc80", file=sys.stderr)
    assert written.getvalue() == rb"\uc8fc\ubb38 \u2026" + b"\n" + rb"\udc80" + b"\n"
