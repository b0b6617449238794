"""The table's changelog on brokers: written, read back, and queried by order-relay order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient

from order_relay.cli import order
from order_relay.cli.order import newest_entry
from order_relay.deliveries.changelog import Changelog
from order_relay.deliveries.entries import Entry, decode_entry, encode_entry, entry_key
from order_relay.deliveries.recovery import Recovery
from order_relay.deliveries.stores import MemoryStore
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.outcome import Outcome
from order_relay.errors import TopicUnusable
from order_relay.kafka import topic_reader
from tests.support.embedded import EmbeddedKafka
from tests.support.fakes import record
from tests.support.producing import producing
from tests.support.stage import Stage

LIMIT_SECONDS = 30.0


def entry(order_id: int, partition: int = 0, *, finished_ms: int = 1000) -> Entry:
    """An entry of a delivered order."""
    return Entry(order_id, "delivered", f"paid-{order_id}", 1, "t", partition, 5, finished_ms)


@asynccontextmanager
async def changelog_of(stage: Stage) -> AsyncIterator[Changelog]:
    """A changelog with a producer of its own."""
    async with producing(stage) as producer:
        yield Changelog(producer, stage.settings().deliveries_changelog_topic)


@pytest.fixture
async def changelog(embedded: EmbeddedKafka, stage: Stage) -> AsyncIterator[Changelog]:
    """A changelog whose topic exists, with three partitions."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    async with changelog_of(stage) as made:
        yield made


async def write(changelog: Changelog, *entries: Entry, partition: int | None = None) -> None:
    """Write entries, and wait until Kafka has them; each to its partition, or to this one."""
    for one in entries:
        to = one.partition if partition is None else partition
        changelog.write(to, entry_key(one.order_id), encode_entry(one))
    await changelog.drain(LIMIT_SECONDS)


async def answer() -> None:
    """A broker that answers."""


def recovery_of(stage: Stage) -> Recovery:
    """The reader of the stage's changelog."""
    settings = stage.settings()
    return Recovery(settings, settings.deliveries_changelog_topic, answer)


async def read(stage: Stage, stores: dict[int, MemoryStore]) -> int:
    """Bring stores up to date; returns the changelog's partitions."""
    return await asyncio.wait_for(recovery_of(stage).read(dict(stores)), LIMIT_SECONDS)


async def read_order(stage: Stage, order_id: int) -> Entry | None:
    """What the changelog has of an order."""
    return await newest_entry(stage.settings(), entry_key(order_id))


def known(store: MemoryStore, *order_ids: int) -> list[bool]:
    """Which of the orders a store has."""
    return [store.get(b"%d" % order_id) is not None for order_id in order_ids]


async def test_what_was_written_is_read_back(changelog: Changelog, stage: Stage) -> None:
    """Each partition's newest entry of each order, without orders that have a tombstone."""
    newer = entry(1, finished_ms=2000)
    changelog.next_offsets = {0: 0, 1: 0}
    await write(changelog, entry(1), entry(2), entry(3, partition=1), newer)
    changelog.write(0, b"2", None)
    changelog.write(0, b"9", b"not an entry")
    await changelog.drain(LIMIT_SECONDS)
    assert changelog.next_offsets == {0: 5, 1: 1}
    stores = {0: MemoryStore(), 2: MemoryStore()}
    assert await read(stage, stores) == 3
    assert known(stores[0], 1, 2, 3, 9) == [True, False, False, False]
    assert decode_entry(stores[0].get(b"1") or b"") == newer
    assert (stores[0].next_offset, stores[2].next_offset) == (5, 0)


async def test_reading_goes_on_where_it_ended(changelog: Changelog, stage: Stage) -> None:
    """A store that was kept reads only what is new."""
    store = MemoryStore()
    await write(changelog, entry(1))
    await read(stage, {0: store})
    store.remove(b"1")
    await write(changelog, entry(2))
    await read(stage, {0: store})
    assert known(store, 1, 2) == [False, True]


async def test_a_store_of_another_changelog_is_read_anew(
    changelog: Changelog, stage: Stage
) -> None:
    """An offset beyond the end means that the topic was recreated: old entries are dropped."""
    store, other = MemoryStore(), MemoryStore()
    store.put(b"8", 1000, encode_entry(entry(8)))
    store.read_up_to(500)
    await write(changelog, entry(1), entry(2), entry(3, partition=1))
    await read(stage, {0: store, 1: other})
    assert known(store, 8, 1, 2) == [False, True, True]
    assert (store.next_offset, other.next_offset) == (2, 1)


async def test_partitions_beyond_the_changelogs_share_one(
    changelog: Changelog, stage: Stage
) -> None:
    """After the source topic grew, entries are assigned by the partition that they name."""
    mine, another = [entry(1, partition=1), entry(4, partition=4)], entry(10, partition=10)
    await write(changelog, *mine, another, partition=1)
    stores = {1: MemoryStore(), 4: MemoryStore(), 7: MemoryStore()}
    await read(stage, stores)
    assert known(stores[1], 1, 4) == [True, False]
    assert known(stores[4], 1, 4) == [False, True]
    assert len(stores[7]) == 0


