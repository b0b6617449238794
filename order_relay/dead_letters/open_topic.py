"""A dead-letter topic, opened to read, redrive and purge it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.redrive import LetterResult, Redrive, Selection
from order_relay.dead_letters.redrive_group import RedriveGroup
from order_relay.dead_letters.redriven import Redriven, RedriveProgress
from order_relay.errors import RelayError, TopicUnusable
from order_relay.kafka.topic_reader import Extent, TopicReader, bytes_of, headers_of
from order_relay.settings import Settings


class TopicLog(TopicReader):
    """Reads the letters of the dead-letter topic."""

    def __init__(self, settings: Settings) -> None:
        """Read ``DLQ_TOPIC`` of these settings."""
        super().__init__(settings, settings.dlq_topic)

    async def letters(self, partition: int, start: int, end: int) -> AsyncIterator[Letter]:
        """Read the letters of a partition from offset ``start`` to before ``end``."""
        async for message in self.messages(partition, start, end):
            headers = headers_of(message)
            yield Letter(
                self.topic,
                partition,
                message.offset() or 0,
                bytes_of(message.key()),
                bytes_of(message.value()),
                headers or (),
                message.timestamp()[1],
                headers_unreadable=headers is None,
            )


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


@dataclass(frozen=True, slots=True)
class OpenTopic:
    """The dead-letter topic as it was when it was opened.

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

    async def matching(
        self, wanted: LetterFilter, *, everything: bool = False
    ) -> AsyncIterator[tuple[Letter, bool]]:
        """Read letters as ``letters`` that match a filter: open ones, or all."""
        async for letter, redriven in self.letters(from_start=everything):
            if (everything or not redriven) and wanted.finds(letter):
                yield letter, redriven

    async def letter(self, partition: int, offset: int) -> Letter:
        """Read the letter at a position.

        Raises:
            LookupError: There is none.
        """
        extent = self.extents.get(partition)
        if extent is not None and extent.low <= offset < extent.end:
            async for letter in self.log.letters(partition, offset, offset + 1):
                return letter
        raise LookupError(f"there is no letter {partition}:{offset} in topic {self.log.topic}")

    async def deletable(self, before: datetime | None, *, everything: bool) -> list[Purge]:
        """Return what may be deleted of each partition: what was redriven, up to an open letter.

        Args:
            before: Open letters, too, up to the first that was given up then or later.
            everything: All letters.
        """
        found = []
        for partition, extent in self.extents.items():
            redriven = self.redriven[partition]
            purge = Purge(partition, extent.low)
            async for letter in self.log.letters(partition, extent.low, extent.end):
                if not everything and letter.offset >= redriven.below:
                    failed_at = letter.failed_at
                    if before is None or failed_at is None or failed_at >= before:
                        break
                purge.letters += 1
                purge.open_letters += letter.offset not in redriven
                purge.before = letter.offset + 1
            found.append(purge)
        return found

    async def delete(self, purges: Sequence[Purge]) -> None:
        """Delete letters; raises ``KafkaUnavailable`` or ``TopicUnusable``."""
        self.check_same(await self.log.extents())
        await self.log.delete_before({one.partition: one.before for one in purges if one.letters})

    @asynccontextmanager
    async def redriving(
        self, selection: Selection, redrive: Redrive
    ) -> AsyncIterator[AsyncIterator[LetterResult]]:
        """Prepare to redrive what was selected; no other redrive can begin until the end.

        Yields the results, which are to be read.

        Args:
            selection: The letters. Those that another run has redriven meanwhile are skipped.
            redrive: Publishes them.

        Raises:
            TopicUnusable: Another redrive runs, or one of both topics cannot be used.
            KafkaUnavailable: Kafka did not answer in time.
        """
        async with self.group.membership(self.extents) as membership:
            partitions = await redrive.producer.partition_count(redrive.topic)
            if not partitions:
                raise TopicUnusable(redrive.topic, "it does not exist")
            # Read again: another redrive may have ended since.
            extents, redriven = await _read_redriven(self.log, self.group)
            self.check_same(extents)
            skipped = selection.drop_redriven(redriven)
            progress = {
                partition: RedriveProgress(
                    redriven[partition], selection.letters[partition], extent.end
                )
                for partition, extent in self.extents.items()
            }

            async def results() -> AsyncIterator[LetterResult]:
                for result in skipped:
                    yield result
                try:
                    async for result in redrive.run(
                        self.log.letters, membership, partitions, selection.chosen, progress
                    ):
                        yield result
                except RelayError as error:
                    redrive.stop(f"stopped: {error}")

            yield results()

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


@asynccontextmanager
async def open_topic(settings: Settings) -> AsyncIterator[OpenTopic]:
    """Open a consumer's dead-letter topic; raises ``KafkaUnavailable`` or ``TopicUnusable``."""
    group = RedriveGroup(settings)
    async with TopicLog(settings) as log:
        yield OpenTopic(log, group, *await _read_redriven(log, group))


async def _read_redriven(
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
