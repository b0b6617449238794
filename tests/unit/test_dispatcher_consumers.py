"""What differs between consumers: events, keys, functions, and whose letters they take."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from order_relay import Delivery, OrderPaid
from order_relay.delivery.answer import Answer, Verdict
from order_relay.model.events import Events
from tests.support.fakes import Bench, record
from tests.support.orders import order_value

pytestmark = pytest.mark.virtual_time

OK = Answer(Verdict.SUCCESS, failure="function")


class Refund(msgspec.Struct):
    """An event that is not ORDER_PAID."""

    refundId: int  # noqa: N815
    orderId: int = 0  # noqa: N815


class Panic(BaseException):
    """As Rust extensions raise it."""


def panic(event: Any) -> Any:
    """Raise it."""
    raise Panic


class FailsWhenMade(Refund):
    """Its own code accepts no event."""

    def __post_init__(self) -> None:
        raise KeyError("no such refund")


class PaidLater(OrderPaid, frozen=True):
    """Its own code accepts an event without a time."""

    def __post_init__(self) -> None:
        """Check nothing."""


class PaidBy(msgspec.Struct):
    """Its time may be missing."""

    payments: list[str]

    @property
    def paidAt(self) -> str:  # noqa: N802
        """The time of the first payment."""
        return self.payments[0]


class Text(str):
    """Text of a class of its own."""

    __slots__ = ()


class NoText:
    """What cannot be text."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Calls:
    """A handler that records calls, and answers as told."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[Any, Delivery]] = []

    async def handle(self, event: Any, delivery: Delivery) -> Answer:
        """See ``EventHandler``."""
        self.seen.append((event, delivery))
        return self.answers.pop(0) if self.answers else OK


def consumer_of(calls: Calls, events: Events, **options: Any) -> Bench:
    """The relay of a consumer with a function."""
    return Bench(target=calls, consumer="refunds", events=events, **options)


async def test_a_function_gets_event_and_delivery() -> None:
    """The attempt counts up, the idempotency key stays; the outcome has the order's id."""
    failed = Answer(Verdict.RETRYABLE, detail="ValueError: no", failure="function")
    consumer = consumer_of(calls := Calls(failed, OK), Events(Refund))
    one = record(3, "7", value=b'{"refundId":9,"orderId":7}', headers=[("event-id", b"r-9")])
    await consumer.deliver(one)
    assert [event for event, _ in calls.seen] == [Refund(9, 7)] * 2
    first, second = (delivery for _, delivery in calls.seen)
    assert first == Delivery(
        "refunds", "r-9", 1, one.topic, one.partition, 3, one.key, one.value or b"",
        one.headers, one.timestamp_ms,
    )  # fmt: skip
    assert (second.attempt, second.idempotency_key) == (2, "r-9")
    assert consumer.outcomes[0].order_id == 7


async def test_an_attempt_sees_no_changes_of_the_last_one() -> None:
    """A handler that removes items from its event and fails gets all of them again."""
    taken: list[str] = []

    class Takes(Calls):
        async def handle(self, event: Any, delivery: Delivery) -> Answer:
            taken.append(event.payments.pop())
            return await super().handle(event, delivery)

    consumer = consumer_of(Takes(Answer(Verdict.RETRYABLE)), Events(PaidBy))
    await consumer.deliver(record(0, "a", value=b'{"payments":["card"]}'))
    assert taken == ["card", "card"]


@pytest.mark.parametrize("kind", [Refund, bytes])
async def test_values_that_are_not_events_of_the_consumer(kind: Any) -> None:
    """Its letter says what it should have been; bytes are always an event, except tombstones."""
    consumer = consumer_of(calls := Calls(), Events(kind))
    await consumer.deliver(record(0, "a", value=b'{"other":1}'), record(1, "b", value=None))
    reasons = sorted(letter.reason for letter in consumer.dead_letters.letters)
    if kind is bytes:
        assert reasons == ["tombstone"]
        assert [event for event, _ in calls.seen] == [b'{"other":1}']
    else:
        assert reasons == ["invalid_event", "tombstone"]
        messages = [letter.message for letter in consumer.dead_letters.letters]
        assert any("not a Refund: " in message for message in messages)


async def test_an_event_whose_own_check_fails_is_a_dead_letter() -> None:
    """The letter has the error that it raised."""
    consumer = consumer_of(calls := Calls(), Events(FailsWhenMade))
    await consumer.deliver(record(0, "a", value=b'{"refundId":1}'))
    (letter,) = consumer.dead_letters.letters
    assert letter.reason == "invalid_event"
    assert letter.message == "not a FailsWhenMade: KeyError('no such refund')"
    assert not calls.seen