async def test_one_order_is_found_in_any_partition(changelog: Changelog, stage: Stage) -> None:
    """The command gets the newest of all partitions."""
    late = entry(1, partition=2, finished_ms=5000)
    await write(changelog, late, entry(1), entry(2))
    assert await read_order(stage, 1) == late
    assert await read_order(stage, 77) is None


async def test_asking_for_an_order_makes_no_topics(embedded: EmbeddedKafka, stage: Stage) -> None:
    """A wrong name is an error, and its topic is not created."""
    for asked in (stage, replace(stage, topic="typed-wrong")):
        with pytest.raises(TopicUnusable, match="Unknown topic"):
            await read_order(asked, 1)
    admin = AdminClient({"bootstrap.servers": stage.bootstrap_servers})
    topics = await asyncio.to_thread(admin.list_topics, None, 5.0)
    changelog = stage.settings().deliveries_changelog_topic
    assert not {"typed-wrong", changelog} & topics.topics.keys()


async def test_a_worker_that_declares_no_topics_has_its_changelog(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """Brokers that create topics on first use create it before the first entry is written."""
    assert await read(stage, {0: MemoryStore()}) > 0


async def test_what_another_wrote_meanwhile_is_read(changelog: Changelog, stage: Stage) -> None:
    """A worker that gets a partition back reads another's entries, even before its own late one."""

    def table_of(changelog: Changelog) -> DeliveriesTable:
        return DeliveriesTable(
            changelog,
            recovery_of(stage),
            lambda partition: MemoryStore(),
            lambda record: None,
            lambda seconds: None,
            retention_seconds=3600,
        )

    def finish(table: DeliveriesTable, *order_ids: int) -> None:
        for order_id in order_ids:
            table.finished(record(order_id, str(order_id)), Outcome(True, 1, order_id))

    async def arrive(table: DeliveriesTable) -> None:
        table.assigned([0])
        assert await asyncio.wait_for(table.until_ready(), LIMIT_SECONDS)

    async with changelog_of(stage) as of_other:
        away, other = table_of(changelog), table_of(of_other)
        await arrive(away)
        finish(away, 1)
        await changelog.drain(LIMIT_SECONDS)
        assert changelog.next_offsets[0] == 1
        await arrive(other)
        finish(other, *range(2, 11))
        await of_other.drain(LIMIT_SECONDS)
        finish(away, 2)
        await away.revoking()
        await other.revoking()
        await arrive(away)
        assert [n for n in range(1, 12) if away.find(n)] == list(range(1, 11))
        # The next entry follows them.
        assert changelog.next_offsets[0] == 11
        await away.close()
        await other.close()


async def test_reading_waits_for_brokers_and_can_be_cancelled(
    fragile: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without brokers, recovery neither fails nor blocks a rebalance."""
    monkeypatch.setattr(topic_reader, "ASK_SECONDS", 0.2)
    fragile.down()
    reading = asyncio.create_task(recovery_of(fragile.stage()).read({0: MemoryStore()}))
    done, _ = await asyncio.wait([reading], timeout=1.0)
    assert not done
    reading.cancel()
    done, _ = await asyncio.wait([reading], timeout=LIMIT_SECONDS)
    assert done


async def test_a_changelog_that_we_may_not_read_fails_at_once(fragile: EmbeddedKafka) -> None:
    """A missing right is not an outage: deliveries must not wait."""
    stage = fragile.stage()
    topic = stage.settings().deliveries_changelog_topic
    fragile.create_topic(topic)
    fragile.set_topic_error(topic, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(TopicUnusable, match=r"(?i)author"):
        await read(stage, {0: MemoryStore()})


async def told(stage: Stage) -> str:
    """The error for an order that is not found."""
    found = await order.read_changelog(stage.settings(), "1")
    assert list(found) == ["error"]
    return str(found["error"])


async def test_a_changelog_read_in_part_does_not_answer(
    embedded: EmbeddedKafka, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka answered, but too slowly: the error advises to start a worker."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    monkeypatch.setattr(order, "READ_SECONDS", 0.0)
    error = await told(stage)
    assert error.startswith("the changelog could not be read to its end in 0 s: start a worker")


async def test_an_unreachable_kafka_is_reported(
    fragile: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no broker answers, the error names Kafka's address."""
    monkeypatch.setattr(topic_reader, "ASK_SECONDS", 0.2)
    stage = fragile.stage()
    fragile.down()
    error = await told(stage)
    assert error.startswith("the changelog cannot be read: Kafka cannot be reached at ")
    assert stage.bootstrap_servers in error
