"""``order-relay audit``: what became of every record of a time range."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import click
from confluent_kafka import Message

from order_relay.cli.audit_ledger import MEANINGS, Evidence, Ledger, State
from order_relay.cli.command import CONSUMER, JSON, consumer_named, define
from order_relay.cli.dlq.letters import TIME
from order_relay.cli.fallback.rows import open_table
from order_relay.cli.output import (
    iso_time,
    json_line,
    make_table,
    stderr_console,
    stdout_console,
)
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.open_topic import open_topic
from order_relay.deliveries.entries import Entry, decode_entry
from order_relay.errors import RelayError, TopicUnusable
from order_relay.fallback.store import RowFilter, Status
from order_relay.kafka.committed_offsets import group_commits
from order_relay.kafka.topic_reader import Extent, TopicReader, bytes_of, headers_of
from order_relay.model.events import Events
from order_relay.model.record import Record
from order_relay.settings import Settings

# Letters and entries are written after their record; a producer's clock may be ahead of Kafka's.
CLOCK_MS = 3_600_000
# `--since 24h` began a moment before a table of 24 hours does.
TOLD_FROM_SECONDS = 60.0
# Workers commit before Kafka has every entry of the table, and write refused ones again after 5 s.
# So a ledger that does not close is drawn up again, after these pauses.
PAUSES_SECONDS = (0.0, 6.0, 6.0)


@define(
    click.option(
        "--since",
        type=TIME,
        default="24h",
        show_default=True,
        help="From this time on: ISO 8601 (UTC), or a time span such as 2h.",
    ),
    click.option("--until", type=TIME, default=None, help="Before this time; by default now."),
    click.option(
        "--list",
        "listed",
        type=click.Choice([state.value for state in State]),
        multiple=True,
        help="Also list these records; unaccounted ones are always listed.",
    ),
    click.option(
        "--limit", type=click.IntRange(1, 1_000_000), default=100, help="List at most so many."
    ),
    CONSUMER,
    JSON,
)
async def audit(
    *,
    since: datetime,
    until: datetime | None,
    listed: tuple[str, ...],
    limit: int,
    consumer: str | None,
    as_json: bool,
) -> int:
    """Account for every record of a time range.

    Exact where the deliveries table is on. Exit status: 0 only if every finished record has a
    trace.
    """
    if until is not None and until <= since:
        raise click.UsageError("--since must be before --until")
    chosen = consumer_named(consumer)
    states = frozenset({State.UNACCOUNTED, *map(State, listed)})
    events = Events(chosen.declaration.event, subject=chosen.declaration.subject)
    for pause in PAUSES_SECONDS:
        await asyncio.sleep(pause)
        ledger = Ledger(chosen.name, events, listed=states, limit=limit)
        reading = _Reading(chosen.settings, since, until, ledger, whole=pause > 0)
        await reading.read()
        if ledger.closes:
            break
    if as_json:
        _print_json(reading, chosen.name)
    else:
        _print_table(reading, chosen.name)
        for remark in reading.remarks():
            stderr_console().print(remark)
    return 0 if ledger.closes else 1


@dataclass(slots=True)
class _Reading:
    """Reads what Kafka and the tables say of a time range, and counts it in a ledger.

    Attributes:
        settings: The consumer's.
        since: Where the range begins.
        until: Where it ends; None: now.
        ledger: Counts the records.
        whole: Whether to read letters and entries from before the range, too: they are older than
            their records if a producer's clock is ahead.
        deleted_before: Kafka has no records from before this time; None: it has.
        emptied: The partitions of which Kafka has deleted all records.
        table_begins_ms: Entries of records that were finished before this time may be gone,
            milliseconds since the epoch.
        unsaved: Events that wait in the fallback table, or why their number is not known.
    """

    settings: Settings
    since: datetime
    until: datetime | None
    ledger: Ledger
    whole: bool = False
    deleted_before: datetime | None = None
    emptied: list[int] = field(default_factory=list)
    table_begins_ms: float = 0
    unsaved: int | str = 0

    async def read(self) -> None:
        """Count every record of the range.

        Raises:
            KafkaUnavailable: Kafka does not answer.
            TopicUnusable: A topic cannot be read.
        """
        settings = self.settings
        self.table_begins_ms = (time.time() - settings.deliveries_retention_hours * 3600) * 1000
        letters = await self._letters()
        saved = await self._saved()
        async with TopicReader(settings, settings.order_paid_topic) as source:
            ranges = await self._ranges(source)
            commits = await group_commits(
                settings, settings.consumer_group_id, settings.order_paid_topic, list(ranges)
            )
            for partition, extent in ranges.items():
                evidence = Evidence(
                    commits.get(partition),
                    letters=letters.get(partition, {}),
                    saved=saved.get(partition, set()),
                    entries_since_ms=self.table_begins_ms,
                )
                if settings.deliveries_store != "off":
                    await self._read_table(partition, evidence)
                since_ms = self.since.timestamp() * 1000
                until_ms = self.until.timestamp() * 1000 if self.until is not None else math.inf
                async for message in source.messages(partition, *extent):
                    record = _record(message)
                    if since_ms <= record.timestamp_ms < until_ms:  # producers' clocks may differ
                        self.ledger.add(record, evidence)

    def _evidence_since_ms(self) -> float:
        return 0.0 if self.whole else self.since.timestamp() * 1000 - CLOCK_MS

    async def _letters(self) -> dict[int, dict[int, bool]]:
        """Return which offsets of each source partition have a letter, and whether it is open."""
        found: dict[int, dict[int, bool]] = {}
        earliest_ms = self._evidence_since_ms()
        try:
            async with open_topic(self.settings) as topic:
                async for letter, redriven in topic.letters(from_start=True):
                    source = letter.source
                    if letter.timestamp_ms < earliest_ms or source is None:
                        continue
                    topic_name, partition, offset = source
                    if topic_name == self.settings.order_paid_topic:
                        # A record may have two letters: it was given up again after a crash.
                        of_partition = found.setdefault(partition, {})
                        of_partition[offset] = of_partition.get(offset, False) or not redriven
        except TopicUnusable as error:
            raise click.ClickException(f"the dead letters cannot be read: {error}") from None
        return found

    async def _saved(self) -> dict[int, set[int]]:
        """Return for each partition the offsets whose dead letter the fallback table keeps."""
        settings = self.settings
        found: dict[int, set[int]] = {}
        events = 0
        try:
            async with open_table(settings) as table:
                for status in (Status.PENDING, Status.FAILED):
                    wanted = RowFilter(status=status, topic=settings.dlq_topic)
                    async for page in table.pages(wanted):
                        for row in page:
                            letter = Letter(
                                settings.dlq_topic, 0, 0, row.key, row.payload, row.headers
                            )
                            if (source := letter.source) is not None:
                                found.setdefault(source[1], set()).add(source[2])
                    events += await table.count(
                        RowFilter(status=status, topic=settings.order_paid_topic)
                    )
        except (RelayError, click.ClickException) as error:
            self.unsaved = " ".join(str(error).split())
        else:
            self.unsaved = events
        return found

    async def _ranges(self, source: TopicReader) -> dict[int, Extent]:
        """Return the offsets of the time range, by partition."""
        found = {}
        for partition, extent in (await source.extents()).items():
            start = await _start(source, partition, extent, self.since.timestamp() * 1000)
            end = extent.end
            if self.until is not None:
                end = await source.offset_at(partition, extent, self.until.timestamp() * 1000)
            found[partition] = Extent(start, max(start, end))
            if extent.end == extent.low > 0:
                # No record is left whose time says from when on they are kept.
                self.emptied.append(partition)
            elif start == extent.low > 0:
                # Kafka may have deleted records of the range.
                oldest_ms = await _oldest_ms(source, partition, extent)
                oldest = datetime.fromtimestamp(oldest_ms / 1000, UTC)
                if self.deleted_before is None or oldest > self.deleted_before:
                    self.deleted_before = oldest
        return found

    async def _read_table(self, partition: int, evidence: Evidence) -> None:
        """Read the table's entries of records that were finished since the range begins."""
        async with TopicReader(self.settings, self.settings.deliveries_changelog_topic) as table:
            extents = await table.extents()
            number = partition % len(extents)
            since_ms = self._evidence_since_ms()
            if extents[number].low > 0:
                # Its retention is shorter than the table's; the embedded cluster keeps 5 MiB.
                oldest_ms = await _oldest_ms(table, number, extents[number])
                evidence.entries_since_ms = max(evidence.entries_since_ms, oldest_ms)
                self.table_begins_ms = max(self.table_begins_ms, oldest_ms)
            start = await _start(table, number, extents[number], since_ms)
            found: dict[bytes, Entry] = {}
            async for message in table.messages(number, start, extents[number].end):
                key, value = message.key(), message.value()
                if not isinstance(key, bytes):
                    continue
                entry = decode_entry(value) if isinstance(value, bytes) else None
                if entry is None:
                    found.pop(key, None)
                    evidence.forgotten.add(key)
                elif entry.partition == partition:
                    found[key] = entry
        evidence.entries = found
        if self.settings.deliveries_store == "memory":
            # Memory forgets the oldest entries first, beyond each partition's share.
            share = self.settings.deliveries_max_entries // len(extents)
            range_ms = self.since.timestamp() * 1000 - CLOCK_MS
            recent = sum(entry.finished_ms >= range_ms for entry in found.values())
            evidence.is_complete = recent < share

    def remarks(self) -> list[str]:
        """Return what cannot be known, one line each."""
        found = []
        if self.settings.deliveries_store == "off":
            found.append(
                "The deliveries table is off (DELIVERIES_STORE=off): a finished record without a "
                "dead letter was delivered, or its letter has left the topic"
            )
        else:
            begins = datetime.fromtimestamp(self.table_begins_ms / 1000, UTC)
            if (begins - self.since).total_seconds() > TOLD_FROM_SECONDS:
                found.append(f"The deliveries table begins at {iso_time(begins)}: what finished "
                             "before is not known exactly")  # fmt: skip
        if self.deleted_before is not None and self.deleted_before > self.since:
            found.append(f"Kafka keeps records from {iso_time(self.deleted_before)} on: earlier "
                         "ones of the range cannot be seen")  # fmt: skip
        if self.emptied:
            names = ", ".join(map(str, self.emptied))
            found.append(f"Kafka has deleted all records of partition {names} from before now: "
                         "those of the range, if there were any, cannot be seen")  # fmt: skip
        if isinstance(self.unsaved, str):
            found.append(
                f"The fallback table was not read, saved records are missing: {self.unsaved}"
            )
        elif self.unsaved:
            found.append(
                f"{self.unsaved:,} events wait in the fallback table and are not in Kafka yet"
            )
        return found


