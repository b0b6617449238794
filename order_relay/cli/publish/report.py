"""The output of ``order-relay publish``: a JSON line for each result, or a report at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from order_relay.cli import output
from order_relay.cli.publish.bulk_publisher import LineResult, LineStatus

SHOWN = 20
SHOWN_REASONS = 10
# Such an event is neither in Kafka nor in the table.
NOT_STORED = (LineStatus.REFUSED, LineStatus.FAILED)
# The results of lines that are only checked.
CHECKED = (LineStatus.PUBLISHED, LineStatus.REFUSED)


class PublishReport:
    """Counts results, and keeps the first few that a person must look at.

    It goes on counting when stdout takes no more.

    Attributes:
        table_location: Where events are saved; empty in a dry run.
        unwritable: Why stdout takes no more; empty while it does.
        on_unwritable: Called when stdout takes no more.
    """

    def __init__(self, topic: str, *, as_json: bool, dry_run: bool) -> None:
        """Report on events for ``topic``, which in a dry run are not published."""
        self.table_location = ""
        self.unwritable = ""
        self.on_unwritable: Callable[[], None] | None = None
        self._topic = topic
        self._as_json = as_json
        self._dry_run = dry_run
        self._dry_field = {"dry_run": True} if dry_run else {}
        self._counts: Counter[LineStatus] = Counter()
        self._first: list[LineResult] = []
        self._saved_because: Counter[str] = Counter()

    def add(self, result: LineResult) -> None:
        """Count the result of one line, and print it as JSON if that is asked for."""
        self._counts[result.result] += 1
        if self._as_json:
            with self._catching_lost_stdout():
                output.json_line(_fields(result) | self._dry_field)
            return
        if result.result in NOT_STORED and len(self._first) < SHOWN:
            self._first.append(result)
        if result.result is LineStatus.SAVED and (
            result.reason in self._saved_because or len(self._saved_because) < SHOWN_REASONS
        ):
            self._saved_because[result.reason] += 1

    def flush(self) -> None:
        """Flush stdout."""
        with self._catching_lost_stdout():
            output.flush_stdout()

    @property
    def failed_count(self) -> int:
        """How many events are neither in Kafka nor in the table."""
        return sum(self._counts[result] for result in NOT_STORED)

    def counts(self) -> str:
        """Return the counts so far as text."""
        return ", ".join(
            f"{self._counts[result]:,} {self._verb(result)}"
            for result in LineStatus
            if self._counts[result] or result is LineStatus.PUBLISHED
        )

    def close(self, remark: str) -> None:
        """Print the report; ``remark`` says why the end came early, if it did."""
        with self._catching_lost_stdout():
            if self._as_json:
                counts = {result.value: self._counts[result] for result in LineStatus}
                output.json_line(
                    {"type": "summary", **counts, "stopped": remark or None} | self._dry_field
                )
            else:
                self._print(remark)
            output.flush_stdout()

    def _print(self, remark: str) -> None:
        console = output.stdout_console()
        table = output.make_table(("", "events", ""), right=("events",))
        table.show_header = False
        where = {LineStatus.PUBLISHED: f"{'to' if self._dry_run else 'in'} topic {self._topic}"}
        if self._counts[LineStatus.SAVED]:
            where[LineStatus.SAVED] = f"in {self.table_location}; its workers publish them"
        if self._counts[LineStatus.FAILED]:
            where[LineStatus.FAILED] = "neither in Kafka nor in the database"
        for result in CHECKED if self._dry_run else LineStatus:
            count = f"{self._counts[result]:,}"
            table.add_row(self._verb(result), count, output.plain(where.get(result)))
        console.print(table)
        for reason, number in self._saved_because.most_common():
            console.print(output.plain(f"saved {number:,}: {reason}"))
        for line in sorted(self._first, key=lambda one: one.number):
            console.print(
                output.plain(f"line {line.number:,} {self._verb(line.result)}: {line.reason}")
            )
        if self.failed_count > len(self._first):
            more = self.failed_count - len(self._first)
            console.print(f"… and {more:,} more; --json names them all")
        if self._dry_run:
            console.print("nothing was published")
        if remark:
            console.print(output.plain(remark))

    @contextmanager
    def _catching_lost_stdout(self) -> Iterator[None]:
        try:
            yield
        except output.StdoutLost as error:
            self.unwritable = error.strerror or str(error)
            if self.on_unwritable is not None:
                self.on_unwritable()

    def _verb(self, result: LineStatus) -> str:
        return f"would be {result.value}" if self._dry_run else result.value


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
