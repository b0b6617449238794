"""The deliveries table on this worker: the entries of the partitions that it has."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial

from order_relay.deliveries.changelog import Changelog
from order_relay.deliveries.entries import (
    Entry,
    decode_entry,
    encode_entry,
    entry_key,
    make_entry,
    order_of_key,
)
from order_relay.deliveries.recovery import Recovery
from order_relay.deliveries.stores import Store, is_locked, log_failure
from order_relay.delivery.outcome import Outcome
from order_relay.errors import RelayError
from order_relay.logs.log_line import LogLine
from order_relay.model.order_paid import OrderId
from order_relay.model.record import Record

logger = logging.getLogger(__name__)

OPEN_SECONDS = 30.0
OPEN_AGAIN_SECONDS = 0.5
LEAVING_SECONDS = 2.0
CLOSE_SECONDS = 5.0
# Time between sweeps; a tenth of the retention if that is less.
SWEEP_SECONDS = 30.0
SWEEP_CHUNK = 500
SWEEP_DRAIN_SECONDS = 2.0
ANY_AGE_MS = 2**62


class DeliveriesTable:
    """Keeps an entry of every finished record of the partitions that this worker has.

    Call ``assigned`` and ``revoking`` as the consumer group moves partitions. Records may be
    finished once ``until_ready`` has returned ``True``. A partition whose store fails has no table
    until the next assignment: its records are finished and their entries go to the changelog, but
    nothing is found.

    Attributes:
        ready: Whether records can be finished now; if not, await ``until_ready``.
        partitions: The partitions of the latest assignment.
        full: Whether it has forgotten entries before the end of their retention.
    """

    def __init__(
        self,
        changelog: Changelog,
        recovery: Recovery,
        open_store: Callable[[int], Store],
        on_finished: Callable[[Record], None],
        on_recovered: Callable[[float], None],
        *,
        retention_seconds: float,
        max_entries: int | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is opened or read yet.

        Args:
            changelog: Where entries are written.
            recovery: Reads them back.
            open_store: Opens the store of a partition; called again after any exception.
            on_finished: Called with each finished record once Kafka has, or has refused, its entry.
            on_recovered: Called after each recovery, with the seconds that it took.
            retention_seconds: How long entries are kept.
            max_entries: Entries kept at most, roughly; ``None``: no limit.
            wall_clock: Seconds since the epoch.
        """
        self.ready = False
        self.partitions: frozenset[int] = frozenset()
        self._changelog = changelog
        self._recovery = recovery
        self._open_store = open_store
        self._on_finished = on_finished
        self._on_recovered = on_recovered
        self._retention_seconds = retention_seconds
        self._max_entries = max_entries
        self._wall_clock = wall_clock
        self._stores: dict[int, Store] = {}
        self._changelog_partitions = 0
        self._recovered = self.full = False
        self._settled = asyncio.Event()  # ready, or the partitions are revoked
        self._reading: asyncio.Task[None] | None = None
        self._taking_over = asyncio.Lock()  # held until a cancelled reading has ended

    @property
    def off(self) -> int:
        """Partitions without a table, since their store failed."""
        stores = [self._stores.get(partition) for partition in self.partitions]
        return sum(store is None or store.failed for store in stores) if self.ready else 0

    @property
    def complete(self) -> bool:
        """Whether it has everything that was in the changelog when it was read."""
        return self._recovered and not self.off

    @property
    def recovering(self) -> bool:
        """Whether the changelog of this worker's partitions is still being read."""
        return self._reading is not None and not self._reading.done()

    @property
    def entries(self) -> int:
        """Entries on this worker; estimated where they are on disk."""
        return sum(map(len, self._stores.values()))

    # --- the partitions -------------------------------------------------------------------------

    def assigned(self, partitions: Collection[int]) -> None:
        """Take over these partitions; entries of others are dropped, ``until_ready`` waits."""
        self._stop_reading()
        self.ready = False
        self._settled.clear()
        self._reading = asyncio.create_task(self._take_over(frozenset(partitions)))

    async def revoking(self) -> None:
        """Stop reading, and give Kafka ``LEAVING_SECONDS`` to acknowledge entries.

        Call it after the last record was finished and before offsets are committed. Records whose
        entry is not acknowledged by then are committed, too: they were delivered, and the next
        owner would not find them in the table, either.
        """
        self.ready = False
        self._settled.set()
        self._stop_reading()
        await self._changelog.drain(LEAVING_SECONDS)
        self._changelog.release_waiters()

    async def until_ready(self) -> bool:
        """Wait until the partitions are read; ``False`` if they are revoked before that."""
        await self._settled.wait()
        return self.ready

    async def close(self) -> None:
        """Stop reading, and close the stores. May be called twice."""
        await self.revoking()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS), self._taking_over:
                pass
        self._note_offsets()
        while self._stores:
            self._stores.popitem()[1].close()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _take_over(self, partitions: frozenset[int]) -> None:
        started = time.monotonic()
        try:
            async with self._taking_over:
                await self._fill(partitions)
        except RelayError as error:
            logger.error(
                LogLine(
                    "Table deliveries: its changelog cannot be read; deliveries go on without what "
                    "was known before, events may be posted again",
                    detail=str(error),
                )
            )
        except Exception:
            logger.exception("Table deliveries: recovery failed with an unexpected error")
        seconds = time.monotonic() - started
        logger.info(
            LogLine(
                "Table deliveries ready",
                partitions=",".join(map(str, sorted(partitions))),
                entries=self.entries,
                seconds=round(seconds, 1),
            )
        )
        self._on_recovered(seconds)
        self.ready = True
        self._settled.set()

    async def _fill(self, partitions: frozenset[int]) -> None:
        self._note_offsets()
        self._changelog.next_offsets = {}
        self._recovered = False
        self.partitions = partitions
        for partition, store in list(self._stores.items()):
            if partition not in partitions or store.failed:
                self._stores.pop(partition).close()
        await self._open(sorted(partitions - self._stores.keys()))
        self._changelog_partitions = await self._recovery.read(
            dict(self._stores), self._forget_excess
        )
        self._recovered = True
        self._changelog.next_offsets = {
            self._changelog_partition(partition): store.next_offset
            for partition, store in self._stores.items()
            if store.next_offset is not None
        }

    async def _open(self, partitions: Collection[int]) -> None:
        """Open stores; one that is damaged, or locked for ``OPEN_SECONDS``, is left out."""
        deadline = time.monotonic() + OPEN_SECONDS
        retried = None
        for partition in partitions:
            while True:
                try:
                    self._stores[partition] = self._open_store(partition)
                    break
                except Exception as error:  # noqa: BLE001 - whatever it raises, deliveries go on
                    if not is_locked(error) or time.monotonic() > deadline:
                        log_failure(partition, error)
                        break
                    if retried != partition:
                        # Its last owner on this machine may be about to close it.
                        logger.warning(
                            LogLine(
                                "Table deliveries: store not opened, retrying",
                                partition=partition,
                                detail=str(error),
                            )
                        )
                    retried = partition
                    await asyncio.sleep(OPEN_AGAIN_SECONDS)

    def _note_offsets(self) -> None:
        """Note what the stores have of the changelog; a store on disk is read on from there."""
        for partition, store in self._stores.items():
            known = self._changelog.next_offsets.get(self._changelog_partition(partition), 0)
            if known > (store.next_offset or 0):
                store.read_up_to(known)

    def _changelog_partition(self, partition: int) -> int:
        # The changelog has as many partitions as the source topic had when it was made.
        return partition % self._changelog_partitions if self._changelog_partitions else partition

    # --- records --------------------------------------------------------------------------------

    def is_delivered(self, record: Record, order_id: OrderId | None) -> bool:
        """Whether this worker has an entry that says the record's event was delivered."""
        entry = self._entry_of(record, order_id)
        return entry is not None and entry.has_delivered(record)

    def is_finished(self, record: Record, order_id: OrderId | None) -> bool:
        """Whether this worker has an entry of the record's event, perhaps not yet in Kafka."""
        entry = self._entry_of(record, order_id)
        return entry is not None and entry.event_id == record.idempotency_key()

    def _entry_of(self, record: Record, order_id: OrderId | None) -> Entry | None:
        if order_id is None and (order_id := order_of_key(record)) is None:
            return None
        store = self._stores.get(record.partition)
        value = store.get(entry_key(order_id)) if store is not None else None
        return None if value is None else decode_entry(value)

    def finished(self, record: Record, outcome: Outcome) -> None:
        """Write a finished record's entry; ``on_finished`` follows once Kafka has it."""
        order_id = outcome.order_id
        if order_id is None:
            order_id = order_of_key(record)
        if outcome.duplicate or order_id is None:
            self._on_finished(record)
            return
        store = self._stores.get(record.partition)
        key = entry_key(order_id)
        finished_ms = int(self._wall_clock() * 1000)
        known = None if store is None else store.get(key)
        before = None if known is None else decode_entry(known)
        value = encode_entry(make_entry(record, order_id, outcome, finished_ms, before))
        if store is not None:
            store.put(key, finished_ms, value)
        self._changelog.write(
            self._changelog_partition(record.partition),
            key,
            value,
            partial(self._on_finished, record),
        )

    def find(self, order_id: OrderId) -> Entry | None:
        """Return the latest entry of an order on this worker."""
        key = entry_key(order_id)
        values = (store.get(key) for store in self._stores.values())
        found = [entry for value in values if value and (entry := decode_entry(value)) is not None]
        return max(found, key=lambda entry: entry.finished_ms, default=None)

    # --- old entries ----------------------------------------------------------------------------

    async def sweep_regularly(self) -> None:
        """Sweep at intervals until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._retention_seconds / 10))
            await self.sweep()

    async def sweep(self) -> int:
        """Remove entries that are past the retention or too many, here and by tombstones.

        Returns:
            How many.
        """
        old_ms = int((self._wall_clock() - self._retention_seconds) * 1000)
        removed = 0
        while self.ready:
            keys = [
                (partition, key)
                for partition, store in self._stores.items()
                for key in store.older_than(old_ms, SWEEP_CHUNK)
            ] or list(self._excess(SWEEP_CHUNK))
            if not keys:
                self._note_offsets()  # a store on disk is read on from there also after a kill
                break
            for partition, key in keys:
                self._stores[partition].remove(key)
                self._changelog.write(self._changelog_partition(partition), key, None)
            removed += len(keys)
            # Tombstones can wait; entries of deliveries go first.
            await self._changelog.drain(SWEEP_DRAIN_SECONDS)
        return removed

    def _forget_excess(self) -> None:
        """Remove excess entries here, without tombstones: the changelog keeps them."""
        for partition, key in list(self._excess(ANY_AGE_MS)):
            self._stores[partition].remove(key)

    def _excess(self, limit: int) -> Iterator[tuple[int, bytes]]:
        """Yield keys of each partition with too many entries, the oldest first.

        All partitions have an equal share; one may exceed it while others leave room.
        """
        if self._max_entries is None or (excess := self.entries - self._max_entries) <= 0:
            return
        if not self.full:
            self.full = True
            logger.warning(
                LogLine(
                    "Table deliveries: full, the oldest orders are forgotten early",
                    max_entries=self._max_entries,
                )
            )
        share = self._max_entries // len(self._stores)
        for partition, store in self._stores.items():
            too_many = max(min(len(store) - share, excess), 0)
            excess -= too_many
            for key in store.older_than(ANY_AGE_MS, min(too_many, limit)):
                yield partition, key
