"""The producer on the embedded cluster: every publish ends acknowledged or refused."""

import asyncio
import threading
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, Producer, ThrottleEvent

from order_relay.errors import KafkaUnavailable, PublishRefused, RecordTooLarge
from order_relay.fallback.retry_schedule import is_local, is_unanswered
from order_relay.kafka import producer as producer_module
from order_relay.kafka.producer import Acknowledged, KafkaProducer, KeyAndValue, Refusal
from tests.support.embedded import PRODUCE, EmbeddedKafka
from tests.support.orders import order_value
from tests.support.producing import producing
from tests.support.stage import Stage
from tests.support.waiting import eventually

INIT_PRODUCER_ID = 22


async def test_a_record_is_acknowledged_and_read_back_as_it_was(stage: Stage) -> None:
    """Key, value, headers in their order, partition and timestamp are what was sent."""
    headers = [("event-id", b"e-1"), ("twice", b"1"), ("twice", b"2"), ("null", None)]
    async with producing(stage) as producer:
        ack = await producer.send(
            stage.topic,
            key=b"17",
            value=order_value(17),
            headers=headers,
            partition=2,
        )
        empty = await producer.send(stage.topic, key=None, value=None, partition=2)
    assert ack == Acknowledged(stage.topic, 2, 0)
    assert empty == Acknowledged(stage.topic, 2, 1)
    first, second = await stage.records()
    assert (first.partition, first.offset) == (2, 0)
    assert (first.key, first.value) == (b"17", order_value(17))
    assert list(first.headers) == headers
    assert (second.key, second.value, second.headers) == (None, None, ())


async def test_many_at_once_are_all_acknowledged_in_order(stage: Stage) -> None:
    """A thousand sends at once get increasing offsets, in the order of the calls."""
    async with producing(stage) as producer:
        acks = await asyncio.gather(
            *(producer.send(stage.topic, key=b"one", value=b"%d" % n) for n in range(1000))
        )
    assert [ack.offset for ack in acks] == list(range(1000))
    assert len({ack.partition for ack in acks}) == 1
    assert [row.value for row in await stage.records()] == [b"%d" % n for n in range(1000)]


async def _settled(
    producer: KafkaProducer, topic: str, records: list[KeyAndValue]
) -> tuple[int | None, Refusal | None]:
    """Enqueue records for partition 0, and wait until they are settled, once."""
    calls: list[tuple[int | None, Refusal | None]] = []
    producer.enqueue(topic, 0, records, lambda *settled: calls.append(settled))
    await eventually(lambda: calls, 30, "the records to be settled")

    async def all_told() -> bool:
        # All earlier callbacks come before this record's acknowledgement.
        try:
            await producer.send(topic, key=b"after", value=b"", partition=0)
        except PublishRefused as refusal:
            if refusal.code != "_QUEUE_FULL":  # the others are still in flight
                raise
            return False
        return True

    await eventually(all_told, 30, "room for a record after them")
    (settled,) = calls
    return settled


async def test_records_that_are_enqueued_are_settled_together(stage: Stage) -> None:
    """One callback for all of them, with the first offset; also for a single record."""
    async with producing(stage) as producer:
        records: list[KeyAndValue] = [(b"%d" % n, b"v" if n % 2 else None) for n in range(100)]
        assert await _settled(producer, stage.topic, records) == (0, None)
        assert await _settled(producer, stage.topic, [(b"one", b"v")]) == (101, None)
        assert await _settled(producer, stage.topic, [(b"one", b"v"), (b"two", b"v")]) == (
            103,
            None,
        )
    assert [(row.key, row.value) for row in await stage.records()][:100] == records


async def test_what_another_writes_in_between_is_seen(stage: Stage) -> None:
    """Then there is no offset, as some records may be missing."""
    async with producing(stage, producer_delivery_timeout_ms=20_000) as producer:
        calls: list[tuple[int | None, Refusal | None]] = []
        client = cast(Producer, producer._producer)
        records: list[KeyAndValue] = [(b"1", b"v"), (b"2", b"v")]

        class Interrupted:
            """Kafka's client, with another record after each."""

            def produce(self, topic: str, *arguments: Any) -> None:
                client.produce(topic, *arguments)
                client.produce(topic, b"another's", b"3", 0)

        producer._producer = cast(Producer, Interrupted())
        producer.enqueue(stage.topic, 0, records, lambda *settled: calls.append(settled))
        producer._producer = client
        await eventually(lambda: calls, 30, "the records to be settled")
    assert calls == [(None, None)]


