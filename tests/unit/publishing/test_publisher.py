"""A publish ends in Kafka, in the table or with an error; in an outage, in the table at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from order_relay.errors import DatabaseUnavailable, InvalidEvent, PublishFailed, RecordTooLarge
from order_relay.fallback.store import NewMessage
from order_relay.publishing.publisher import Published, Publisher, Saved
from tests.support.memory_store import MemoryFallbackStore
from tests.support.orders import order_value
from tests.support.publish_fakes import FakeProducer, forgive, refusal
from tests.support.waiting import eventually

pytestmark = pytest.mark.virtual_time


class Bench:
    """A publisher with a fake producer and a store in memory."""

    def __init__(self, *, reachable: bool = True) -> None:
        self.producer = FakeProducer(reachable=reachable)
        self.store = MemoryFallbackStore()
        self.results: list[str] = []
        self.publisher = Publisher(
            self.producer, self.store, "orders", max_retry=5, on_result=self.results.append
        )

    @property
    def rows(self) -> list[Any]:
        return list(self.store.rows.values())

    def publish(self, order_id: int = 1, **options: Any) -> asyncio.Task[Published | Saved]:
        """Publish in a task; it may end in an error."""
        return asyncio.create_task(self.publisher.publish(order_value(order_id), **options))


async def test_acknowledged() -> None:
    """Kafka's answer is returned; the record has the event's bytes, its key and its id."""
    bench = Bench()
    value = order_value(7, extra=1)
    outcome = await bench.publisher.publish(value, event_id="e-7", headers=[("trace", b"t")])
    assert outcome == Published("orders", 0, 0, "e-7")
    (sent,) = bench.producer.sent
    assert (sent.key, sent.value) == (b"7", value)
    assert sent.headers == (("trace", b"t"), ("event-id", b"e-7"))
    assert bench.rows == []
    assert bench.results == ["acknowledged"]
    again = await bench.publisher.publish(value, key=b"k")
    assert again.event_id == bench.producer.sent[1].event_id != "e-7"
    assert bench.producer.sent[1].key == b"k"


async def test_saved_when_kafka_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """What Kafka refuses is a row with the reason, the same headers, and a log line."""
    bench = Bench()
    bench.producer.refuse = lambda _: refusal()
    with caplog.at_level(logging.WARNING):
        outcome = await bench.publisher.publish(order_value(7), event_id="e-7")
    assert isinstance(outcome, Saved)
    row = bench.store.rows[outcome.row_id]
    assert (row.topic, row.key, row.payload) == ("orders", b"7", order_value(7))
    assert row.headers == (("event-id", b"e-7"),)
    assert row.max_retry == 5
    assert row.error_message == outcome.reason == str(refusal())
    assert "Saved fallback message" in caplog.text
    assert bench.results == ["saved"]


async def test_both_refuse() -> None:
    """The caller gets an error with both causes."""
    bench = Bench()
    bench.producer.refuse = lambda _: refusal()
    bench.store.error = DatabaseUnavailable("disk full")
    with pytest.raises(PublishFailed, match="disk full") as caught:
        await bench.publisher.publish(order_value(7), event_id="e-7")
    assert "NOT_ENOUGH_REPLICAS" in str(caught.value)
    assert caught.value.kafka_error.args == refusal().args
    assert caught.value.database_error is bench.store.error
    assert caught.value.event_id == "e-7"
    forgive()
    assert bench.results == ["failed"]


async def test_invalid_events_do_nothing() -> None:
    """An event of another shape, or an event id that a header cannot hold, is refused at once."""
    bench = Bench()
    for event in (b"{}", b"\xff", {"eventType": "X"}, {"eventType": object()}):
        with pytest.raises(InvalidEvent):
            await bench.publisher.publish(event)
    with pytest.raises(InvalidEvent, match="event-id"):
        await bench.publisher.publish(order_value(1), event_id="a\nb")
    assert bench.producer.sent == []
    assert bench.rows == []
    assert set(bench.results) == {"invalid"}


async def test_too_large_is_the_callers_fault() -> None:
    """An event over Kafka's limit is an error: replay could never publish it either."""
    bench = Bench()
    bench.producer.refuse = lambda _: RecordTooLarge("orders", 5)
    with pytest.raises(RecordTooLarge):
        await bench.publisher.publish(order_value(1))
    assert bench.rows == []
    forgive()


async def test_an_unexpected_error_is_saved_too() -> None:
    """Whatever error Kafka's client raises, the event is not lost."""
    bench = Bench()
    bench.producer.refuse = lambda _: RuntimeError("a bug")
    assert isinstance(await bench.publisher.publish(order_value(1)), Saved)


async def test_a_cancelled_publish_goes_on() -> None:
    """Cancelling the caller does not cancel the event; close waits for it."""
    bench = Bench()
    bench.producer.latency_seconds = 2
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await bench.publisher.publish(order_value(1))
    assert bench.publisher.in_flight == 1
    await bench.publisher.close(grace_seconds=5)
    assert len(bench.producer.acknowledged) == 1
    assert bench.rows == []


