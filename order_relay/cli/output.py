"""Tables for people, JSON lines for programs."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from order_relay.logs.log_line import printable

# Where there is no terminal, whose width would count.
WIDTH_WITHOUT_TERMINAL = 160


class StdoutLost(OSError):
    """Stdout takes no more: a pipe whose reader has left, or a full disk."""


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Tell an error of stdout from others.

    Raises:
        StdoutLost: What is written from then on goes nowhere, and is no error.
    """
    try:
        yield
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise StdoutLost(error.errno, error.strerror) from None


class _Stdout(Console):
    """A console on stdout that raises ``StdoutLost``; rich would end the process."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See ``Console.print``."""
        with writing_stdout():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Raise what rich has caught."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def for_people() -> Console:
    """Return a console on stdout that keeps what it is given: no markup, no emojis."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return _Stdout(markup=False, emoji=False, highlight=False, width=width)


def on_stderr() -> Console:
    """Return a console on stderr, for progress and remarks."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def json_line(fields: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout."""
    with writing_stdout():
        sys.stdout.write(json.dumps(fields, separators=(",", ":")) + "\n")


def flush_stdout() -> None:
    """Let whoever reads stdout see what was printed."""
    with writing_stdout():
        sys.stdout.flush()


def make_table(columns: Sequence[str], *, right: Sequence[str] = ()) -> Table:
    """Return a table without rows; the columns named in ``right`` hold figures."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        if column in right:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    return table


def plain(text: str | None, limit: int = 0) -> Text:
    """Return text from outside as a cell: on one line, nothing in it can steer the terminal."""
    shown = printable(text or "")
    return Text(shown if not limit or len(shown) <= limit else shown[: limit - 1] + "…")


def moment(when: datetime | None) -> str | None:
    """Return a moment in ISO 8601, UTC, to the second."""
    return None if when is None else when.strftime("%Y-%m-%dT%H:%M:%SZ")


def age(seconds: float) -> str:
    """Return a time span as people say it: ``0 s``, ``59 s``, ``3 min``, ``5 h``, ``2 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size * (2 if unit == "d" else 1):
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def rows_of(number: int) -> str:
    """Return ``1 row`` or ``2 rows``."""
    return f"{number:,} {'row' if number == 1 else 'rows'}"
