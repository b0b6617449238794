"""The ledger of an audit, after letters have left their topic."""

from collections import Counter

from order_relay.cli.audit_ledger import Evidence, Ledger, State
from order_relay.deliveries.entries import entry_key, make_entry, order_of_key
from order_relay.delivery.outcome import Outcome
from order_relay.delivery.progress import Commit
from order_relay.model.events import Events
from order_relay.model.order_paid import OrderPaid
from tests.support.fakes import record

BROKEN = b"no JSON"


def test_broken_records_are_accounted_for_after_their_letters_were_purged() -> None:
    """The table has them under their key; those without a key are not missing."""
    with_key, without = record(0, "7", value=BROKEN), record(1, None, value=BROKEN)
    order_id = order_of_key(with_key)
    assert order_id == 7
    entry = make_entry(with_key, order_id, Outcome(delivered=False, attempts=0), 1, None)
    evidence = Evidence(commit=Commit(4, ""), entries={entry_key(order_id): entry})
    ledger = Ledger("order_logging", Events(OrderPaid), listed=frozenset(), limit=1)
    for one in (with_key, without):
        ledger.add(one, evidence)
    assert ledger.counts == Counter({State.LETTER_GONE: 1, State.FINISHED: 1})
    assert ledger.closes

    ledger.add(record(2, "8", value=BROKEN), evidence)  # finished, but not in the table
    ledger.add(record(3, "9"), evidence)
    assert ledger.counts[State.UNACCOUNTED] == 2
    assert not ledger.closes