async def test_close_saves_what_kafka_has_not_answered() -> None:
    """After the grace, events that wait for Kafka are saved and their callers told."""
    bench = Bench()
    bench.producer.answers.clear()
    waiting = [bench.publish(n) for n in range(1, 4)]
    await asyncio.sleep(1)
    await bench.publisher.close(grace_seconds=5)
    outcomes = await asyncio.gather(*waiting)
    assert [type(outcome) for outcome in outcomes] == [Saved] * 3
    assert len(bench.rows) == 3
    assert asyncio.get_running_loop().time() == pytest.approx(6)
    after = await bench.publisher.publish(order_value(9))
    assert isinstance(after, Saved)
    assert len(bench.producer.sent) == 3


async def test_close_ends_though_events_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each save takes longer than the time until the next event."""
    bench = Bench()
    save = bench.store.save

    async def slow_save(message: NewMessage) -> int:
        await asyncio.sleep(1)
        return await save(message)

    monkeypatch.setattr(bench.store, "save", slow_save)

    async def sell() -> None:
        async with asyncio.TaskGroup() as publishes:
            for number in range(60):
                publishes.create_task(bench.publisher.publish(order_value(number)))
                await asyncio.sleep(0.5)

    bench.producer.answers.clear()
    selling = asyncio.create_task(sell())
    await asyncio.sleep(1)
    await bench.publisher.close(grace_seconds=5)
    assert asyncio.get_running_loop().time() < 10
    await selling
    assert len(bench.rows) == 60


async def test_an_event_of_an_outage_that_the_database_refuses() -> None:
    """The error has both reasons: the outage of Kafka, and the database's error."""
    bench = Bench()
    bench.producer.answers.clear()
    bench.store.error = DatabaseUnavailable("disk full")
    waiting = bench.publish()
    await asyncio.sleep(1)
    bench.publisher.outage = "no broker answers"
    bench.publisher.save_waiting()
    with pytest.raises(PublishFailed, match="no broker answers; the database refused: disk full"):
        await waiting
    forgive()


async def test_close_reports_lost_events(caplog: pytest.LogCaptureFixture) -> None:
    """If its caller has left, an event that was not saved is logged as an error."""
    bench = Bench()
    bench.producer.latency_seconds = 2
    bench.producer.refuse = lambda _: refusal()
    bench.store.error = DatabaseUnavailable("disk full")
    task = bench.publish(event_id="e-1")
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    try:
        await bench.publisher.close()
    finally:
        forgive()
    assert "event e-1 was neither published nor saved" in caplog.text


def test_the_end_of_the_loop_saves() -> None:
    """If the loop ends during a publish, the event is saved first."""
    bench = Bench()

    async def main() -> None:
        bench.producer.answers.clear()
        task = bench.publish()
        await eventually(lambda: bench.producer.sent)
        assert not task.done()

    asyncio.run(main())
    assert len(bench.rows) == 1


async def test_two_questions_without_an_answer_make_an_outage_and_one_answer_ends_it() -> None:
    """One lost answer does not begin an outage; the first answer ends it."""
    bench = Bench()
    asking = asyncio.create_task(bench.publisher.watch())
    await asyncio.sleep(1)
    bench.producer.reachable = False
    await asyncio.sleep(2)
    assert (bench.producer.pings, bench.publisher.outage) == (2, "")
    await asyncio.sleep(2)
    assert "no answer" in bench.publisher.outage
    bench.producer.reachable = True
    await asyncio.sleep(2)
    assert bench.publisher.outage == ""
    asking.cancel()


async def test_a_producer_that_has_just_started_is_asked_at_once() -> None:
    """The outage of before the start ends at once, and events go to Kafka."""
    bench = Bench(reachable=False)
    asking = asyncio.create_task(bench.publisher.watch())
    await asyncio.sleep(3)
    assert bench.publisher.outage
    bench.producer.reachable = True
    bench.publisher.ping_now()
    await asyncio.sleep(0.1)
    assert bench.publisher.outage == ""
    asking.cancel()


async def test_events_of_an_outage_are_saved_without_waiting_for_kafka() -> None:
    """No publish waits for the delivery time-out, neither before nor in the outage."""
    bench = Bench(reachable=False)
    bench.producer.answers.clear()
    asking = asyncio.create_task(bench.publisher.watch())
    for event_id in ("waits-when-it-begins", "comes-later"):
        outcome = await bench.publish(event_id=event_id)
        assert isinstance(outcome, Saved)
        assert outcome.event_id == event_id
        assert "no answer" in outcome.reason
        assert len(bench.producer.sent) == 1
        assert asyncio.get_running_loop().time() < 10
    asking.cancel()
