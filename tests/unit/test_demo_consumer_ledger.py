"""The ledger of a consumer beside order_logging: every record must be accounted for."""

from __future__ import annotations

import struct

import pytest
from confluent_kafka import Message

from demo.ledger import ConsumerLedger
from demo.view import consumer_report

TOPIC = "order-paid-events"


def ledger_of(published: int, *, has_service: bool = False) -> ConsumerLedger:
    """A ledger with so many records in the topic."""
    ledger = ConsumerLedger("coupons", TOPIC, has_service=has_service)
    for offset in range(published):
        ledger.count_record(Message(topic=TOPIC, partition=0, offset=offset))
    return ledger


def dead_letter(offset: int) -> Message:
    """The dead letter of a record of partition 0."""
    return Message(
        topic=f"{TOPIC}.coupons.DLQ",
        headers=[
            ("kafka_dlt-original-partition", struct.pack(">i", 0)),
            ("kafka_dlt-original-offset", struct.pack(">q", offset)),
        ],
    )


def test_closes_when_every_record_is_somewhere() -> None:
    """Handled, not handled again and dead-lettered add up to published; a repeat counts once."""
    ledger = ledger_of(10)
    ledger.outcomes = {"delivered": 6, "duplicate": 1, "skipped": 1, "dead_lettered": 2}
    ledger.count_dead_letter(dead_letter(3))
    ledger.count_dead_letter(dead_letter(4))
    ledger.count_dead_letter(dead_letter(4))
    assert (ledger.handled, ledger.not_handled_again, ledger.dead_lettered) == (6, 2, 2)
    assert ledger.repeated_dead_letters == 1
    assert ledger.closes
    lines = consumer_report(ledger, interrupted=False)
    assert lines[0] == "Ledger of coupons"
    assert "  published to order-paid-events           10" in lines
    assert "  dead letters beyond the first             1" in lines
    assert lines[-1] == "The ledger of coupons closes: 10 published, 10 accounted for."


def test_a_dead_letter_that_only_the_worker_tells_of_is_none() -> None:
    """Dead letters are counted in their topic."""
    ledger = ledger_of(1)
    ledger.outcomes = {"dead_lettered": 1}
    assert not ledger.closes


def test_what_the_worker_gave_back_unfinished_is_open() -> None:
    """Records abandoned at the stop come again: they are no end, and keep the ledger open."""
    ledger = ledger_of(3)
    ledger.outcomes = {"delivered": 1, "abandoned": 2}
    assert (ledger.finished, ledger.open) == (1, 2)
    assert not ledger.closes


def test_what_is_missing_keeps_it_open() -> None:
    """A record that nobody accounts for is told; after Ctrl-C it waits, and is no loss."""
    ledger = ledger_of(3)
    ledger.outcomes = {"delivered": 2}
    assert not ledger.closes
    assert not ledger.goes_wrong
    lines = consumer_report(ledger, interrupted=False)
    assert "    NOT ACCOUNTED FOR                       1" in lines
    assert lines[-1] == "THE LEDGER OF coupons DOES NOT CLOSE: 3 published, 2 accounted for."
    lines = consumer_report(ledger, interrupted=True)
    assert "  + waiting in Kafka                        1" in lines
    assert lines[-1] == "Stopped before the end of coupons: 3 published, 2 accounted for."


@pytest.mark.parametrize(("handled", "received"), [(3, 3), (2, 1)])
def test_more_than_there_was_goes_wrong(handled: int, received: int) -> None:
    """More handled than published, or than the service got, is wrong, also after Ctrl-C."""
    ledger = ledger_of(2, has_service=True)
    ledger.outcomes = {"delivered": handled}
    for number in range(received):
        ledger.count_receipt(f"event-{number}")
        ledger.count_receipt(f"event-{number}")
    assert ledger.received == received
    assert ledger.goes_wrong
    assert not ledger.closes
    assert "THE LEDGER OF coupons DOES NOT CLOSE" in consumer_report(ledger, interrupted=True)[-1]


def test_a_service_that_got_all_is_told() -> None:
    """The receipts of the consumer's service stand beside what was handled."""
    ledger = ledger_of(2, has_service=True)
    ledger.outcomes = {"delivered": 2}
    ledger.count_receipt("a")
    ledger.count_receipt("b")
    assert ledger.closes
    lines = consumer_report(ledger, interrupted=False)
    assert "  = handled, says the worker                2   its service said 2xx: 2" in lines
