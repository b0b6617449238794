"""``faust -A app dlq-purge``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from faust.cli.base import option

from order_relay.cli.command import (
    CONSUMER_OPTION,
    DRY_RUN_OPTION,
    JSON_OPTION,
    YES_OPTION,
    RelayCommand,
    options,
    usage_error,
)
from order_relay.cli.confirm import must_confirm, refused
from order_relay.cli.dlq.filters import TIME
from order_relay.cli.dlq.open_topic import OpenTopic, open_topic
from order_relay.cli.output import count_of, json_line, make_table, stdout_console


@dataclass(slots=True)
class Purge:
    """A deletion from a partition: everything before an offset.

    Attributes:
        partition: The partition.
        before: The first offset that stays.
        letters: The number of letters before it.
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
            type=TIME,
            default=None,
            help="Also open letters, up to the first given up then or later: ISO 8601 (UTC), or "
            "a time span such as 30d.",
        ),
        option("--all", "everything", is_flag=True, help="All there is now."),
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
        asks = must_confirm(yes=yes, dry_run=dry_run, needs_yes="it needs")
        async with open_topic(self.app, self.settings) as topic:
            purges = await _purges(topic, before, everything=everything)
            letters = sum(purge.letters for purge in purges)
            open_letters = sum(purge.open_letters for purge in purges)
            counts = f"{count_of(letters, 'letter')}, {open_letters:,} of them not redriven"
            if asks and letters:
                question = f"Delete {counts}, from {topic.log.topic}? This cannot be undone"
                if status := refused(question, "Nothing was deleted"):
                    return status
            if letters and not dry_run:
                topic.check_same(await topic.log.extents())
                await topic.log.delete_before(
                    {purge.partition: purge.before for purge in purges if purge.letters}
                )
        if as_json:
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
        else:
            columns = ("partition", "letters", "not redriven", "first that stays")
            table = make_table(columns, right=columns)
            for purge in purges:
                numbers = (f"{purge.letters:,}", f"{purge.open_letters:,}", str(purge.before))
                table.add_row(str(purge.partition), *numbers)
            console = stdout_console()
            console.print(table)
            done = "would be deleted; nothing was changed" if dry_run else "were deleted"
            console.print(f"{counts}: {done}")
        return 0


async def _purges(topic: OpenTopic, before: datetime | None, *, everything: bool) -> list[Purge]:
    found = []
    for partition, extent in topic.extents.items():
        redriven = topic.redriven[partition]
        # Below it every letter was redriven.
        prefix = min(max(extent.low, redriven.below), extent.end)
        purge = Purge(partition, extent.low)
        async for letter in topic.log.letters(partition, extent.low, extent.end):
            if not everything and letter.offset >= prefix:
                failed_at = letter.failed_at
                if before is None or failed_at is None or failed_at >= before:
                    break
            purge.letters += 1
            purge.open_letters += letter.offset not in redriven
            purge.before = letter.offset + 1
        found.append(purge)
    return found
