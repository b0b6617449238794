"""The ledger: honest about every id, whatever the order of the facts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.quickstart.ledger import Ledger

IDS = st.sampled_from(["a", "b", "c", "d"])
FACTS = st.lists(
    st.tuples(
        st.sampled_from(["paid", "broken", "published", "delivered", "dead_lettered", "saved"]), IDS
    ),
    max_size=40,
)


def settled(ledger: Ledger, *event_ids: str) -> None:
    """Let these be paid and acknowledged."""
    for event_id in event_ids:
        ledger.paid(event_id)
        ledger.published(event_id)


def test_closes_when_every_payment_is_somewhere() -> None:
    """Delivered, dead-lettered and saved add up to paid."""
    ledger = Ledger()
    settled(ledger, "a", "b", "c")
    ledger.delivered("a")
    ledger.dead_lettered("b", "rejected")
    ledger.saved_for_replay("c")
    balance = ledger.balance()
    assert balance.closes
    assert (balance.paid, balance.delivered, balance.dead_lettered, balance.saved) == (3, 1, 1, 1)
    assert balance.dead_letter_reasons == {"rejected": 1}


def test_names_what_is_missing() -> None:
    """An id that nobody has seen again keeps the ledger open, and is named."""
    ledger = Ledger()
    settled(ledger, "a", "b")
    ledger.delivered("b")
    assert not ledger.balance().closes
    assert ledger.missing() == ["a"]
    assert ledger.balance().open == 1


def test_a_payment_kafka_never_took_keeps_it_open() -> None:
    """A payment without Kafka's acknowledgement is no order in Kafka, and no closed ledger."""
    ledger = Ledger()
    ledger.paid("a")
    ledger.refused()
    balance = ledger.balance()
    assert (balance.taken, balance.paid, balance.refusals) == (1, 0, 1)
    assert not balance.closes
    assert ledger.never_published() == ["a"]
    ledger.published("a")
    ledger.delivered("a")
    assert ledger.balance().closes


def test_counts_duplicates_beyond_the_first() -> None:
    """A second and third 2xx for one id are two duplicates; the order counts once."""
    ledger = Ledger()
    settled(ledger, "a")
    assert [ledger.delivered("a") for _ in range(3)] == [True, False, False]
    balance = ledger.balance()
    assert (balance.delivered, balance.duplicates) == (1, 2)
    assert balance.closes


def test_an_order_in_both_places_counts_once() -> None:
    """Delivered and dead-lettered is one order, and is said."""
    ledger = Ledger()
    settled(ledger, "a")
    ledger.dead_lettered("a", "retries_exhausted")
    ledger.delivered("a")
    ledger.dead_lettered("a", "retries_exhausted")
    balance = ledger.balance()
    assert (balance.delivered, balance.dead_lettered, balance.in_both) == (1, 0, 1)
    assert balance.repeated_dead_letters == 1
    assert balance.closes


def test_a_broken_message_must_be_a_dead_letter() -> None:
    """A broken message that reaches the logger keeps the ledger open."""
    ledger = Ledger()
    ledger.paid("a", broken=True)
    ledger.published("a")
    ledger.delivered("a")
    assert ledger.balance().broken_delivered == 1
    assert not ledger.balance().closes
    assert ledger.wrong() == ["a"]


@pytest.mark.parametrize("where", ["delivered", "dead_lettered"])
def test_strangers_keep_it_open(where: str) -> None:
    """An id that was never paid has no business at the logger or among the dead letters."""
    ledger = Ledger()
    if where == "delivered":
        ledger.delivered("x")
    else:
        ledger.dead_lettered("x", "rejected")
    assert ledger.balance().strangers == 1
    assert not ledger.balance().closes
    assert ledger.wrong() == ["x"]


@dataclass
class Model:
    """The same ledger as plain sets."""

    paid: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    published: set[str] = field(default_factory=set)
    delivered: Counter[str] = field(default_factory=Counter)
    dead: set[str] = field(default_factory=set)
    saved: set[str] = field(default_factory=set)


@given(FACTS)
def test_counts_as_sets_of_ids_do(facts: list[tuple[str, str]]) -> None:
    """Facts in any order and any number give the figures that comparing sets gives."""
    ledger, model = Ledger(), Model()
    for fact, event_id in facts:
        match fact:
            case "paid" | "broken":
                ledger.paid(event_id, broken=fact == "broken")
                model.paid.add(event_id)
                if fact == "broken":
                    model.broken.add(event_id)
            case "published":
                ledger.published(event_id)
                model.published.add(event_id)
            case "delivered":
                ledger.delivered(event_id)
                model.delivered[event_id] += 1
            case "dead_lettered":
                ledger.dead_lettered(event_id, "rejected")
                model.dead.add(event_id)
            case "saved":
                ledger.saved_for_replay(event_id)
                model.saved.add(event_id)
    balance = ledger.balance()
    in_kafka = model.paid & model.published
    delivered = set(model.delivered)
    assert balance.taken == len(model.paid)
    assert balance.paid == len(in_kafka)
    assert balance.delivered == len(in_kafka & delivered)
    assert balance.dead_lettered == len(in_kafka & model.dead - delivered)
    assert balance.saved == len(in_kafka & model.saved - model.dead - delivered)
    assert balance.duplicates == model.delivered.total() - len(delivered)
    assert set(ledger.missing()) == in_kafka - delivered - model.dead - model.saved
    assert set(ledger.never_published()) == model.paid - model.published
    assert balance.open == len(ledger.missing())
    assert balance.finished + balance.open == balance.paid
    assert balance.broken_delivered == len(model.broken & delivered)
    assert balance.strangers == len(
        (model.published | delivered | model.dead | model.saved) - model.paid
    )
