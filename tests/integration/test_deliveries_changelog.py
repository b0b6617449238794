"""The table's changelog on brokers: written, read back, refused."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient

from order_relay.deliveries import recovery as recovery_module
from order_relay.deliveries.changelog import Changelog
from order_relay.deliveries.entries import Entry, decode_entry, encode_entry, entry_key
from order_relay.deliveries.recovery import ChangelogUnreadable, Recovery
from order_relay.deliveries.store import MemoryStore, OneKeyStore
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.outcome import Outcome
from order_relay.kafka.client_config import client_config
from order_relay.kafka.producer import KafkaProducer
from tests.support.embedded import EmbeddedKafka
from tests.support.fakes import record
from tests.support.stage import Stage
from tests.support.waiting import eventually

LIMIT_SECONDS = 30.0


def entry(order_id: int, partition: int = 0, *, finished_ms: int = 1000) -> Entry:
    """An entry of a delivered order."""
    return Entry(order_id, "delivered", f"paid-{order_id}", 1, "t", partition, 5, finished_ms)


@asynccontextmanager
async def changelog_of(stage: Stage) -> AsyncIterator[Changelog]:
    """A changelog with a producer of its own."""
    producer = KafkaProducer(stage.settings())
    await producer.start()
    try:
        yield Changelog(producer, stage.settings().deliveries_changelog_topic)
    finally:
        await producer.stop()


async def write(changelog: Changelog, *changes: tuple[int, bytes, bytes | None]) -> None:
    """Write changes and wait until Kafka has them."""
    done: list[int] = []
    for number, (partition, key, value) in enumerate(changes):

        def note(number: int = number) -> None:
            done.append(number)

        changelog.write(partition, key, value, note)
    await changelog.drain(LIMIT_SECONDS)
    assert sorted(done) == list(range(len(changes)))


async def read(stage: Stage, stores: dict[int, MemoryStore]) -> int:
    """Bring stores up to date; returns the changelog's partitions."""
    settings = stage.settings()
    recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)
    return await asyncio.wait_for(
        asyncio.to_thread(recovery.read, dict(stores), threading.Event()), LIMIT_SECONDS
    )


def known(store: MemoryStore, *order_ids: int) -> list[bool]:
    """Which of the orders a store has."""
    return [store.get(b"%d" % order_id) is not None for order_id in order_ids]


async def test_what_was_written_is_read_back(embedded: EmbeddedKafka, stage: Stage) -> None:
    """The newest entry of each order, without those that have a tombstone, by partition."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    newer = entry(1, finished_ms=2000)
    async with changelog_of(stage) as changelog:
        changelog.next_offsets = {0: 0, 1: 0}
        await write(
            changelog,
            (0, b"1", encode_entry(entry(1))),
            (0, b"2", encode_entry(entry(2))),
            (1, b"3", encode_entry(entry(3, partition=1))),
            (0, b"1", encode_entry(newer)),
            (0, b"2", None),
            (0, b"9", b"not an entry"),
        )
        assert changelog.next_offsets == {0: 5, 1: 1}
    stores = {0: MemoryStore(), 2: MemoryStore()}
    assert await read(stage, stores) == 3
    assert known(stores[0], 1, 2, 3, 9) == [True, False, False, False]
    assert decode_entry(stores[0].get(b"1") or b"") == newer
    assert (stores[0].next_offset, stores[2].next_offset) == (5, 0)


async def test_reading_goes_on_where_it_ended(embedded: EmbeddedKafka, stage: Stage) -> None:
    """A store that was kept reads only what is new."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    store = MemoryStore()
    async with changelog_of(stage) as changelog:
        await write(changelog, (0, b"1", encode_entry(entry(1))))
        await read(stage, {0: store})
        store.remove(b"1")
        await write(changelog, (0, b"2", encode_entry(entry(2))))
        await read(stage, {0: store})
    assert known(store, 1, 2) == [False, True]


