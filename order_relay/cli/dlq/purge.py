"""``faust -A app dlq-purge``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime

from faust.cli.base import option

from order_relay.cli.command import (
    CONSUMER_OPTION,
    DRY_RUN_OPTION,
    JSON_OPTION,
    RelayCommand,
    options,
    usage_error,
)
from order_relay.cli.confirm import refused
from order_relay.cli.dlq.filters import MOMENT, YES_OPTION
from order_relay.cli.dlq.formatting import letters_of
from order_relay.cli.dlq.open_topic import LetterAccess, opened_letters
from order_relay.cli.output import for_people, json_line, make_table


@dataclass(slots=True)
class Purge:
    """What is to be deleted from a partition: everything before an offset.

    Attributes:
        partition: The partition.
        before: The first offset that stays.
        letters: How many letters that are.
        open_letters: How many of them were not redriven.
    """

    partition: int
    before: int
    letters: int = 0
    open_letters: int = 0


class dlq_purge(RelayCommand):  # noqa: N801 - Faust takes the command's name from here
    """Delete letters that were redriven, from the beginning of each partition.

    Kafka deletes only from the beginning: letters behind an open one stay, unless --before or
    --all say that open ones may go, too. Their events are then nowhere else.
    """

    options = options(
        option(
            "--before",
            type=MOMENT,
            default=None,
            help="Also open letters, up to the first given up then or later: ISO 8601 (UTC), or "
            "a time span such as 30d.",
        ),
        option("--all", "everything", is_flag=True, default=False, help="All there is now."),
        DRY_RUN_OPTION,
        YES_OPTION,
        CONSUMER_OPTION,
        JSON_OPTION,
    )

    async def work(
        self, *, before: datetime | None, everything: bool, dry_run: bool, yes: bool, as_json: bool
    ) -> int:
        """Purge the topic."""
        if before is not None and everything:
            raise usage_error("give --before or --all, not both")
        asks = not yes and not dry_run
        if asks and not sys.stdin.isatty():
            raise usage_error("it needs --yes where nobody can be asked, or --dry-run to look")
        async with opened_letters(self.app, self.settings) as access:
            purges = await _purges(access, before, everything=everything)
            letters = sum(purge.letters for purge in purges)
            open_letters = sum(purge.open_letters for purge in purges)
            words = f"{letters_of(letters)}, {open_letters:,} of them not redriven"
            if asks and letters:
                topic = access.log.topic
                question = f"Delete {words}, from {topic} for good?"
                if status := refused(question, "Nothing was deleted"):
                    return status
            if letters and not dry_run:
                access.check_same(await access.log.extents())
                await access.log.delete_before(
                    {purge.partition: purge.before for purge in purges if purge.letters}
                )
        if as_json or self.json:
            for purge in purges:
                json_line(
                    {
                        "partition": purge.partition,
                        "before": purge.before,
                        "letters": purge.letters,
                        "open": purge.open_letters,
                        "dry_run": dry_run,
                    }
                )
            return 0
        _tell(purges, words, dry_run=dry_run)
        return 0


async def _purges(
    access: LetterAccess, before: datetime | None, *, everything: bool
) -> list[Purge]:
    found = []
    for partition, extent in access.extents.items():
        redriven = access.redriven[partition]
        # Below it every letter was redriven.
        prefix = min(max(extent.low, redriven.below), extent.end)
        purge = Purge(partition, extent.low)
        async for letter in access.log.letters(partition, extent.low, extent.end):
            if not everything and letter.offset >= prefix:
                failed_at = letter.failed_at
                if before is None or failed_at is None or failed_at >= before:
                    break
            purge.letters += 1
            purge.open_letters += letter.offset not in redriven
            purge.before = letter.offset + 1
        found.append(purge)
    return found


def _tell(purges: list[Purge], words: str, *, dry_run: bool) -> None:
    table = make_table(
        ("partition", "letters", "not redriven", "first that stays"),
        right=("partition", "letters", "not redriven", "first that stays"),
    )
    for purge in purges:
        table.add_row(
            str(purge.partition), f"{purge.letters:,}", f"{purge.open_letters:,}", str(purge.before)
        )
    console = for_people()
    console.print(table)
    verb = "would be deleted; nothing was changed" if dry_run else "were deleted"
    console.print(f"{words}: {verb}")
