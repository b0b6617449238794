"""Opening the dead-letter topic for a command, and what was redriven of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from faust.types import AppT

from order_relay.cli.dlq.redrive_group import RedriveGroup
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redriven import Redriven
from order_relay.dead_letters.topic_reader import Extent, TopicLog
from order_relay.errors import TopicUnusable
from order_relay.settings import Settings


@dataclass(frozen=True, slots=True)
class LetterAccess:
    """The dead-letter topic as it was when the command began.

    Attributes:
        log: Reads it.
        group: Remembers what is redriven.
        extents: What each partition held.
        redriven: What was redriven of each partition.
    """

    log: TopicLog
    group: RedriveGroup
    extents: Mapping[int, Extent]
    redriven: Mapping[int, Redriven]

    async def letters(self, *, all_of_them: bool) -> AsyncIterator[tuple[Letter, bool]]:
        """Read letters by partition and offset, each with whether it was redriven.

        Without ``all_of_them`` those are left out that come before the first open one.
        """
        for partition, extent in self.extents.items():
            redriven = self.redriven[partition]
            start = extent.low if all_of_them else max(extent.low, redriven.below)
            async for letter in self.log.letters(partition, start, extent.end):
                yield letter, letter.offset in redriven

    def check_same(self, extents: Mapping[int, Extent]) -> None:
        """See that the topic can still be the one that was read, by what it holds now.

        Raises:
            TopicUnusable: It was made anew: its offsets mean other letters.
        """
        for partition, before in self.extents.items():
            now = extents.get(partition)
            # In one and the same topic both only grow.
            if now is None or now.low < before.low or now.end < before.end:
                raise TopicUnusable(
                    self.log.topic,
                    f"partition {partition} is not the one that was read, the topic was made "
                    "anew meanwhile; nothing was done, run this again",
                )


async def read_redriven(
    log: TopicLog, group: RedriveGroup
) -> tuple[dict[int, Extent], dict[int, Redriven]]:
    """Return what each partition holds now, and what was redriven of it."""
    commits = await group.commits(list(await log.extents()))
    # Asked after the commits: one beyond the end is of an earlier topic, not of a later letter.
    extents = await log.extents()
    redriven = {
        partition: Redriven(commits.get(partition), end=extent.end)
        for partition, extent in extents.items()
    }
    return extents, redriven


@asynccontextmanager
async def opened_letters(app: AppT, settings: Settings) -> AsyncIterator[LetterAccess]:
    """Open the dead-letter topic; raises ``KafkaUnavailable`` or ``TopicUnusable``."""
    group = RedriveGroup(settings, credentials_to_aiokafka_auth(app.conf.broker_credentials))
    async with TopicLog(settings) as log:
        yield LetterAccess(log, group, *await read_redriven(log, group))
