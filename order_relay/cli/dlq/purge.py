"""``order-relay dlq purge``."""

from __future__ import annotations

from datetime import datetime

import click

from order_relay.cli.command import (
    CONSUMER,
    DRY_RUN,
    JSON,
    YES,
    choose_consumer,
    command,
    load_application,
    must_confirm,
    refused,
    usage_error,
)
from order_relay.cli.dlq.options import TIME
from order_relay.cli.output import count_of, json_line, make_table, stdout_console
from order_relay.dead_letters.open_topic import open_topic


@command(
    click.option(
        "--before",
        type=TIME,
        help="Also open letters, up to the first given up then or later: ISO 8601 (UTC), or "
        "a time span such as 30d.",
    ),
    click.option("--all", "everything", is_flag=True, help="All there is now."),
    DRY_RUN,
    YES,
    CONSUMER,
    JSON,
)
async def purge(
    *,
    before: datetime | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
    consumer: str | None,
    as_json: bool,
) -> int:
    """Delete letters that were redriven, from the beginning of each partition.

    Kafka deletes only from the beginning: letters behind an open one stay, unless --before or
    --all say that open ones may go, too. Their events are then nowhere else.
    """
    if before is not None and everything:
        raise usage_error("give --before or --all, not both")
    asks = must_confirm(yes=yes, dry_run=dry_run, needs_yes="it needs")
    async with open_topic(choose_consumer(load_application(), consumer).settings) as topic:
        purges = await topic.deletable(before, everything=everything)
        letters = sum(one.letters for one in purges)
        open_letters = sum(one.open_letters for one in purges)
        counts = f"{count_of(letters, 'letter')}, {open_letters:,} of them not redriven"
        if asks and letters:
            question = f"Delete {counts}, from {topic.log.topic}? This cannot be undone"
            if status := refused(question, "Nothing was deleted"):
                return status
        if letters and not dry_run:
            await topic.delete(purges)
    if as_json:
        for one in purges:
            json_line(
                {
                    "partition": one.partition,
                    "before": one.before,
                    "letters": one.letters,
                    "open": one.open_letters,
                    "dry_run": dry_run,
                }
            )
        return 0
    columns = ("partition", "letters", "not redriven", "first that stays")
    table = make_table(columns, right=columns)
    for one in purges:
        numbers = (f"{one.letters:,}", f"{one.open_letters:,}", str(one.before))
        table.add_row(str(one.partition), *numbers)
    console = stdout_console()
    console.print(table)
    done = "would be deleted; nothing was changed" if dry_run else "were deleted"
    console.print(f"{counts}: {done}")
    return 0
