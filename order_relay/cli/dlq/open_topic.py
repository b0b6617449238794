"""Opening the dead-letter topic for a command, with the record of what was redriven."""

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
class OpenTopic:
    """The dead-letter topic as it was when the command began.

    Attributes:
        log: Reads it.
        group: Stores what is redriven.
        extents: What each partition held.
        redriven: What was redriven of each partition.
    """

    log: TopicLog
    group: RedriveGroup
    extents: Mapping[int, Extent]
    redriven: Mapping[int, Redriven]

    async def letters(self, *, from_start: bool) -> AsyncIterator[tuple[Letter, bool]]:
        """Read letters by partition and offset, each with whether it was redriven.

        Args:
            from_start: Read each partition from its start, else from its first open letter.
        """
        for partition, extent in self.extents.items():
            redriven = self.redriven[partition]
            start = extent.low if from_start else max(extent.low, redriven.below)
            async for letter in self.log.letters(partition, start, extent.end):
                yield letter, letter.offset in redriven

    def check_same(self, extents: Mapping[int, Extent]) -> None:
        """Check by what the topic holds now that it was not recreated since it was read.

        Raises:
            TopicUnusable: It was: its offsets mean other letters.
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
    # Read after the commits: a commit beyond the end is then of an earlier topic.
    extents = await log.extents()
    redriven = {
        partition: Redriven(commits.get(partition), end=extent.end)
        for partition, extent in extents.items()
    }
    return extents, redriven


@asynccontextmanager
async def open_topic(app: AppT, settings: Settings) -> AsyncIterator[OpenTopic]:
    """Open the dead-letter topic; raises ``KafkaUnavailable`` or ``TopicUnusable``."""
    group = RedriveGroup(settings, credentials_to_aiokafka_auth(app.conf.broker_credentials))
    async with TopicLog(settings) as log:
        yield OpenTopic(log, group, *await read_redriven(log, group))
