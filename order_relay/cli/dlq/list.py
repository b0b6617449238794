"""``faust -A app dlq-list``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from faust.cli.base import option

from order_relay.cli.command import CONSUMER_OPTION, JSON_OPTION, RelayCommand, options
from order_relay.cli.dlq.filters import LIMIT_RANGE, filter_options, letter_filter
from order_relay.cli.dlq.formatting import letter_fields, letters_of, letters_table
from order_relay.cli.dlq.open_topic import LetterAccess, opened_letters
from order_relay.cli.output import for_people, json_line, make_table, on_stderr, plain
from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter


class dlq_list(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """List dead letters, by partition and offset: those that were not redriven, or --all."""

    options = options(
        option(
            "--all",
            "everything",
            is_flag=True,
            default=False,
            help="Also those that were redriven.",
        ),
        *filter_options(),
        option("--limit", type=LIMIT_RANGE, default=100, help="At most so many; by default 100."),
        option("--count", is_flag=True, default=False, help="Only count them, by reason."),
        CONSUMER_OPTION,
        JSON_OPTION,
    )

    async def work(
        self, *, everything: bool, limit: int, count: bool, as_json: bool, **narrowed: Any
    ) -> int:
        """Print the letters."""
        wanted = letter_filter(**narrowed)
        as_json = as_json or self.json
        async with opened_letters(self.app, self.settings) as access:
            if count:
                await _print_counts(access, wanted, everything=everything, as_json=as_json)
            elif as_json:
                await _print_json(access, wanted, limit, everything=everything)
            else:
                await _print_table(access, wanted, limit, everything=everything)
        return 0


async def _print_counts(
    access: LetterAccess, wanted: LetterFilter, *, everything: bool, as_json: bool
) -> None:
    counts: Counter[str | None] = Counter()
    async for letter, redriven in access.letters(all_of_them=everything):
        if (everything or not redriven) and wanted.finds(letter):
            counts[letter.reason] += 1
    table = make_table(("reason", "letters"), right=("letters",))
    for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0] or "")):
        if as_json:
            json_line({"reason": reason, "letters": number})
        table.add_row(plain(reason if reason is not None else "(none)", 60), f"{number:,}")
    if not as_json and counts:
        for_people().print(table)
    if not counts:
        on_stderr().print("No letters")


async def _print_json(
    access: LetterAccess, wanted: LetterFilter, limit: int, *, everything: bool
) -> None:
    async for letter, redriven in access.letters(all_of_them=everything):
        if (everything or not redriven) and wanted.finds(letter):
            json_line(letter_fields(letter, redriven=redriven))
            limit -= 1
            if not limit:
                return


async def _print_table(
    access: LetterAccess, wanted: LetterFilter, limit: int, *, everything: bool
) -> None:
    found: list[tuple[Letter, bool]] = []
    total = 0
    async for letter, redriven in access.letters(all_of_them=everything):
        if (everything or not redriven) and wanted.finds(letter):
            total += 1
            if total <= limit:
                found.append((letter, redriven))
    if found:
        for_people().print(letters_table(found, with_state=everything))
    if not total:
        on_stderr().print("No letters")
    elif total > len(found):
        on_stderr().print(f"{len(found):,} of {letters_of(total)}; --limit shows more")