async def test_a_store_of_another_changelog_is_read_anew(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """A place beyond the end belongs to a topic that was deleted: nothing of it counts."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    store = MemoryStore()
    store.put(b"8", 1000, encode_entry(entry(8)))
    store.read_up_to(500)
    async with changelog_of(stage) as changelog:
        await write(changelog, (0, b"1", encode_entry(entry(1))))
    await read(stage, {0: store})
    assert known(store, 8, 1) == [False, True]
    assert store.next_offset == 1


async def test_partitions_beyond_the_changelogs_share_one(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """A source topic that grew: entries are told apart by the partition that they name."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    async with changelog_of(stage) as changelog:
        await write(
            changelog,
            (1, b"1", encode_entry(entry(1, partition=1))),
            (1, b"4", encode_entry(entry(4, partition=4))),
        )
    stores = {1: MemoryStore(), 4: MemoryStore(), 7: MemoryStore()}
    await read(stage, stores)
    assert known(stores[1], 1, 4) == [True, False]
    assert known(stores[4], 1, 4) == [False, True]
    assert len(stores[7]) == 0


async def test_one_order_is_found_in_any_partition(embedded: EmbeddedKafka, stage: Stage) -> None:
    """For the command: that of the partition of its key, else the latest of all others."""
    settings = stage.settings()
    embedded.create_topic(settings.deliveries_changelog_topic)
    late = entry(1, partition=2, finished_ms=5000)
    stop = threading.Event()
    async with changelog_of(stage) as changelog:
        await write(
            changelog,
            (2, b"1", encode_entry(late)),
            (0, b"1", encode_entry(entry(1))),
            (0, b"2", encode_entry(entry(2))),
        )
    recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)

    async def found(order_id: int, likely: int) -> Entry | None:
        value = await asyncio.to_thread(
            recovery.read_order, entry_key(order_id), stage.topic, stop, lambda key, count: likely
        )
        return decode_entry(value or b"")

    assert await found(1, likely=1) == late
    assert await found(1, likely=0) == entry(1)
    assert await found(77, likely=0) is None


async def test_asking_for_an_order_makes_no_topics(
    embedded: EmbeddedKafka, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that was typed wrong is told, and stays one that Kafka does not know."""
    monkeypatch.setattr(recovery_module, "UNKNOWN_SECONDS", 0.3)
    settings = stage.settings()
    admin = AdminClient({"bootstrap.servers": stage.bootstrap_servers})
    for source in (stage.topic, "typed-wrong"):
        recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)
        with pytest.raises(ChangelogUnreadable, match="there is no topic"):
            await asyncio.to_thread(
                recovery.read_order, b"1", source, threading.Event(), lambda key, count: 0
            )
    topics = await asyncio.to_thread(admin.list_topics, None, 5.0)
    assert not {"typed-wrong", settings.deliveries_changelog_topic} & topics.topics.keys()


async def test_a_worker_that_declares_no_topics_has_its_changelog(
    embedded: EmbeddedKafka, stage: Stage
) -> None:
    """Brokers that make topics on first use make it, before the first entry is written."""
    settings = stage.settings()
    recovery = Recovery(
        client_config(settings), settings.deliveries_changelog_topic, make_topic=True
    )
    reading = asyncio.to_thread(recovery.read, {0: MemoryStore()}, threading.Event())
    assert await asyncio.wait_for(reading, LIMIT_SECONDS) > 0


async def test_an_order_is_not_told_by_half_of_the_changelog(
    embedded: EmbeddedKafka, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When time is over an entry that was read may be an old one: it is not shown as a fact."""
    settings = stage.settings()
    embedded.create_topic(settings.deliveries_changelog_topic)
    async with changelog_of(stage) as changelog:
        await write(changelog, *((0, b"1", encode_entry(entry(1))) for _ in range(20)))
    monkeypatch.setattr(recovery_module, "BATCH", 1)
    stop = threading.Event()
    taken = OneKeyStore.put

    def put(store: OneKeyStore, key: bytes, finished_ms: int, value: bytes) -> None:
        taken(store, key, finished_ms, value)
        stop.set()

    monkeypatch.setattr(OneKeyStore, "put", put)
    recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)
    with pytest.raises(ChangelogUnreadable, match="end was not reached"):
        await asyncio.to_thread(recovery.read_order, b"1", stage.topic, stop, lambda key, count: 0)


