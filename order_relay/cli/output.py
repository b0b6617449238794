"""Output of commands: tables and reports for people, JSON lines for programs."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from order_relay.logs.log_line import printable

# Where stdout is not a terminal, which has a width of its own.
WIDTH_WITHOUT_TERMINAL = 160
# How many letters or rows a report lists.
SHOWN = 20
# From this number of letters or rows on, a progress bar is shown.
LONG = 500


class StdoutLost(OSError):
    """Stdout takes no more: a pipe whose reader is gone, or a full disk."""

    def __str__(self) -> str:
        return f"stdout cannot be written: {self.strerror}"


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Turn an error of stdout into ``StdoutLost``.

    Raises:
        StdoutLost: Writing failed. Later output is discarded without an error.
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


def stdout_console() -> Console:
    """Return a console on stdout that prints text as it is: no markup, no emojis."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return _Stdout(markup=False, emoji=False, highlight=False, width=width)


def stderr_console() -> Console:
    """Return a console on stderr, for progress and remarks."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def json_line(fields: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout."""
    with writing_stdout():
        sys.stdout.write(json.dumps(fields, separators=(",", ":")) + "\n")


def flush_stdout() -> None:
    """Flush stdout, so that its reader sees what was printed."""
    with writing_stdout():
        sys.stdout.flush()


class ChangeReport:
    """Prints what a command did with letters or rows: a JSON line for each, or counts at the end.

    Attributes:
        done: How many were changed, or would be in a dry run.
        skipped: How many were not.
        failed: How many of these because something failed.
        remark: Why the command ended early; empty if it did not.
        ended: The error after which no more is begun, such as that stdout takes no more lines.
            What was under way is still counted.
    """

    def __init__(
        self, unit: str, verb: str, *, named: bool, as_json: bool, dry_run: bool = False
    ) -> None:
        """Begin with none.

        Args:
            unit: ``letter`` or ``row``.
            verb: What is done with it, such as ``redriven``.
            named: Whether a person named each: one that is skipped is then an error.
            as_json: The option --json.
            dry_run: The option --dry-run.
        """
        self.done = self.skipped = self.failed = 0
        self.remark = self.ended = ""
        self.as_json = as_json
        self.dry_run = dry_run
        self._unit = unit
        self._verb = verb
        self._named = named
        self._reasons: list[tuple[str, str]] = []
        self._progress = Progress(disable=True)
        self._task = self._progress.add_task("")

    def add(
        self, name: str, fields: Mapping[str, Any], reason: str = "", *, failed: bool = False
    ) -> None:
        """Count one; ``reason`` says why it was not changed, and ``fields`` all that is printed."""
        self._progress.advance(self._task)
        if self.as_json and not self.ended:
            try:
                json_line(fields)
                flush_stdout()  # also at a slow rate its reader sees each line at once
            except StdoutLost as error:
                self.ended = str(error)
        self.failed += failed
        if not reason:
            self.done += 1
            return
        self.skipped += 1
        if len(self._reasons) < SHOWN:
            self._reasons.append((name, reason))

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if (self._named and self.skipped) or self.failed or self.remark else 0

    def check(self) -> None:
        """Raise ``ended``, with what was changed before."""
        if self.ended:
            raise click.ClickException(f"{self.ended}; {self._counted()}")

    def _counted(self) -> str:
        verb = "would be" if self.dry_run else "was" if self.done == 1 else "were"
        return f"{count_of(self.done, self._unit)} {verb} {self._verb}"

    @contextmanager
    def showing_progress(self, total: int) -> Iterator[None]:
        """Show a progress bar on a terminal if there is much to do."""
        console = stderr_console()
        hidden = not console.is_terminal or total <= LONG
        with Progress(console=console, transient=True, disable=hidden) as self._progress:
            self._task = self._progress.add_task(f"{self._unit}s", total=total)
            yield

    def print(self, changed: Table, *, to: str = "") -> None:
        """Print what was changed, what was not and why, and the count.

        Args:
            changed: The first that would be changed, in a dry run.
            to: Where they went, such as ``to orders``.
        """
        try:
            self._print(stdout_console(), changed, to)
        except StdoutLost as error:
            self.ended = str(error)

    def _print(self, console: Console, changed: Table, to: str) -> None:
        if changed.row_count:
            console.print(changed)
            _print_more(console, self.done - changed.row_count)
        if self._reasons:
            name = "letter" if self._unit == "letter" else "id"
            table = make_table((name, f"not {self._verb}, because"), right=(name,))
            for row_name, reason in self._reasons:
                table.add_row(row_name, plain(reason))
            console.print(table)
            _print_more(console, self.skipped - len(self._reasons))
        end = "; nothing was changed" if self.dry_run else ""
        console.print(f"{self._counted()}{to and ' ' + to}{end}")
        if self.remark:
            console.print(plain(self.remark))


def _print_more(console: Console, number: int) -> None:
    if number > 0:
        console.print(f"… and {number:,} more; --json names them all")


def make_table(columns: Sequence[str], *, right: Sequence[str] = ()) -> Table:
    """Return a table without rows; the columns in ``right`` are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        if column in right:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    return table


def print_fields(rows: Iterable[tuple[str, object]]) -> None:
    """Print names and values as a table."""
    table = make_table(("field", "value"))
    for name, value in rows:
        table.add_row(plain(name), plain(str(value)))
    stdout_console().print(table)


def plain(text: str | None, limit: int = 0) -> Text:
    """Return text from outside on one line, without control characters."""
    shown = printable(text or "")
    return Text(shown if not limit or len(shown) <= limit else shown[: limit - 1] + "…")


def iso_time(when: datetime | None, timespec: str = "seconds") -> str | None:
    """Return a time in UTC as ISO 8601."""
    return None if when is None else when.isoformat(timespec=timespec).replace("+00:00", "Z")


def age(seconds: float) -> str:
    """Return a time span in one unit: ``0 s``, ``59 s``, ``3 min``, ``5 h``, ``2 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size * (2 if unit == "d" else 1):
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def count_of(number: int, unit: str) -> str:
    """Return ``1 letter`` or ``2 letters``, for the unit ``letter``."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"
