"""The table ``deliveries`` on this worker: entries of the partitions that it has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

from app.delivery.outcome import Outcome
from app.delivery.record import Record
from app.log_line import LogLine
from app.order_status.entry import Entry, decode_entry, encode_entry, entry_key, make_entry
from app.order_status.recovery import ChangelogUnreadable
from app.order_status.store import PartitionStore

logger = logging.getLogger(__name__)

# Old entries are looked for this often, or ten times in a shorter retention.
SWEEP_SECONDS = 30.0
SWEEP_CHUNK = 500
LEAVING_SECONDS = 2.0
# A record that is no event may still tell its order by its key.
ORDER_KEY = re.compile(rb"-?[0-9]{1,19}")


class ChangelogWriter(Protocol):
    """See ``Changelog``."""

    next_offsets: dict[int, int]

    def write(
        self, partition: int, key: bytes, value: bytes | None, on_done: Callable[[], None]
    ) -> None:
        """See ``Changelog.write``."""

    async def drain(self, timeout_seconds: float) -> None:
        """See ``Changelog.drain``."""


class ChangelogReader(Protocol):
    """See ``Recovery``."""

    def read(self, stores: dict[int, PartitionStore], stop: threading.Event) -> int:
        """See ``Recovery.read``."""


class RecoveryObserver(Protocol):
    """Hears of recoveries, for metrics."""

    def recovered(self, seconds: float) -> None:
        """All partitions of an assignment are ready."""


class DeliveryBook:
    """Keeps an entry of every finished record, and knows those of the partitions it has.

    ``arriving`` and ``leaving`` follow the consumer group; between them records of a partition
    may be finished once ``until_ready`` let them through.
    """

    def __init__(
        self,
        changelog: ChangelogWriter,
        recovery: ChangelogReader,
        open_store: Callable[[int], PartitionStore],
        on_finished: Callable[[Record], None],
        observer: RecoveryObserver,
        *,
        retention_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is opened or read yet.

        Args:
            changelog: Where entries are written.
            recovery: Reads them back.
            open_store: Opens the store of a partition; may raise anything, and is tried again.
            on_finished: Called with each record once Kafka has its entry, or refused it.
            observer: Hears how long recoveries take.
            retention_seconds: How long entries are kept.
            wall_clock: Seconds since the epoch.
        """
        self._changelog = changelog
        self._recovery = recovery
        self._open_store = open_store
        self._on_finished = on_finished
        self._observer = observer
        self._retention_seconds = retention_seconds
        self._wall_clock = wall_clock
        self._stores: dict[int, PartitionStore] = {}
        self._incomplete: set[int] = set()
        self._changelog_partitions = 0
        self._ready = asyncio.Event()
        self._left = asyncio.Event()
        self._stop_reading = threading.Event()
        self._reading: asyncio.Task[None] | None = None

    @property
    def recovering(self) -> bool:
        """Whether the partitions that this worker has are still being read."""
        return self._reading is not None and not self._reading.done()

    @property
    def entries(self) -> int:
        """Entries on this worker; estimated where they are on disk."""
        return sum(len(store) for store in self._stores.values())

    @property
    def ready(self) -> bool:
        """Whether records can be finished now; else ``until_ready`` waits."""
        return self._ready.is_set()

    # --- the partitions -------------------------------------------------------------------------

    def arriving(self, partitions: Collection[int]) -> None:
        """Take over partitions; what was known of others is dropped, ``until_ready`` waits."""
        self._stop_reading.set()
        self._stop_reading = threading.Event()
        self._ready.clear()
        self._left.clear()
        self._reading = asyncio.create_task(
            self._take_over(frozenset(partitions), self._reading, self._stop_reading)
        )

    async def leaving(self) -> None:
        """Stop reading, and give Kafka a moment to acknowledge what was written.

        Call it after the last record was finished and before offsets are committed.
        """
        self._left.set()
        self._ready.clear()
        self._stop_reading.set()
        await self._changelog.drain(LEAVING_SECONDS)

    async def until_ready(self) -> bool:
        """Wait until the partitions are read; ``False`` when they leave before that."""
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self._left)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._ready.is_set()

    async def close(self) -> None:
        """Stop everything and let go of files. May be called twice."""
        await self.leaving()
        if self._reading is not None:
            await asyncio.wait([self._reading])
        self._note_offsets()
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    async def _take_over(
        self,
        partitions: frozenset[int],
        before: asyncio.Task[None] | None,
        stop: threading.Event,
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        if stop.is_set():
            return
        started = time.monotonic()
        self._note_offsets()
        self._changelog.next_offsets.clear()
        for partition in self._stores.keys() - partitions:
            self._stores.pop(partition).close()
        try:
            for partition in sorted(partitions - self._stores.keys()):
                self._stores[partition] = await self._opened(partition, stop)
            self._incomplete = set(partitions)
            self._changelog_partitions = await asyncio.to_thread(
                self._recovery.read, dict(self._stores), stop
            )
            if not stop.is_set():
                self._incomplete = set()
        except ChangelogUnreadable as error:
            logger.error(
                LogLine(
                    "Table deliveries: its changelog cannot be read; deliveries go on without what "
                    "was known before, events may be posted again",
                    detail=str(error),
                )
            )
        except Exception:
            if not stop.is_set():
                logger.exception("Table deliveries: recovery failed in a way nobody foresaw")
        if stop.is_set():
            return
        seconds = time.monotonic() - started
        logger.info(
            LogLine(
                "Table deliveries ready",
                partitions=",".join(map(str, sorted(partitions))),
                entries=self.entries,
                seconds=round(seconds, 1),
            )
        )
        self._observer.recovered(seconds)
        self._ready.set()

    async def _opened(self, partition: int, stop: threading.Event) -> PartitionStore:
        said = False
        while True:
            try:
                return self._open_store(partition)
            except Exception as error:
                # Its last owner on this machine may be about to close it.
                if not said:
                    logger.warning(
                        LogLine(
                            "Table deliveries: store not opened, trying on",
                            partition=partition,
                            detail=str(error),
                        )
                    )
                said = True
                if stop.is_set():
                    raise
                await asyncio.sleep(0.5)

    def _note_offsets(self) -> None:
        """Let stores that outlive this process begin where the changelog is known to end."""
        for partition, store in self._stores.items():
            if partition in self._incomplete or not self._changelog_partitions:
                continue
            after = self._changelog.next_offsets.get(partition % self._changelog_partitions, 0)
            if after > (store.next_offset or 0):
                store.read_up_to(after)

    # --- records --------------------------------------------------------------------------------

    def is_delivered(self, record: Record, order_id: int) -> bool:
        """Whether the record's event was delivered before, as far as this worker knows."""
        store = self._stores.get(record.partition)
        entry = _get(store, entry_key(order_id)) if store is not None else None
        return entry is not None and entry.has_delivered(record.idempotency_key())

    def finished(self, record: Record, outcome: Outcome) -> None:
        """Keep a finished record's entry; ``on_finished`` follows once Kafka has it."""
        order_id = outcome.order_id
        if order_id is None and record.key is not None and ORDER_KEY.fullmatch(record.key):
            order_id = int(record.key)
        store = self._stores.get(record.partition)
        if outcome.duplicate or order_id is None or store is None:
            self._on_finished(record)
            return
        key = entry_key(order_id)
        finished_ms = int(self._wall_clock() * 1000)
        entry = make_entry(record, order_id, outcome, finished_ms, _get(store, key))
        value = encode_entry(entry)
        store.put(key, finished_ms, value)
        self._changelog.write(
            self._changelog_partition(record.partition),
            key,
            value,
            partial(self._on_finished, record),
        )

    def find(self, order_id: int) -> Entry | None:
        """Return the latest entry of an order on this worker."""
        key = entry_key(order_id)
        found = [entry for store in self._stores.values() if (entry := _get(store, key))]
        return max(found, key=lambda entry: entry.finished_ms, default=None)

    def _changelog_partition(self, partition: int) -> int:
        # Made after the source topic, with as many partitions, unless that grew since.
        return partition % self._changelog_partitions if self._changelog_partitions else partition

    # --- age ------------------------------------------------------------------------------------

    async def forget_old(self) -> None:
        """Remove entries past the retention, here and in the changelog, until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._retention_seconds / 10))
            with contextlib.suppress(KeyError):  # a partition left meanwhile
                await self.sweep()

    async def sweep(self) -> int:
        """Remove entries that are past the retention now; returns how many."""
        removed = 0
        before_ms = int((self._wall_clock() - self._retention_seconds) * 1000)
        for partition in list(self._stores):
            while self._ready.is_set():
                store = self._stores[partition]
                keys = store.older_than(before_ms, SWEEP_CHUNK)
                for key in keys:
                    store.remove(key)
                    target = self._changelog_partition(partition)
                    self._changelog.write(target, key, None, _nothing)
                removed += len(keys)
                if len(keys) < SWEEP_CHUNK:
                    break
                # Tombstones are in no hurry: deliveries come first.
                await self._changelog.drain(LEAVING_SECONDS)
        if self._ready.is_set():
            self._note_offsets()
        return removed


def _get(store: PartitionStore, key: bytes) -> Entry | None:
    value = store.get(key)
    return None if value is None else decode_entry(value)


def _nothing() -> None:
    """A tombstone is written: nobody waits for it."""
