"""``faust -A app dlq-list``."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from faust.cli.base import option

from order_relay.cli.command import CONSUMER_OPTION, JSON_OPTION, RelayCommand, options
from order_relay.cli.dlq.filters import FILTER_OPTIONS, LIMIT_RANGE, letter_filter
from order_relay.cli.dlq.formatting import letter_fields, letters_table
from order_relay.cli.dlq.open_topic import OpenTopic, open_topic
from order_relay.cli.output import (
    count_of,
    json_line,
    make_table,
    plain,
    stderr_console,
    stdout_console,
)
from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter


class dlq_list(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """List dead letters, by partition and offset: those that were not redriven, or --all."""

    options = options(
        option("--all", "everything", is_flag=True, help="Also those that were redriven."),
        *FILTER_OPTIONS,
        option("--limit", type=LIMIT_RANGE, default=100, help="At most so many; by default 100."),
        option("--count", is_flag=True, help="Only count them, by reason."),
        CONSUMER_OPTION,
        JSON_OPTION,
    )

    async def work(
        self, *, everything: bool, limit: int, count: bool, as_json: bool, **filters: Any
    ) -> int:
        """Print the letters, or their counts."""
        wanted = letter_filter(**filters)
        shown: list[tuple[Letter, bool]] = []
        total = 0
        counts: Counter[str | None] = Counter()
        async with open_topic(self.app, self.settings) as topic:
            async for letter, redriven in _matching(topic, wanted, everything=everything):
                total += 1
                if count:
                    counts[letter.reason] += 1
                elif as_json:
                    json_line(letter_fields(letter, redriven=redriven))
                    if total == limit:
                        return 0
                elif total <= limit:
                    shown.append((letter, redriven))
        if count:
            _print_counts(counts, as_json=as_json)
        if shown:
            stdout_console().print(letters_table(shown, with_state=everything))
        if not total and (count or not as_json):
            stderr_console().print("No letters")
        elif shown and total > limit:
            stderr_console().print(f"{limit:,} of {count_of(total, 'letter')}; --limit shows more")
        return 0


async def _matching(
    topic: OpenTopic, wanted: LetterFilter, *, everything: bool
) -> AsyncIterator[tuple[Letter, bool]]:
    async for letter, redriven in topic.letters(from_start=everything):
        if (everything or not redriven) and wanted.finds(letter):
            yield letter, redriven


def _print_counts(counts: Counter[str | None], *, as_json: bool) -> None:
    table = make_table(("reason", "letters"), right=("letters",))
    for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0] or "")):
        if as_json:
            json_line({"reason": reason, "letters": number})
        table.add_row(plain(reason if reason is not None else "(none)", 60), f"{number:,}")
    if not as_json and counts:
        stdout_console().print(table)
