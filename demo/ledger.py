"""The ledgers: what became of every order, and of every record that another consumer reads.

The ledger of orders is told each fact by where the fact is: the shop's database, the sample
logger's own answers, the dead-letter topic itself. It never asks the worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntFlag

from confluent_kafka import Message


class Fate(IntFlag):
    """What has happened to one event so far."""

    UNKNOWN = 0
    PAID = 1
    BROKEN = 2
    DELIVERED = 4
    DEAD_LETTERED = 8
    SAVED = 16
    WAS_SAVED = 32


FINISHED = Fate.DELIVERED | Fate.DEAD_LETTERED | Fate.SAVED


@dataclass(frozen=True, slots=True)
class Balance:
    """The ledger's figures at one moment. Each event is counted in one place only.

    Attributes:
        paid: Orders committed in the shop's database.
        delivered: Of ``paid``: the logger answered 2xx.
        dead_lettered: Of ``paid``: in the dead-letter topic and not delivered.
        saved: Of ``paid``: saved for replay, neither delivered nor dead-lettered.
        replayed: Of ``paid``: were saved, and have reached Kafka since.
        open: Of ``paid``: not finished in any of the three ways.
        refusals: Orders that the database refused; the shop tries again.
        duplicates: 2xx answers beyond the first for an event.
        repeated_dead_letters: Dead letters beyond the first for an event.
        in_both: Events that were delivered and also dead-lettered.
        broken: Broken messages among ``paid``.
        broken_delivered: Broken messages that the logger got all the same.
        strangers: Events that reached the logger or the dead letters but were never paid.
        dead_letter_reasons: Dead-lettered events by reason.
    """

    paid: int
    delivered: int
    dead_lettered: int
    saved: int
    replayed: int
    open: int
    refusals: int
    duplicates: int
    repeated_dead_letters: int
    in_both: int
    broken: int
    broken_delivered: int
    strangers: int
    dead_letter_reasons: dict[str, int]

    @property
    def finished(self) -> int:
        """Events that are accounted for."""
        return self.delivered + self.dead_lettered + self.saved

    @property
    def goes_wrong(self) -> bool:
        """Something is where it should never be: waiting would not mend that."""
        return bool(self.broken_delivered or self.strangers)

    @property
    def closes(self) -> bool:
        """Every payment is accounted for, and nothing is there that should not be."""
        return self.paid == self.finished and not self.goes_wrong


class Ledger:
    """Keeps the fate of every event id. Facts may come in any order and more than once."""

    def __init__(self) -> None:
        self._fates: dict[str, Fate] = {}
        # How many events share a fate: the figures without going through all of them.
        self._numbers: Counter[Fate] = Counter()
        self._reasons: Counter[str] = Counter()
        self._saved: frozenset[str] = frozenset()
        self._refusals = 0
        self._duplicates = 0
        self._repeated_dead_letters = 0

    def paid(self, event_id: str, *, broken: bool = False) -> None:
        """The order is committed; ``broken`` if its message is not valid JSON."""
        self._add(event_id, Fate.PAID | (Fate.BROKEN if broken else Fate.UNKNOWN))

    def refused(self) -> None:
        """The database refused an order once."""
        self._refusals += 1

    def delivered(self, event_id: str) -> bool:
        """The logger answered 2xx; returns whether for the first time."""
        first = self._add(event_id, Fate.DELIVERED)
        self._duplicates += not first
        return first

    def dead_lettered(self, event_id: str, reason: str) -> bool:
        """The event was read from the dead-letter topic; returns whether for the first time."""
        first = self._add(event_id, Fate.DEAD_LETTERED)
        self._reasons[reason] += first
        self._repeated_dead_letters += not first
        return first

    def saved_for_replay(self, event_ids: Collection[str]) -> None:
        """These events, and no others, wait in the fallback table now.

        An event that no longer waits there is accounted for only where it turns up later.
        """
        now = frozenset(event_ids)
        for event_id in self._saved - now:
            self._change(event_id, self._fates[event_id] & ~Fate.SAVED)
        for event_id in now - self._saved:
            self._add(event_id, Fate.SAVED | Fate.WAS_SAVED)
        self._saved = now

    def balance(self) -> Balance:
        """Return the figures as they are now."""
        paid, count = Fate.PAID, self._count
        return Balance(
            paid=count(paid),
            delivered=count(paid | Fate.DELIVERED),
            dead_lettered=count(paid | Fate.DEAD_LETTERED, without=Fate.DELIVERED),
            saved=count(paid | Fate.SAVED, without=Fate.DELIVERED | Fate.DEAD_LETTERED),
            replayed=count(paid | Fate.WAS_SAVED, without=Fate.SAVED),
            open=count(paid, without=FINISHED),
            refusals=self._refusals,
            duplicates=self._duplicates,
            repeated_dead_letters=self._repeated_dead_letters,
            in_both=count(Fate.DELIVERED | Fate.DEAD_LETTERED),
            broken=count(paid | Fate.BROKEN),
            broken_delivered=count(Fate.BROKEN | Fate.DELIVERED),
            strangers=count(Fate.UNKNOWN, without=paid),
            dead_letter_reasons=dict(self._reasons.most_common()),
        )

    def missing(self) -> list[str]:
        """Return the ids that were paid and are not finished, in order of payment."""
        return self._ids(Fate.PAID, without=FINISHED)

    def wrong(self) -> list[str]:
        """Return the ids that were never paid, and those delivered though broken."""
        return self._ids(Fate.UNKNOWN, without=Fate.PAID) + self._ids(
            Fate.PAID | Fate.BROKEN | Fate.DELIVERED
        )

    def _add(self, event_id: str, fact: Fate) -> bool:
        return self._change(event_id, self._fates.get(event_id, Fate.UNKNOWN) | fact)

    def _change(self, event_id: str, after: Fate) -> bool:
        before = self._fates.get(event_id)
        if after == before:
            return False
        self._fates[event_id] = after
        if before is not None:
            self._numbers[before] -= 1
        self._numbers[after] += 1
        return True

    def _count(self, having: Fate, without: Fate = Fate.UNKNOWN) -> int:
        return sum(n for fate, n in self._numbers.items() if _fits(fate, having, without))

    def _ids(self, having: Fate, without: Fate = Fate.UNKNOWN) -> list[str]:
        return [name for name, fate in self._fates.items() if _fits(fate, having, without)]


def _fits(fate: Fate, having: Fate, without: Fate) -> bool:
    return fate & having == having and not fate & without


@dataclass(slots=True)
class ConsumerLedger:
    """Every record of the topic that a consumer beside order_logging reads is accounted for.

    Kafka, the consumer's sample service and the worker tell it the facts.

    Attributes:
        name: The consumer's name.
        topic: The topic that it reads.
        has_service: Whether it calls a sample service.
        published: Records in that topic.
        repeated_dead_letters: Dead letters beyond the first for a record.
        outcomes: How many deliveries ended how, says the worker.
    """

    name: str
    topic: str
    has_service: bool = False
    published: int = 0
    repeated_dead_letters: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    _dead_lettered: set[object] = field(default_factory=set)
    _received: set[str] = field(default_factory=set)

    def count_record(self, record: Message) -> None:
        """A record was read from its topic."""
        self.published += 1

    def count_dead_letter(self, letter: Message) -> None:
        """A record was read from its dead-letter topic."""
        headers = dict(letter.headers() or [])
        position = tuple(headers.get(f"kafka_dlt-original-{at}") for at in ("partition", "offset"))
        self.repeated_dead_letters += position in self._dead_lettered
        self._dead_lettered.add(position)

    def count_receipt(self, event_id: str) -> None:
        """Its sample service answered 2xx."""
        self._received.add(event_id)

    @property
    def handled(self) -> int:
        """Its handler returned, says the worker."""
        return self.outcomes.get("delivered", 0)

    @property
    def not_handled_again(self) -> int:
        """Duplicates, and redriven dead letters of other consumers, says the worker."""
        # What was abandoned at a stop comes again, so it is not finished.
        return self.outcomes.get("duplicate", 0) + self.outcomes.get("skipped", 0)

    @property
    def dead_lettered(self) -> int:
        """Records in its dead-letter topic."""
        return len(self._dead_lettered)

    @property
    def received(self) -> int | None:
        """Events that its sample service answered 2xx; ``None`` if it has no such service."""
        return len(self._received) if self.has_service else None

    @property
    def finished(self) -> int:
        """Records that are accounted for."""
        return self.handled + self.not_handled_again + self.dead_lettered

    @property
    def open(self) -> int:
        """Records that are not; 0 while more are finished than this has read."""
        return max(self.published - self.finished, 0)

    @property
    def goes_wrong(self) -> bool:
        """More is finished than there was, or than arrived: waiting would not mend that."""
        return self.finished > self.published or (
            self.received is not None and self.received < self.handled
        )

    @property
    def closes(self) -> bool:
        """Every record is accounted for, and what was handled has arrived."""
        return not self.open and not self.goes_wrong
