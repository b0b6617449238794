"""Fakes of what the deliveries table uses."""

import asyncio
from collections.abc import Callable, Mapping

from order_relay.deliveries.changelog import Changelog
from order_relay.deliveries.entries import Entry, decode_entry, encode_entry, entry_key
from order_relay.deliveries.recovery import Recovery
from order_relay.deliveries.stores import MemoryStore, Store
from order_relay.deliveries.table import DeliveriesTable
from order_relay.delivery.outcome import Outcome
from order_relay.errors import TopicUnusable
from order_relay.model.record import Record
from tests.support.fakes import START_SECONDS, record


class FakeChangelog(Changelog):
    """A changelog in memory that acknowledges at once, or when told to.

    Attributes:
        changes: What was written: partition, key and value.
        holding: Whether acknowledgements wait for ``acknowledge``.
        away: Whether ``drain`` times out.
        drains: How often ``drain`` was called.
    """

    def __init__(self) -> None:
        self.next_offsets: dict[int, int] = {}
        self.changes: list[tuple[int, bytes, bytes | None]] = []
        self.holding = False
        self.away = False
        self.drains = 0
        self._held: list[Callable[[], None]] = []

    def write(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        self.changes.append((partition, key, value))
        if partition in self.next_offsets:
            self.next_offsets[partition] += 1
        if on_done is None:
            return
        if self.holding:
            self._held.append(on_done)
        else:
            on_done()

    async def drain(self, timeout_seconds: float) -> None:
        self.drains += 1
        if not self.away:
            self.acknowledge()

    def release_waiters(self) -> None:
        self.acknowledge()

    def acknowledge(self) -> None:
        """Acknowledge every change."""
        queued, self._held = self._held, []
        for on_done in queued:
            on_done()

    def entries(self) -> list[Entry]:
        """The entries that were written, without tombstones."""
        return [entry for _, _, value in self.changes if value and (entry := decode_entry(value))]

    def tombstones(self) -> list[tuple[int, bytes]]:
        """Partition and key of each tombstone."""
        return [(partition, key) for partition, key, value in self.changes if value is None]


class FakeRecovery(Recovery):
    """Fills stores with the entries of ``known``, by partition; may wait or fail.

    Attributes:
        partitions: Of the changelog.
        end: The offset at which its partitions end.
        most_entries: The most in the stores at one time, between batches.
        reads: The partitions of each read.
        released: Reads wait until it is set.
    """

    def __init__(self, partitions: int = 3) -> None:
        self.partitions = partitions
        self.known: dict[int, list[Entry]] = {}
        self.unreadable = False
        self.end = 100
        self.most_entries = 0
        self.reads: list[tuple[int, ...]] = []
        self.released = asyncio.Event()
        self.released.set()

    async def read(
        self, stores: Mapping[int, Store], after_batch: Callable[[], None] = lambda: None
    ) -> int:
        self.reads.append(tuple(sorted(stores)))
        await self.released.wait()
        if self.unreadable:
            raise TopicUnusable("changelog", "not authorized")
        for partition, store in stores.items():
            for entry in self.known.get(partition, []):
                store.put(entry_key(entry.order_id), entry.finished_ms, encode_entry(entry))
                after_batch()
                self.most_entries = max(self.most_entries, sum(map(len, stores.values())))
            store.read_up_to(max(self.end, store.next_offset or 0))
        return self.partitions


class StoreOnDisk(MemoryStore):
    """A store whose disk may fail: it is off then, as ``RocksStore`` is."""

    def fail(self) -> None:
        self.clear()
        self.failed = True

    def put(self, key: bytes, finished_ms: int, value: bytes) -> None:
        if not self.failed:
            super().put(key, finished_ms, value)

    def read_up_to(self, next_offset: int) -> None:
        if not self.failed:
            super().read_up_to(next_offset)


class TableBench:
    """A deliveries table on fakes. Make it inside the loop.

    Attributes:
        open_refusals: What opening a store raises, call by call.
        broken: Partitions whose stores fail as soon as they are opened.
        stores: The stores that were opened.
        recoveries: How long each recovery took, in seconds.
        now: The wall clock.
    """

    def __init__(
        self, *, retention_seconds: float = 3600.0, max_entries: int | None = None
    ) -> None:
        self.changelog = FakeChangelog()
        self.recovery = FakeRecovery()
        self.recoveries: list[float] = []
        self.finished: list[Record] = []
        self.open_refusals: list[Exception] = []
        self.broken: set[int] = set()
        self.stores: dict[int, StoreOnDisk] = {}
        self.now = START_SECONDS
        self.deliveries = DeliveriesTable(
            self.changelog,
            self.recovery,
            self._open,
            self.finished.append,
            self.recoveries.append,
            retention_seconds=retention_seconds,
            max_entries=max_entries,
            wall_clock=lambda: self.now,
        )

    async def arrive(self, *partitions: int) -> None:
        """Assign partitions, and wait until they are ready."""
        self.deliveries.assigned(partitions)
        assert await self.deliveries.until_ready()

    def finish(self, order_id: int, partition: int = 0) -> Record:
        """Finish a delivered record of an order; return it."""
        one = record(order_id, str(order_id), partition=partition)
        self.deliveries.finished(one, Outcome(True, 1, order_id))
        return one

    def _open(self, partition: int) -> StoreOnDisk:
        if self.open_refusals:
            raise self.open_refusals.pop()
        store = self.stores[partition] = StoreOnDisk()
        if partition in self.broken:
            store.fail()
        return store
