"""The ledger: what became of every order, by event id.

It hears of each fact from where the fact is: from the shop's database, from the sample logger's own
answers, from the dead-letter topic itself. It never asks the worker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntFlag


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
        replayed: Of ``paid``: were saved and are no more, since Kafka has them.
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
    def closes(self) -> bool:
        """Every payment is accounted for, and nothing is there that should not be."""
        return self.paid == self.finished and not self.goes_wrong

    @property
    def goes_wrong(self) -> bool:
        """Something is where it should never be: no amount of waiting would mend that."""
        return bool(self.broken_delivered or self.strangers)

    @property
    def finished(self) -> int:
        """Events that are accounted for."""
        return self.delivered + self.dead_lettered + self.saved


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
        """The order is committed; ``broken`` if its message is not an event at all."""
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
        if first:
            self._reasons[reason] += 1
        else:
            self._repeated_dead_letters += 1
        return first

    def saved_for_replay(self, event_ids: Collection[str]) -> None:
        """These events, and no others, wait in the fallback table now.

        To have been saved is nothing that an event could be found by later.
        """
        now = frozenset(event_ids)
        for event_id in self._saved - now:
            self._change(event_id, self._fates[event_id] & ~Fate.SAVED)
        for event_id in now - self._saved:
            self._add(event_id, Fate.SAVED | Fate.WAS_SAVED)
        self._saved = now

    def balance(self) -> Balance:
        """Return the figures as they are now."""
        paid = Fate.PAID
        broken_delivered = Fate.BROKEN | Fate.DELIVERED
        return Balance(
            paid=self._count(paid),
            delivered=self._count(paid | Fate.DELIVERED),
            dead_lettered=self._count(paid | Fate.DEAD_LETTERED, without=Fate.DELIVERED),
            saved=self._count(paid | Fate.SAVED, without=Fate.DELIVERED | Fate.DEAD_LETTERED),
            replayed=self._count(paid | Fate.WAS_SAVED, without=Fate.SAVED),
            open=self._count(paid, without=FINISHED),
            refusals=self._refusals,
            duplicates=self._duplicates,
            repeated_dead_letters=self._repeated_dead_letters,
            in_both=self._count(Fate.DELIVERED | Fate.DEAD_LETTERED),
            broken=self._count(paid | Fate.BROKEN),
            broken_delivered=self._count(broken_delivered),
            strangers=self._count(Fate.UNKNOWN, without=Fate.PAID),
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
        return sum(
            number
            for fate, number in self._numbers.items()
            if fate & having == having and not fate & without
        )

    def _ids(self, having: Fate, without: Fate = Fate.UNKNOWN) -> list[str]:
        return [
            event_id
            for event_id, fate in self._fates.items()
            if fate & having == having and not fate & without
        ]
