"""The ledgers: what became of every order.

The ledger of orders is told each fact by where the fact is: the shop's database, the sample
logger's own answers, the dead-letter topic itself. It never asks the worker. The ledger of a
further consumer is what the worker says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from order_relay.settings import Settings

ORDER_TOPIC = Settings.model_fields["order_paid_topic"].default


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
_BROKEN_DELIVERED = Fate.PAID | Fate.BROKEN | Fate.DELIVERED


@dataclass(frozen=True, slots=True)
class Balance:
    """The ledger's figures at one moment. Each event is counted in one place only."""

    paid: int  # orders committed in the shop's database; the next five are of these
    broken: int  # their messages are no valid JSON
    delivered: int  # the logger answered 2xx
    dead_lettered: int  # in the dead-letter topic and not delivered
    saved: int  # saved for replay, neither delivered nor dead-lettered
    replayed: int  # were saved, and have reached Kafka since
    open: int  # paid, and not finished in any of the three ways
    duplicates: int  # 2xx answers beyond the first for an event
    repeated_dead_letters: int  # dead letters beyond the first for an event
    in_both: int  # events that were delivered and also dead-lettered
    wrong: int  # events that were never paid, and broken ones that the logger got all the same
    dead_letter_reasons: dict[str, int]  # dead-lettered events by reason

    @property
    def finished(self) -> int:
        """Events that are accounted for."""
        return self.paid - self.open

    @property
    def closes(self) -> bool:
        """Every payment is accounted for, and nothing is there that should not be."""
        return not self.open and not self.wrong


class Ledger:
    """Keeps the fate of every event id. Facts may come in any order and more than once."""

    def __init__(self) -> None:
        self._fates: dict[str, Fate] = {}
        # How many events share a fate: the figures without going through all of them.
        self._numbers: Counter[Fate] = Counter()
        self._reasons: Counter[str] = Counter()
        self._saved: frozenset[str] = frozenset()
        self._duplicates = 0
        self._repeated_dead_letters = 0

    def paid(self, event_id: str, *, broken: bool = False) -> None:
        """The order is committed; ``broken`` if its message is not valid JSON."""
        self._add(event_id, Fate.PAID | (Fate.BROKEN if broken else Fate.UNKNOWN))

    def delivered(self, event_id: str) -> None:
        """The logger answered 2xx."""
        self._duplicates += not self._add(event_id, Fate.DELIVERED)

    def dead_lettered(self, event_id: str, reason: str) -> None:
        """The event was read from the dead-letter topic."""
        first = self._add(event_id, Fate.DEAD_LETTERED)
        self._reasons[reason] += first
        self._repeated_dead_letters += not first

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
            broken=count(paid | Fate.BROKEN),
            delivered=count(paid | Fate.DELIVERED),
            dead_lettered=count(paid | Fate.DEAD_LETTERED, without=Fate.DELIVERED),
            saved=count(paid | Fate.SAVED, without=Fate.DELIVERED | Fate.DEAD_LETTERED),
            replayed=count(paid | Fate.WAS_SAVED, without=Fate.SAVED),
            open=count(paid, without=FINISHED),
            duplicates=self._duplicates,
            repeated_dead_letters=self._repeated_dead_letters,
            in_both=count(Fate.DELIVERED | Fate.DEAD_LETTERED),
            wrong=count(Fate.UNKNOWN, without=paid) + count(_BROKEN_DELIVERED),
            dead_letter_reasons=dict(self._reasons.most_common()),
        )

    def missing(self) -> list[str]:
        """Return the ids that were paid and are not finished, in order of payment."""
        return self._ids(Fate.PAID, without=FINISHED)

    def wrong(self) -> list[str]:
        """Return the ids that were never paid, and those delivered though broken."""
        return self._ids(Fate.UNKNOWN, without=Fate.PAID) + self._ids(_BROKEN_DELIVERED)

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


@dataclass
class ConsumerLedger:
    """How the deliveries of a consumer beside order_logging ended, as the worker says."""

    name: str
    orders: Ledger
    handled: int = 0  # its handler returned
    not_handled_again: int = 0  # duplicates, and redriven dead letters of other consumers
    dead_lettered: int = 0
    reads_orders: bool = True  # the topic of the shop's orders, not another one

    def tell(self, stats: Mapping[str, Any]) -> bool:
        """Take in what the worker says at ``/stats``; returns whether more is finished."""
        before = self.finished
        # What was abandoned at a stop comes again, so it is not finished.
        outcomes = Counter[str](stats["deliveries"])
        self.handled, self.dead_lettered = outcomes["delivered"], outcomes["dead_lettered"]
        self.not_handled_again = outcomes["duplicate"] + outcomes["skipped"]
        if topics := {row["topic"] for row in stats["partitions"]}:
            self.reads_orders = ORDER_TOPIC in topics
        return self.finished != before

    @property
    def finished(self) -> int:
        """Records that are accounted for."""
        return self.handled + self.not_handled_again + self.dead_lettered

    @property
    def published(self) -> int:
        """Orders that have reached Kafka, as far as it reads them."""
        balance = self.orders.balance()
        return balance.paid - balance.saved if self.reads_orders else self.finished

    @property
    def open(self) -> int:
        """Orders that are not accounted for."""
        return max(self.published - self.finished, 0)
