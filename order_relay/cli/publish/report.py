"""What ``faust -A app publish`` says: lines of JSON as they end, or a report in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from order_relay.cli.output import StdoutLost, flush_stdout, json_line, make_table, plain
from order_relay.cli.publish.bulk_publisher import LineResult, LineStatus

SHOWN = 20
SHOWN_REASONS = 10
NOBODY_HAS_THEM = (LineStatus.REFUSED, LineStatus.FAILED)
# How a line can end when it is only checked.
CHECKED = (LineStatus.PUBLISHED, LineStatus.REFUSED)


class PublishReport:
    """Counts results; keeps the first few of those that a person must look at.

    It goes on counting when stdout takes no more.

    Attributes:
        unwritable: Why stdout takes no more; empty while it does.
        on_unwritable: Called when that happens.
    """

    def __init__(self, *, as_json: bool, dry_run: bool = False) -> None:
        """Print each result as JSON at once, or only count it; of a dry run say so."""
        self.unwritable = ""
        self.on_unwritable: Callable[[], None] | None = None
        self._as_json = as_json
        self._dry_run = dry_run
        self._counts: Counter[LineStatus] = Counter()
        self._first: list[LineResult] = []
        self._saved_because: Counter[str] = Counter()

    def add(self, result: LineResult) -> None:
        """Take in the result of one line."""
        self._counts[result.result] += 1
        if self._as_json:
            with self._noticing():
                json_line(_fields(result) | self._dry)
            return
        if result.result in NOBODY_HAS_THEM and len(self._first) < SHOWN:
            self._first.append(result)
        if result.result is LineStatus.SAVED and (
            result.reason in self._saved_because or len(self._saved_because) < SHOWN_REASONS
        ):
            self._saved_because[result.reason] += 1

    def flush(self) -> None:
        """Let programs see what was printed."""
        with self._noticing():
            flush_stdout()

    @property
    def unhappy(self) -> int:
        """How many lines are neither in Kafka nor in the table."""
        return sum(self._counts[result] for result in NOBODY_HAS_THEM)

    def words(self) -> str:
        """Return the counts so far in a few words."""
        return ", ".join(
            f"{self._counts[result]:,} {self._word(result)}"
            for result in LineStatus
            if self._counts[result] or result is LineStatus.PUBLISHED
        )

    def close(self, console: Console, *, topic: str, table_location: str, remark: str) -> None:
        """Print the report; ``remark`` says why the end came early, if it did."""
        with self._noticing():
            if self._as_json:
                counts = {result.value: self._counts[result] for result in LineStatus}
                json_line({"type": "summary", **counts, "stopped": remark or None} | self._dry)
            else:
                self._print(console, topic, table_location, remark)
            flush_stdout()

    def _print(self, console: Console, topic: str, table_location: str, remark: str) -> None:
        shown = make_table(("", "events", ""), right=("events",))
        shown.show_header = False
        where = {
            LineStatus.PUBLISHED: f"{'to' if self._dry_run else 'in'} topic {topic}",
            LineStatus.SAVED: f"in {table_location}; its workers publish them"
            if self._saved
            else "",
            LineStatus.REFUSED: "",
            LineStatus.FAILED: "neither in Kafka nor in the database" if self._failed else "",
        }
        for result in CHECKED if self._dry_run else LineStatus:
            shown.add_row(self._word(result), f"{self._counts[result]:,}", plain(where[result]))
        console.print(shown)
        self._print_reasons(console)
        if self._dry_run:
            console.print("nothing was published")
        if remark:
            console.print(plain(remark))

    def _print_reasons(self, console: Console) -> None:
        for reason, count in self._saved_because.most_common():
            console.print(plain(f"saved {count:,}: {reason}"))
        for result in sorted(self._first, key=lambda one: one.number):
            word = self._word(result.result)
            console.print(plain(f"line {result.number:,} {word}: {result.reason}"))
        if self.unhappy > len(self._first):
            console.print(f"… and {self.unhappy - len(self._first):,} more; --json names them all")

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Notice that stdout takes no more."""
        try:
            yield
        except StdoutLost as error:
            self.unwritable = error.strerror or str(error)
            if self.on_unwritable is not None:
                self.on_unwritable()

    def _word(self, result: LineStatus) -> str:
        return f"would be {result.value}" if self._dry_run else result.value

    @property
    def _dry(self) -> dict[str, bool]:
        return {"dry_run": True} if self._dry_run else {}

    @property
    def _saved(self) -> int:
        return self._counts[LineStatus.SAVED]

    @property
    def _failed(self) -> int:
        return self._counts[LineStatus.FAILED]


def _fields(result: LineResult) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": "line",
        "line": result.number,
        "result": result.result.value,
        "event_id": result.event_id,
    }
    if result.position is not None:
        fields |= {
            "topic": result.position.topic,
            "partition": result.position.partition,
            "offset": result.position.offset,
        }
    if result.row_id is not None:
        fields["row_id"] = result.row_id
    if result.reason:
        fields["reason"] = result.reason
    return fields
