"""The ledger of an audit: what became of each record, by what Kafka and the tables say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from enum import StrEnum

from order_relay.deliveries.entries import Entry, entry_key, order_of_key
from order_relay.delivery.dead_letters import CONSUMER_HEADER
from order_relay.delivery.progress import Commit, PartitionProgress
from order_relay.errors import InvalidEvent
from order_relay.model.events import Events
from order_relay.model.record import Record

Position = tuple[int, int]
"""Partition and offset in the source topic."""


class State(StrEnum):
    """What became of a record."""

    DELIVERED = "delivered"
    DEAD_LETTERED = "dead_lettered"
    REDRIVEN = "redriven"
    SAVED = "saved"
    WAITING = "waiting"
    FOR_ANOTHER = "for_another"
    LETTER_GONE = "letter_gone"
    FINISHED = "finished"
    UNACCOUNTED = "unaccounted"


MEANINGS = {
    State.DELIVERED: "the target has it",
    State.DEAD_LETTERED: "in the dead-letter topic, open",
    State.REDRIVEN: "its dead letter was redriven or discarded",
    State.SAVED: "its dead letter waits in the fallback table",
    State.WAITING: "not finished yet",
    State.FOR_ANOTHER: "a redriven record for another consumer",
    State.LETTER_GONE: "dead-lettered; the letter has left its topic (retention or purge)",
    State.FINISHED: "finished; delivered or dead-lettered is not known any more",
    State.UNACCOUNTED: "finished, but nothing tells what became of it",
}


@dataclass(slots=True)
class Evidence:
    """What is known of one partition, beside its records.

    Attributes:
        commit: The group's last commit; None: there is none.
        letters: Of records with a dead letter in the topic: whether the letter is open.
        saved: Offsets of records whose dead letter is in the fallback table.
        entries: Entries of the deliveries table by their key; None: it is switched off.
        entries_since_ms: Entries of records that were finished before are removed, milliseconds
            since the epoch.
        forgotten: Keys of entries that were removed, by age or because memory was full.
        is_complete: Whether no entry can have been forgotten early because memory was full.
    """

    commit: InitVar[Commit | None] = None
    letters: dict[int, bool] = field(default_factory=dict)
    saved: set[int] = field(default_factory=set)
    entries: Mapping[bytes, Entry] | None = None
    entries_since_ms: float = 0
    forgotten: set[bytes] = field(default_factory=set)
    is_complete: bool = True
    progress: PartitionProgress = field(init=False)

    def __post_init__(self, commit: Commit | None) -> None:
        self.progress = PartitionProgress(0, commit)


class Ledger:
    """Counts the records of one consumer's topic by what became of them.

    Attributes:
        counts: How many records there are of each state.
        listed: Positions of the states to list, up to a limit.
    """

    def __init__(
        self, consumer: str, events: Events, *, listed: frozenset[State], limit: int
    ) -> None:
        """Begin with no record.

        Args:
            consumer: The consumer's name.
            events: Decodes its records.
            listed: States whose positions are kept.
            limit: How many positions are kept.
        """
        self.counts: Counter[State] = Counter()
        self.listed: list[tuple[Position, State]] = []
        self._consumer = consumer.encode()
        self._events = events
        self._listed = listed
        self._limit = limit

    @property
    def closes(self) -> bool:
        """Whether every record is accounted for."""
        return not self.counts[State.UNACCOUNTED]

    @property
    def total(self) -> int:
        """The number of records."""
        return sum(self.counts.values())

    def add(self, record: Record, evidence: Evidence) -> None:
        """Count a record."""
        state = self._state(record, evidence)
        self.counts[state] += 1
        if state in self._listed and len(self.listed) < self._limit:
            self.listed.append(((record.partition, record.offset), state))

    def _state(self, record: Record, evidence: Evidence) -> State:
        if not evidence.progress.is_finished(record.offset):
            return State.WAITING
        if record.header(CONSUMER_HEADER) not in {None, self._consumer}:
            return State.FOR_ANOTHER
        is_open = evidence.letters.get(record.offset)
        if is_open is not None:
            return State.DEAD_LETTERED if is_open else State.REDRIVEN
        if record.offset in evidence.saved:
            return State.SAVED
        return self._by_table(record, evidence)

    def _by_table(self, record: Record, evidence: Evidence) -> State:
        """Return the state of a finished record without a letter."""
        if evidence.entries is None:
            return State.FINISHED  # finished means delivered, or dead-lettered
        key = self._order_key(record)
        entry = evidence.entries.get(key) if key is not None else None
        if entry is None:
            known = (
                key is not None
                and key not in evidence.forgotten
                and record.timestamp_ms >= evidence.entries_since_ms
                and evidence.is_complete
            )
            return State.UNACCOUNTED if known else State.FINISHED
        ours = entry.partition == record.partition and entry.offset == record.offset
        if entry.has_delivered(record) or (ours and entry.state == "delivered"):
            return State.DELIVERED
        # The entry may be that of a later record of the order.
        return State.LETTER_GONE if ours else State.FINISHED

    def _order_key(self, record: Record) -> bytes | None:
        """Return the key of the record's entry in the table; None: it has none."""
        try:
            order_id = self._events.subject(self._events.decode(record.value))
        except InvalidEvent:
            order_id = None
        if order_id is None:
            order_id = order_of_key(record)
        return None if order_id is None else entry_key(order_id)