async def test_what_another_wrote_meanwhile_is_read(embedded: EmbeddedKafka, stage: Stage) -> None:
    """A worker that was away, and whose late entry stands behind the other's, knows them all."""
    settings = stage.settings()
    embedded.create_topic(settings.deliveries_changelog_topic)

    def book_of(changelog: Changelog) -> DeliveriesTable:
        recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)
        return DeliveriesTable(
            changelog,
            recovery,
            lambda partition: MemoryStore(),
            lambda record: None,
            lambda seconds: None,
            retention_seconds=3600,
        )

    def finish(deliveries: DeliveriesTable, *order_ids: int) -> None:
        for order_id in order_ids:
            deliveries.finished(record(order_id, str(order_id)), Outcome(True, 1, order_id))

    async def arrive(deliveries: DeliveriesTable) -> None:
        deliveries.assigned([0])
        assert await asyncio.wait_for(deliveries.until_ready(), LIMIT_SECONDS)

    async with changelog_of(stage) as of_away, changelog_of(stage) as of_other:
        away, other = book_of(of_away), book_of(of_other)
        await arrive(away)
        finish(away, 1)
        await of_away.drain(LIMIT_SECONDS)
        assert of_away.next_offsets[0] == 1
        await arrive(other)
        finish(other, *range(2, 11))
        await of_other.drain(LIMIT_SECONDS)
        finish(away, 2)
        await away.revoking()
        await other.revoking()
        await arrive(away)
        assert [n for n in range(1, 12) if away.find(n)] == list(range(1, 11))
        # And goes on from there.
        assert of_away.next_offsets[0] == 11
        await away.close()
        await other.close()


async def test_a_refused_change_holds_nothing_up(
    fragile: EmbeddedKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits is let go; it is said once, and once again when Kafka takes changes."""
    stage = fragile.stage()
    fragile.create_topic(stage.settings().deliveries_changelog_topic)
    async with changelog_of(stage) as changelog:
        fragile.refuse(KafkaError.TOPIC_AUTHORIZATION_FAILED, 100)
        await write(changelog, (0, b"1", encode_entry(entry(1))))
        done: list[str] = []
        # Kafka's last answer was a refusal: nobody waits for the next one.
        changelog.write(0, b"2", encode_entry(entry(2)), lambda: done.append("at once"))
        assert done == ["at once"]
        await changelog.drain(LIMIT_SECONDS)
        assert len([line for line in caplog.messages if "refuses its changelog" in line]) == 1
        fragile.relent()

        async def taken() -> bool:
            changelog.write(0, b"3", encode_entry(entry(3)), lambda: None)
            await changelog.drain(LIMIT_SECONDS)
            return any("again" in line for line in caplog.messages)

        await eventually(taken, LIMIT_SECONDS, "Kafka takes changes again")
    assert len([line for line in caplog.messages if "again" in line]) == 1


async def test_reading_waits_for_brokers_and_ends_when_told(
    fragile: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no broker answers a recovery neither fails nor hangs a rebalance."""
    monkeypatch.setattr(recovery_module, "ASK_SECONDS", 0.2)
    settings = fragile.stage().settings()
    fragile.down()
    recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)
    stop = threading.Event()
    reading = asyncio.create_task(asyncio.to_thread(recovery.read, {0: MemoryStore()}, stop))
    done, _ = await asyncio.wait([reading], timeout=1.0)
    assert not done
    stop.set()
    await asyncio.wait_for(reading, LIMIT_SECONDS)


async def test_a_changelog_that_we_may_not_read_is_told_at_once(fragile: EmbeddedKafka) -> None:
    """A missing right is no outage: deliveries shall not wait for it."""
    settings = fragile.stage().settings()
    fragile.create_topic(settings.deliveries_changelog_topic)
    fragile.set_topic_error(
        settings.deliveries_changelog_topic, KafkaError.TOPIC_AUTHORIZATION_FAILED
    )
    recovery = Recovery(client_config(settings), settings.deliveries_changelog_topic)
    reading = asyncio.to_thread(recovery.read, {0: MemoryStore()}, threading.Event())
    with pytest.raises(ChangelogUnreadable, match=r"(?i)author"):
        await asyncio.wait_for(reading, LIMIT_SECONDS)