@pytest.mark.parametrize(
    ("kind", "value"), [(PaidBy, b'{"payments":[]}'), (PaidLater, order_value(7, paidAt="later"))]
)
async def test_an_event_whose_time_fails_is_handled_once(kind: Any, value: bytes) -> None:
    """The relay only measures with it."""
    consumer = consumer_of(calls := Calls(), Events(kind))
    await consumer.deliver(record(0, "a", value=value))
    assert len(calls.seen) == 1
    assert consumer.outcomes[0].delivered


async def test_a_redriven_letter_of_another_consumer_is_skipped() -> None:
    """It is finished, and not handled; one's own is handled."""
    consumer = consumer_of(calls := Calls(), Events(bytes))
    await consumer.deliver(
        record(0, "a", value=b"theirs", headers=[("dlq-consumer", b"order_logging")]),
        record(1, "b", value=b"ours", headers=[("dlq-consumer", b"refunds")]),
    )
    assert [event for event, _ in calls.seen] == [b"ours"]
    assert consumer.observer.skipped_records == 1
    assert not consumer.dead_letters.letters


async def test_a_key_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The record's own key is used, with one warning; there is none for an invalid event."""
    consumer = consumer_of(Calls(), Events(Refund), key=lambda refund: refund.nothing)
    await consumer.deliver(record(0, "a", value=b"{}"))
    assert "key=" not in caplog.text
    await consumer.deliver(*(record(n, "a", value=b'{"refundId":1}') for n in (1, 2)))
    assert caplog.text.count("Consumer's key= failed") == 1
    assert "detail=\"AttributeError: 'Refund' object has no attribute 'nothing'\"" in caplog.text


async def test_a_subject_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The events are delivered without an id. A subject may return None."""
    consumer = consumer_of(calls := Calls(), Events(Refund, subject=lambda refund: None))
    await consumer.deliver(record(0, "a", value=b'{"refundId":1}'))
    assert "subject=" not in caplog.text
    consumer = consumer_of(calls, Events(Refund, subject=lambda refund: refund.nothing))
    await consumer.deliver(*(record(n, "a", value=b'{"refundId":1}') for n in (1, 2)))
    assert len(calls.seen) == 3
    assert caplog.text.count("Consumer's subject= failed") == 1
    assert "detail=\"AttributeError: 'Refund' object has no attribute 'nothing'\"" in caplog.text


async def test_a_key_of_the_consumers_own_orders_events() -> None:
    """Two records with different keys are sent in order if ``key`` gives them the same one."""
    order: list[str] = []

    class Slow(Calls):
        async def handle(self, event: Any, delivery: Delivery) -> Answer:
            order.append(f"{delivery.offset} begins")
            await asyncio.sleep(1)
            order.append(f"{delivery.offset} ends")
            return OK

    for key, expected in [
        (lambda refund: refund.orderId, ["0 begins", "0 ends", "1 begins", "1 ends"]),
        (lambda refund: refund.refundId, ["0 begins", "1 begins", "0 ends", "1 ends"]),
        # No order, as for records without a key.
        (lambda refund: None, ["0 begins", "1 begins", "0 ends", "1 ends"]),
        # Its error is ignored: the records' own keys are used.
        (lambda refund: refund.nothing, ["0 begins", "1 begins", "0 ends", "1 ends"]),
        (lambda refund: sys.exit(3), ["0 begins", "1 begins", "0 ends", "1 ends"]),
        (lambda refund: NoText(), ["0 begins", "1 begins", "0 ends", "1 ends"]),
        (panic, ["0 begins", "1 begins", "0 ends", "1 ends"]),
    ]:
        order.clear()
        consumer = consumer_of(Slow(), Events(Refund), key=key)
        await consumer.deliver(
            record(0, "a", value=b'{"refundId":1,"orderId":7}'),
            record(1, "b", value=b'{"refundId":2,"orderId":7}'),
        )
        assert order == expected


@pytest.mark.parametrize(
    ("subject", "found"),
    [
        (None, 7),
        (lambda refund: f"refund {refund.refundId}", "refund 9"),
        (lambda refund: Text("r-9"), "r-9"),
        (lambda refund: refund.nothing, None),
        (lambda refund: sys.exit(3), None),
        (panic, None),
        (lambda refund: 10**5000, None),  # Python does not print it
        (lambda refund: 7.5, None),
        (lambda refund: True, None),
        (lambda refund: "", None),
    ],
)
def test_what_an_event_is_about(subject: Callable[[Any], Any] | None, found: object) -> None:
    """An id, of no other class, or None: an error of the consumer's function is harmless."""
    about = Events(Refund, subject=subject).subject(Refund(9, 7))
    assert (type(about), about) == (type(found), found)
    assert Events(bytes).subject(b"7") is None