async def _start(reader: TopicReader, partition: int, extent: Extent, since_ms: float) -> int:
    """Return the offset to begin at: that of the first record of a time or later."""
    start = await reader.offset_at(partition, extent, since_ms)
    if start == extent.end > extent.low:
        # The embedded cluster knows no times, and says that there is no such record.
        async for message in reader.messages(partition, start - 1, start):
            if message.timestamp()[1] >= since_ms:
                return extent.low
    return start


async def _oldest_ms(reader: TopicReader, partition: int, extent: Extent) -> float:
    """Return the time of a partition's first record, 0 without one; now if it is in the future."""
    async for message in reader.messages(partition, extent.low, extent.end):
        return min(max(message.timestamp()[1], 0), time.time() * 1000)
    return 0


def _record(message: Message) -> Record:
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        generation=0,
        key=bytes_of(message.key()),
        value=bytes_of(message.value()),
        headers=headers_of(message) or (),
        timestamp_ms=message.timestamp()[1],
    )


def _print_table(reading: _Reading, consumer: str) -> None:
    ledger, topic = reading.ledger, reading.settings.order_paid_topic
    console = stdout_console()
    since, until = iso_time(reading.since), iso_time(reading.until) or "now"
    console.print(f"Records of {topic} for {consumer}, from {since} to {until}")
    table = make_table(("records", "", ""), right=("records",))
    for state in State:
        if ledger.counts[state] or state in (State.DELIVERED, State.UNACCOUNTED):
            table.add_row(f"{ledger.counts[state]:,}", state.value, MEANINGS[state])
    table.add_row(f"{ledger.total:,}", "in all", "")
    console.print(table)
    for (partition, offset), state in ledger.listed:
        console.print(f"{partition}:{offset} {state.value}")
    console.print("The ledger closes" if ledger.closes else "THE LEDGER DOES NOT CLOSE")


def _print_json(reading: _Reading, consumer: str) -> None:
    ledger = reading.ledger
    for (partition, offset), state in ledger.listed:
        json_line({"type": "record", "partition": partition, "offset": offset, "state": state})
    json_line(
        {
            "type": "summary",
            "consumer": consumer,
            "since": iso_time(reading.since),
            "until": iso_time(reading.until),
            "records": ledger.total,
            **{state.value: ledger.counts[state] for state in State},
            "closes": ledger.closes,
            "remarks": reading.remarks(),
        }
    )
