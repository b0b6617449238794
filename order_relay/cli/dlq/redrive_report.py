"""What ``faust -A app dlq-redrive`` says: lines of JSON as they end, or a report in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress

from order_relay.cli.dlq.filters import LetterPosition
from order_relay.cli.dlq.formatting import letters_of, letters_table
from order_relay.cli.output import (
    flush_stdout,
    for_people,
    json_line,
    make_table,
    on_stderr,
    plain,
)
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redrive import LetterResult, RedriveResult
from order_relay.model.byte_text import to_text

SHOWN = 20
# From so many letters on there is a progress bar.
LONG = 500


class RedriveReport:
    """Counts results; keeps the first few of those that a person must look at.

    Attributes:
        remark: Why it ended early; empty if it did not.
    """

    def __init__(self, topic: str, *, as_json: bool, named: bool) -> None:
        """Report on letters for ``topic``; ``named`` if each was named by its place."""
        self.remark = ""
        self._topic = topic
        self._as_json = as_json
        self._named = named
        self._counts: Counter[RedriveResult] = Counter()
        self._first: list[LetterResult] = []
        self._advance: Callable[[], None] = _nothing

    def add(self, result: LetterResult) -> None:
        """Take in what became of one letter."""
        self._counts[result.result] += 1
        self._advance()
        if self._as_json:
            json_line(_fields(result))
            flush_stdout()  # programs see it at once, however slow the rate
        elif result.reason and len(self._first) < SHOWN:
            self._first.append(result)

    @contextmanager
    def showing(self, total: int) -> Iterator[None]:
        """Show a progress bar on a terminal when there is much to do."""
        console = on_stderr()
        if not console.is_terminal or total <= LONG:
            yield
            return
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("letters", total=total)
            self._advance = lambda: progress.advance(task)
            try:
                yield
            finally:
                self._advance = _nothing

    def close_dry_run(
        self, positions: Iterator[LetterPosition], first: Sequence[Letter], count: int
    ) -> int:
        """Say what would be redriven; return the exit status."""
        if self._as_json:
            for position in positions:
                line = {
                    "type": "letter",
                    **position._asdict(),
                    "result": RedriveResult.REDRIVEN.value,
                }
                json_line({**line, "dry_run": True})
        else:
            console = for_people()
            if first:
                console.print(letters_table([(one, False) for one in first], with_state=False))
            if count > len(first):
                console.print(f"… and {count - len(first):,} more")
            self._tell_reasons()
            console.print(
                f"{letters_of(count)} would be redriven to {self._topic}; nothing was changed"
            )
        return self._status()

    def close(self) -> int:
        """Say what was done; return the exit status."""
        done = self._counts[RedriveResult.REDRIVEN]
        if self._as_json:
            counts = {result.value: self._counts[result] for result in RedriveResult}
            json_line({"type": "summary", **counts, "stopped": self.remark or None})
        else:
            self._tell_reasons()
            verb = "was" if done == 1 else "were"
            for_people().print(f"{letters_of(done)} {verb} redriven to {self._topic}")
            if self.remark:
                for_people().print(plain(self.remark))
        return self._status()

    def _status(self) -> int:
        skipped = self._named and self._counts[RedriveResult.SKIPPED]
        return 1 if skipped or self._counts[RedriveResult.FAILED] or self.remark else 0

    def _tell_reasons(self) -> None:
        if not self._first:
            return
        table = make_table(("letter", "not redriven, because"), right=("letter",))
        for result in self._first:
            table.add_row(f"{result.partition}:{result.offset}", plain(result.reason))
        console = for_people()
        console.print(table)
        others = (
            self._counts[RedriveResult.SKIPPED]
            + self._counts[RedriveResult.FAILED]
            - len(self._first)
        )
        if others:
            console.print(f"… and {others:,} more; --json names them all")


def _nothing() -> None:
    """No bar is shown."""


def _fields(result: LetterResult) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": "letter",
        "partition": result.partition,
        "offset": result.offset,
        "result": result.result.value,
    }
    if result.event_id:
        fields["event_id"] = to_text(result.event_id)
    if result.position is not None:
        fields |= {
            "to_topic": result.position.topic,
            "to_partition": result.position.partition,
            "to_offset": result.position.offset,
        }
    if result.reason:
        fields["reason"] = result.reason
    return fields
