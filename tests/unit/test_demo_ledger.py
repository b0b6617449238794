"""The ledgers: every order must be accounted for, in any order of facts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from demo.ledger import ConsumerLedger, Ledger
from demo.view import consumer_report

IDS = st.sampled_from(["a", "b", "c", "d"])
FACTS = st.lists(
    st.tuples(
        st.sampled_from(["paid", "broken", "delivered", "dead_lettered", "saved", "replayed"]), IDS
    ),
    max_size=40,
)


def pay(ledger: Ledger, *event_ids: str) -> None:
    """Pay these orders."""
    for event_id in event_ids:
        ledger.paid(event_id)


@given(FACTS)
def test_counts_as_sets_of_ids_do(facts: list[tuple[str, str]]) -> None:
    """Facts in any order and any number give the figures that comparing sets gives."""
    ledger = Ledger()
    paid, broken, still_saved, was_saved = set[str](), set[str](), set[str](), set[str]()
    deliveries, letters = Counter[str](), Counter[str]()
    for fact, event_id in facts:
        match fact:
            case "paid" | "broken":
                ledger.paid(event_id, broken=fact == "broken")
                paid.add(event_id)
                if fact == "broken":
                    broken.add(event_id)
            case "delivered":
                ledger.delivered(event_id)
                deliveries[event_id] += 1
            case "dead_lettered":
                ledger.dead_lettered(event_id, "rejected")
                letters[event_id] += 1
            case "saved":
                still_saved.add(event_id)
                was_saved.add(event_id)
                ledger.saved_for_replay(still_saved)
            case "replayed":
                still_saved.discard(event_id)
                ledger.saved_for_replay(still_saved)
    balance = ledger.balance()
    delivered, dead = set(deliveries), set(letters)
    assert balance.paid == len(paid)
    assert balance.delivered == len(paid & delivered)
    assert balance.dead_lettered == len(paid & dead - delivered)
    assert balance.saved == len(paid & still_saved - dead - delivered)
    assert balance.replayed == len(paid & was_saved - still_saved)
    assert balance.in_both == len(delivered & dead)
    assert balance.repeated_dead_letters == letters.total() - len(dead)
    assert balance.duplicates == deliveries.total() - len(delivered)
    assert set(ledger.missing()) == paid - delivered - dead - still_saved
    assert balance.open == len(ledger.missing())
    assert balance.finished + balance.open == balance.paid
    strangers = (delivered | dead | was_saved) - paid
    # A broken message that reaches the logger is wrong, and so is what was never paid.
    assert sorted(ledger.wrong()) == sorted(broken & delivered | strangers)
    assert balance.wrong == len(ledger.wrong())
    assert balance.closes is not bool(ledger.missing() or ledger.wrong())


def ledger_of(paid: int, **outcomes: int) -> ConsumerLedger:
    """A consumer's ledger with so many orders, and the worker's figures."""
    orders = Ledger()
    pay(orders, *map(str, range(paid)))
    ledger = ConsumerLedger("coupons", orders)
    ledger.tell({"deliveries": outcomes, "partitions": [{"topic": "order-paid-events"}]})
    return ledger


def test_a_consumers_ledger_closes_when_every_order_is_somewhere() -> None:
    """Handled, not handled again and dead-lettered add up to the orders that are in Kafka."""
    ledger = ledger_of(11, delivered=6, duplicate=1, skipped=1, dead_lettered=2)
    assert ledger.open == 1
    ledger.orders.saved_for_replay(["10"])
    assert (ledger.handled, ledger.not_handled_again, ledger.dead_lettered) == (6, 2, 2)
    assert ledger.open == 0
    lines = consumer_report(ledger, interrupted=False)
    assert lines[0] == "Ledger of coupons, says the worker"
    assert "  orders in Kafka                          10" in lines
    assert lines[-1] == "The ledger of coupons closes: 10 in Kafka, 10 accounted for."


def test_what_is_missing_keeps_a_consumers_ledger_open() -> None:
    """A missing order is reported; after Ctrl-C it waits, and is not lost.

    Records abandoned at the stop come again: they stay open.
    """
    ledger = ledger_of(3, delivered=2, abandoned=1)
    assert (ledger.finished, ledger.open) == (2, 1)
    lines = consumer_report(ledger, interrupted=False)
    assert "    NOT ACCOUNTED FOR                       1" in lines
    assert lines[-1] == "THE LEDGER OF coupons DOES NOT CLOSE: 3 in Kafka, 2 accounted for."
    lines = consumer_report(ledger, interrupted=True)
    assert "  + waiting in Kafka                        1" in lines
    assert lines[-1] == "Stopped before the end of coupons: 3 in Kafka, 2 accounted for."


def test_a_consumer_of_another_topic_need_not_account_for_orders() -> None:
    """Only its own records count."""
    ledger = ledger_of(3)
    ledger.tell({"deliveries": {"delivered": 1}, "partitions": [{"topic": "refunds"}]})
    assert (ledger.published, ledger.open) == (1, 0)