async def test_records_that_kafka_refuses_are_settled_with_the_others(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """The callback gets the reason."""
    async with producing(stage) as producer:
        await producer.ping()
        embedded.refuse(KafkaError.INVALID_RECORD, 1)
        # Usually one request has all of them; a client that is interrupted makes two.
        first_offset, refusal = await _settled(producer, stage.topic, [(b"1", b"v")] * 3)
    assert first_offset is None
    assert isinstance(refusal, PublishRefused)
    assert stage.topic in str(refusal)


@pytest.mark.parametrize("number", [0, 5, 999])
async def test_records_that_the_client_does_not_take_are_settled_with_the_others(
    stage: Stage, number: int
) -> None:
    """A record that is too large fails all, at any position."""
    async with producing(stage) as producer:
        records: list[KeyAndValue] = [(None, b"v")] * 1000
        records[number] = (None, bytes(100_000_001))
        first_offset, refusal = await _settled(producer, stage.topic, records)
        assert (first_offset, type(refusal)) == (None, RecordTooLarge)
        only = await _settled(producer, stage.topic, [(None, bytes(100_000_001))])
    assert (only[0], type(only[1])) == (None, RecordTooLarge)


async def test_too_many_records_for_the_client_are_settled_with_the_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the client has no room for some records, all are refused."""
    config = producer_module.producer_config
    few = {"queue.buffering.max.messages": 10}
    monkeypatch.setattr(producer_module, "producer_config", lambda given: config(given) | few)
    async with producing(stage) as producer:
        first_offset, refusal = await _settled(producer, stage.topic, [(None, b"v")] * 1000)
    assert first_offset is None
    assert isinstance(refusal, PublishRefused)
    assert refusal.code == "_QUEUE_FULL"


async def test_retryable_errors_of_kafka_are_outlived(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """While a broker briefly lacks replicas, the record waits, and is written once."""
    async with producing(stage, producer_delivery_timeout_ms=20_000) as producer:
        await producer.ping()
        embedded.refuse(KafkaError.NOT_ENOUGH_REPLICAS, 2)
        ack = await producer.send(stage.topic, key=b"1", value=b"v", partition=0)
    assert ack.offset == 0
    assert len(await stage.records()) == 1


async def test_a_record_that_kafka_has_already_is_acknowledged_without_an_offset(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """After a lost answer Kafka may confirm a record without its offset."""
    async with producing(stage) as producer:
        await producer.ping()
        embedded.refuse(KafkaError.DUPLICATE_SEQUENCE_NUMBER, 1)
        ack = await producer.send(stage.topic, key=b"1", value=b"v", partition=2)
    assert ack == Acknowledged(stage.topic, 2, None)


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_TIMESTAMP,
    ],
)
async def test_a_refused_batch_refuses_no_record(
    embedded: EmbeddedKafka, stage: Stage, code: int
) -> None:
    """One record may be the cause, or the size of all: each is sent once more, alone."""
    async with producing(stage) as producer:
        await producer.ping()
        embedded.refuse(code, 1)
        acks = await asyncio.gather(
            *(producer.send(stage.topic, key=b"1", value=b"%d" % n, partition=0) for n in range(9))
        )
    assert sorted(cast(int, ack.offset) for ack in acks) == list(range(9))
    rows = await stage.records()
    assert sorted(cast(bytes, row.value) for row in rows) == [b"%d" % n for n in range(9)]


@pytest.mark.parametrize(
    ("code", "error"),
    [(KafkaError.MSG_SIZE_TOO_LARGE, RecordTooLarge), (KafkaError.INVALID_RECORD, PublishRefused)],
)
async def test_a_refused_record_does_not_harm_the_next(
    embedded: EmbeddedKafka, stage: Stage, code: int, error: type[Exception]
) -> None:
    """A refused record is an error with its topic; the next one is published."""
    async with producing(stage) as producer:
        first = await producer.send(stage.topic, key=b"1", value=b"first", partition=0)
        embedded.refuse(code, 2)  # in a batch, and alone
        with pytest.raises(error) as refused:
            await producer.send(stage.topic, key=b"1", value=b"refused", partition=0)
        assert stage.topic in str(refused.value)
        last = await producer.send(stage.topic, key=b"1", value=b"last", partition=0)
    assert (first.offset, last.offset) == (0, 1)
    assert [row.value for row in await stage.records()] == [b"first", b"last"]


async def test_threads_run_from_the_start(stage: Stage) -> None:
    """Python 3.12 starts none while a process ends, and closing needs one."""

    def questions() -> int:
        names = [thread.name for thread in threading.enumerate()]
        return sum(name.startswith("kafka-producer-question") for name in names)

    before = questions()
    async with producing(stage):
        assert questions() - before == producer_module.QUESTIONS_AT_ONCE


async def test_a_broker_that_throttles_has_answered(fragile: EmbeddedKafka) -> None:
    """Late answers over a quota are not an outage, for as long as the broker said."""
    stage = fragile.stage()
    async with producing(stage) as producer:
        await producer.ping()
        fragile.freeze()
        try:
            with pytest.raises(KafkaUnavailable):
                await producer.ping(0.3)
            producer._on_throttled(ThrottleEvent("broker", 1, 2.0))
            await producer.ping(0.3)
            producer._throttled_until -= 2.0 + producer_module.THROTTLED_LATE_SECONDS
            with pytest.raises(KafkaUnavailable):
                await producer.ping(0.3)
        finally:
            fragile.thaw()


async def test_threads_that_others_keep_busy_delay_nothing(stage: Stage) -> None:
    """The loop's own executor has few threads, and a program may use them all."""
    released = threading.Event()
    loop = asyncio.get_running_loop()
    others = [loop.run_in_executor(None, released.wait, 60) for _ in range(64)]
    try:
        async with asyncio.timeout(20), producing(stage) as producer:
            await producer.ping()
    finally:
        released.set()
        await asyncio.gather(*others)


async def test_a_topic_that_we_may_not_write_to(embedded: EmbeddedKafka, stage: Stage) -> None:
    """Without rights records are refused; once granted, no restart is needed."""
    async with producing(stage) as producer:
        await producer.ping()
        embedded.refuse(KafkaError.TOPIC_AUTHORIZATION_FAILED, 1)
        with pytest.raises(PublishRefused, match="authorization"):
            await producer.send(stage.topic, key=b"1", value=b"refused", partition=0)
        await eventually(lambda: _sends(producer, stage.topic), 20, "the topic is ours again")


async def test_a_record_over_the_clients_own_limit(stage: Stage) -> None:
    """A record above librdkafka's own limit is refused at once."""
    async with producing(stage) as producer:
        with pytest.raises(RecordTooLarge) as refused:
            await producer.send(stage.topic, key=b"key", value=bytes(100_000_001))
    assert refused.value.size_bytes == 100_000_004
    assert refused.value.topic == stage.topic


async def test_an_unknown_topic_is_refused(embedded: EmbeddedKafka, stage: Stage) -> None:
    """An unknown topic is refused, and works once it exists."""
    topic = f"{stage.topic}-missing"
    embedded.create_topic(topic)
    embedded.set_topic_error(topic, KafkaError.UNKNOWN_TOPIC_OR_PART)
    async with producing(stage) as producer:
        assert await producer.partition_count(topic) == 0
        with pytest.raises(PublishRefused) as refused:
            await producer.send(topic, key=b"1", value=b"v")
        assert refused.value.topic == topic
        embedded.set_topic_error(topic, 0)
        await eventually(lambda: producer.partition_count(topic), 20, "the topic is there")
        assert (await producer.send(topic, key=b"1", value=b"v")).offset == 0


async def test_a_partition_that_does_not_exist_is_refused(stage: Stage) -> None:
    """An impossible partition is refused instead of waiting for ever."""
    async with producing(stage) as producer:
        await producer.send(stage.topic, key=b"1", value=b"v")
        with pytest.raises(PublishRefused):
            await producer.send(stage.topic, key=b"1", value=b"v", partition=99)


async def test_no_broker_means_refused_until_one_is_back(fragile: EmbeddedKafka) -> None:
    """Without brokers a publish is refused after its time-out; it works when they return."""
    stage = fragile.stage()
    async with producing(stage) as producer:
        await producer.send(stage.topic, key=b"1", value=b"before", partition=0)
        fragile.down()
        with pytest.raises(PublishRefused) as refused:
            await producer.send(stage.topic, key=b"1", value=b"during", partition=0)
        assert refused.value.reason
        with pytest.raises(KafkaUnavailable):
            await producer.ping(timeout_seconds=0.3)
        with pytest.raises(KafkaUnavailable):
            await producer.partition_count(stage.topic, timeout_seconds=0.3)
        fragile.up()
        await eventually(lambda: _sends(producer, stage.topic), 20, "Kafka takes records again")
    values = [row.value for row in await stage.records()]
    assert values[0] == b"before"
    assert b"during" not in values


async def _sends(producer: KafkaProducer, topic: str) -> bool:
    try:
        await producer.send(topic, key=b"1", value=b"after", partition=0)
    except PublishRefused:
        return False
    return True


async def test_a_leader_that_is_gone_for_a_moment(fragile: EmbeddedKafka) -> None:
    """Sends begun while brokers are down are acknowledged if these return in time."""
    stage = fragile.stage()
    async with producing(stage, producer_delivery_timeout_ms=30_000) as producer:
        await producer.ping()
        fragile.down()
        sends = [
            asyncio.create_task(producer.send(stage.topic, key=b"k", value=b"%d" % n))
            for n in range(20)
        ]
        with pytest.raises(KafkaUnavailable):
            await producer.ping(timeout_seconds=0.3)
        assert not any(send.done() for send in sends)
        fragile.up()
        acks = await asyncio.wait_for(asyncio.gather(*sends), 30)
    assert [ack.offset for ack in acks] == list(range(20))


async def test_stop_ends_pending_sends(fragile: EmbeddedKafka) -> None:
    """Stopping the producer refuses the sends that still wait."""
    stage = fragile.stage()
    producer = KafkaProducer(stage.settings())
    await producer.start()
    await producer.ping()
    fragile.down()
    sends = [
        asyncio.create_task(producer.send(stage.topic, key=b"1", value=b"v")) for _ in range(3)
    ]
    await asyncio.sleep(0)  # hands each to librdkafka
    await producer.stop(timeout_seconds=0.1)
    ended = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 10)
    assert [type(one) for one in ended] == [PublishRefused] * 3
    with pytest.raises(PublishRefused, match="not running"):
        await producer.send(stage.topic, key=b"1", value=b"v")


