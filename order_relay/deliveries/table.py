"""The deliveries table on this worker: the entries of the partitions that it has."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from functools import partial

from order_relay.deliveries.changelog import Changelog
from order_relay.deliveries.entries import (
    Entry,
    decode_entry,
    encode_entry,
    entry_key,
    make_entry,
)
from order_relay.deliveries.recovery import ChangelogUnreadable, Recovery
from order_relay.deliveries.retention import Retention
from order_relay.deliveries.store import PartitionStore
from order_relay.deliveries.stores import Stores
from order_relay.delivery.outcome import Outcome
from order_relay.logs.log_line import LogLine
from order_relay.model.order_paid import OrderId, is_order_id
from order_relay.model.record import Record

logger = logging.getLogger(__name__)

LEAVING_SECONDS = 2.0
CLOSE_SECONDS = 5.0


class DeliveriesTable:
    """Keeps an entry of every finished record of the partitions that this worker has.

    Call ``assigned`` and ``revoking`` as the consumer group moves partitions. Records may be
    finished once ``until_ready`` has returned ``True``.

    Attributes:
        retention: Removes old entries; the caller runs its ``run``.
    """

    def __init__(
        self,
        changelog: Changelog,
        recovery: Recovery,
        open_store: Callable[[int], PartitionStore],
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
            open_store: Opens the store of a partition; see ``Stores``.
            on_finished: Called with each finished record once Kafka has, or has refused, its entry.
            on_recovered: Called after each recovery, with the seconds that it took.
            retention_seconds: How long entries are kept.
            max_entries: Entries kept in memory at most, roughly; ``None``: no limit.
            wall_clock: Seconds since the epoch.
        """
        self._changelog = changelog
        self._recovery = recovery
        self._on_finished = on_finished
        self._on_recovered = on_recovered
        self._wall_clock = wall_clock
        self._stores = Stores(open_store, max_entries)
        self._changelog_partitions = 0
        self._ready = asyncio.Event()
        self._left = asyncio.Event()
        self._stop_reading = threading.Event()
        self._reading: asyncio.Task[None] | None = None
        self.retention = Retention(
            self._stores,
            changelog,
            self._changelog_partition,
            self._ready.is_set,
            # A store on disk then reads little again, even after a kill.
            self._note_offsets,
            retention_seconds=retention_seconds,
            wall_clock=wall_clock,
        )

    @property
    def ready(self) -> bool:
        """Whether records can be finished now; if not, await ``until_ready``."""
        return self._ready.is_set()

    @property
    def complete(self) -> bool:
        """Whether it has everything that was in the changelog when it was read."""
        return self._stores.complete

    @property
    def partitions(self) -> list[int]:
        """The partitions whose entries it has."""
        return list(self._stores)

    @property
    def recovering(self) -> bool:
        """Whether the changelog of this worker's partitions is still being read."""
        return self._reading is not None and not self._reading.done()

    @property
    def entries(self) -> int:
        """Entries on this worker; estimated where they are on disk."""
        return self._stores.entries

    # --- the partitions -------------------------------------------------------------------------

    def assigned(self, partitions: Collection[int]) -> None:
        """Take over these partitions; entries of others are dropped, ``until_ready`` waits."""
        self._stop_reading.set()
        self._stop_reading = threading.Event()
        self._ready.clear()
        self._left.clear()
        self._reading = asyncio.create_task(
            self._take_over(frozenset(partitions), self._reading, self._stop_reading)
        )

    async def revoking(self) -> None:
        """Stop reading, and give Kafka ``LEAVING_SECONDS`` to acknowledge entries.

        Call it after the last record was finished and before offsets are committed. Records whose
        entry is not acknowledged by then are committed, too: they were delivered, and the next
        owner would not find them in the table, either.
        """
        self._left.set()
        self._ready.clear()
        self._stop_reading.set()
        await self._changelog.drain(LEAVING_SECONDS)
        self._changelog.release_waiters()

    async def until_ready(self) -> bool:
        """Wait until the partitions are read; ``False`` if they are revoked before that."""
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self._left)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._ready.is_set()

    async def close(self) -> None:
        """Stop reading, and close the stores. May be called twice."""
        await self.revoking()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=CLOSE_SECONDS)
        self._note_offsets()
        self._stores.close()

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
        try:
            await self._fill(partitions, stop)
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
                logger.exception("Table deliveries: recovery failed with an unexpected error")
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
        self._on_recovered(seconds)
        self._ready.set()

    async def _fill(self, partitions: frozenset[int], stop: threading.Event) -> None:
        self._note_offsets()
        self._changelog.next_offsets = {}
        stores = await self._stores.assign(partitions, stop)
        while not stop.is_set():
            self._changelog_partitions = await asyncio.to_thread(
                self._recovery.read, stores, stop, self._stores.forget_excess
            )
            if not stop.is_set() and self._stores.recovered_all():
                self._changelog.next_offsets = self._stores.next_offsets(self._changelog_partitions)
                return

    def _note_offsets(self) -> None:
        self._stores.read_up_to(self._changelog.next_offsets, self._changelog_partitions)

    # --- records --------------------------------------------------------------------------------

    def is_delivered(self, record: Record, order_id: OrderId | None) -> bool:
        """Whether this worker has an entry that says the record's event was delivered."""
        if order_id is None and (order_id := _order_of(record)) is None:
            return False
        store = self._stores.get(record.partition)
        value = store.get(entry_key(order_id)) if store is not None else None
        if value is None:  # the usual case
            return False
        entry = decode_entry(value)
        return entry is not None and entry.has_delivered(record)

    def finished(self, record: Record, outcome: Outcome) -> None:
        """Write a finished record's entry; ``on_finished`` follows once Kafka has it."""
        order_id = outcome.order_id
        if order_id is None:
            order_id = _order_of(record)
        store = self._stores.get(record.partition)
        if outcome.duplicate or order_id is None or store is None:
            self._on_finished(record)
            return
        key = entry_key(order_id)
        finished_ms = int(self._wall_clock() * 1000)
        known = store.get(key)
        before = None if known is None else decode_entry(known)
        value = encode_entry(make_entry(record, order_id, outcome, finished_ms, before))
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

    def _changelog_partition(self, partition: int) -> int:
        # The changelog has as many partitions as the source topic had when it was made.
        return partition % self._changelog_partitions if self._changelog_partitions else partition


def _order_of(record: Record) -> OrderId | None:
    """Return the order id in a record's key, for records whose value has none that can be read."""
    if record.key is None:
        return None
    text = record.key.decode("utf-8", "replace")
    if not is_order_id(text):
        return None
    return int(text) if re.fullmatch(r"-?[1-9][0-9]{0,17}", text, re.ASCII) else text
