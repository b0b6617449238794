"""Any input to the producer from rows, headers and records of other programs."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from order_relay.errors import PublishRefused, RecordTooLarge, RelayError
from order_relay.fallback.replay import Replay
from order_relay.fallback.retry_schedule import is_permanent
from order_relay.fallback.store import NewMessage, RowFilter, Status
from order_relay.fallback.sweep import Sweep
from order_relay.fallback.table import FallbackTable
from order_relay.kafka.producer import KafkaProducer
from tests.integration.publishing.test_odd_rows import change
from tests.support.orders import order_value
from tests.support.stage import Stage

any_text = st.text(st.characters())  # lone surrogates and zero characters, too
numbers = st.none() | st.integers() | st.integers(-(2**31) - 1, 2**31)
records = st.fixed_dictionaries(
    {
        "topic": any_text,
        "key": st.none() | st.binary(),
        "value": st.none() | st.binary(),
        "headers": st.lists(st.tuples(any_text, st.none() | st.binary())),
        "partition": numbers,
    }
)
FINE = {"topic": "t", "key": b"k", "value": b"v"}


@pytest.fixture(scope="module")
def nowhere() -> Iterator[tuple[asyncio.Runner, KafkaProducer]]:
    """A producer whose brokers never answer, and the loop that it runs in."""
    stage = Stage("127.0.0.1:1", topic="t", dlq_topic="d", group_id="g")
    # Records that were taken expire soon.
    producer = KafkaProducer(
        stage.settings(producer_request_timeout_ms=500, producer_delivery_timeout_ms=1500)
    )
    with asyncio.Runner() as runner:
        runner.run(producer.start())
        yield runner, producer
        runner.run(producer.stop(0.0))


async def _taken_or_refused(producer: KafkaProducer, record: dict[str, Any]) -> bool:
    """Whether the client takes a record; an unexpected error fails the test."""
    sending = asyncio.ensure_future(producer.send(**record))
    await asyncio.sleep(0)  # hands it to the client, or refuses it
    if not sending.done():
        sending.cancel()
        return True
    assert isinstance(sending.exception(), PublishRefused | RecordTooLarge)
    return False


@given(records)
@example(FINE | {"headers": [("\ud800", b"x")]})
@example(FINE | {"headers": [("a\0b", b"x")]})
@example(FINE | {"partition": 2**31})
@example(FINE | {"topic": "\udfff"})
@example(FINE | {"topic": "x" * 70_000})
def test_a_record_is_taken_or_refused(
    nowhere: tuple[asyncio.Runner, KafkaProducer], record: dict[str, Any]
) -> None:
    """No input crashes the process or raises an unexpected error."""
    runner, producer = nowhere
    assert runner.run(_taken_or_refused(producer, FINE))
    runner.run(_taken_or_refused(producer, record))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"headers": [("\ud800", b"x")]}, "lone surrogate"),
        ({"headers": [("a\0b", b"x")]}, "zero character"),
        ({"topic": "a\0b"}, "embedded null"),
    ],
    ids=ascii,
)
def test_an_impossible_record_is_refused_permanently(
    nowhere: tuple[asyncio.Runner, KafkaProducer], wrong: dict[str, Any], words: str
) -> None:
    """The error names the cause, and is permanent."""
    runner, producer = nowhere
    with pytest.raises(RelayError, match=words) as refused:
        runner.run(producer.send(**(FINE | wrong)))
    assert is_permanent(refused.value)


async def test_rows_that_cannot_be_records_fail_alone(stage: Stage, sqlite_url: str) -> None:
    """Rows with impossible header names are FAILED with the reason; others are published."""
    store = FallbackTable(sqlite_url)
    await store.open()
    for number in range(4):
        await store.save(NewMessage(stage.topic, b"%d" % number, order_value(number)))
    await change(store, 1, headers='{"\\ud800":"x"}')
    await change(store, 2, headers='[["a\\u0000b","x"]]')
    # This partition does not exist: the key decides.
    await change(store, 3, message_partition=str(2**40))
    producer = KafkaProducer(stage.settings())
    await producer.start()

    assert await Replay(store, producer).run_once() == Sweep(published=2, failed=2)
    await producer.stop()
    one, other = await store.find(RowFilter(status=Status.FAILED))
    assert "headers column is wrong: JSON is malformed: unexpected end of escaped" in (
        one.error_message or ""
    )
    assert "the header 'a\\x00b' has a zero character" in (other.error_message or "")
    assert {row.key for row in await stage.records()} == {b"2", b"3"}
    await store.close()