async def test_a_producer_that_was_never_started(stage: Stage) -> None:
    """It refuses records; stopping it does nothing."""
    producer = KafkaProducer(stage.settings())
    with pytest.raises(PublishRefused, match="not running"):
        await producer.send(stage.topic, key=b"1", value=b"v")
    with pytest.raises(PublishRefused, match="not running"):
        producer.enqueue(stage.topic, 0, [(b"1", b"v")], lambda offset, refusal: None)
    with pytest.raises(KafkaUnavailable):
        await producer.ping()
    await producer.stop()


async def test_a_cancelled_send_harms_nothing(
    fragile: EmbeddedKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancelled wait logs no error when the record ends later."""
    stage = fragile.stage()
    async with producing(stage) as producer:
        await producer.ping()
        fragile.down()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(producer.send(stage.topic, key=b"1", value=b"v"), 0.05)
        fragile.up()
        await eventually(lambda: _sends(producer, stage.topic), 20, "Kafka takes records again")
    # asyncio would log an unhandled error.
    assert not [line for line in caplog.records if line.name == "asyncio"]


@pytest.mark.parametrize(
    ("code", "api_key"),
    [
        (KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, PRODUCE),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, INIT_PRODUCER_ID),
    ],
)
async def test_a_client_with_a_fatal_error_is_replaced(
    embedded: EmbeddedKafka, stage: Stage, code: int, api_key: int
) -> None:
    """Its records are refused as unanswered, then a new client publishes."""
    embedded.refuse(code, 1, api_key)
    async with producing(stage) as producer:
        # The error appears only with a second record.
        sends = (producer.send(stage.topic, key=b"k", value=b"%d" % n) for n in range(2))
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        refused = [one for one in outcomes if isinstance(one, PublishRefused)]
        assert refused

        async def published() -> bool:
            try:
                await producer.send(stage.topic, key=b"k", value=b"later")
            except PublishRefused as error:
                refused.append(error)
                return False
            return True

        await eventually(published, 30, "to publish by another client")
        assert all(is_local(one) or is_unanswered(one) for one in refused), "a retry would be spent"
        await producer.ping()
