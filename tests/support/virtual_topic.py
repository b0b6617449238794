"""A partition in virtual time, read into a relay as the consumer does it, with its ledger."""

import asyncio
from collections.abc import Callable
from typing import Any

from order_relay.delivery.progress import PartitionProgress
from order_relay.model.record import Record
from tests.support.fakes import Bench, Step, answer, record

OK = Step(answer(200))


class VirtualTopic:
    """Records that are published at their time, taken by the bench's relay, and their ledger.

    Attributes:
        published_at: When each record was published, by offset; seconds of the loop.
        finished_at: When each finished.
        attempts: Attempts so far, by event id.
        records_read: How many were read, some of them again.
    """

    def __init__(self, answers: Callable[[Record, float, int], Step], **settings: Any) -> None:
        """Read into a relay whose target answers as told.

        Args:
            answers: The result of an attempt at this record, at this second, its n-th from 1.
            settings: Of ``Bench``.
        """
        self.bench = Bench(**{"breaker_threshold": 20, "max_in_flight": 256, **settings})
        self.published_at: list[float] = []
        self.finished_at: dict[int, float] = {}
        self.attempts: dict[str, int] = {}
        self.records_read = 0
        self._answers = answers
        self._log: list[Record] = []
        self._by_id: dict[str, Record] = {}
        self._progress = PartitionProgress(1)
        self._position = 0
        self._changed = asyncio.Event()
        self.bench.target.decide = self._decide
        self.bench.on_finished = self._finished
        self.bench.reading.on_asked = self._move
        self.bench.reading.on_left = lambda one: self._progress.leave(one.offset)
        self._reading = asyncio.create_task(self._read())

    @property
    def given_up(self) -> list[str]:
        """Keys of the records that were given up."""
        return [(letter.record.key or b"").decode() for letter in self.bench.dead_letters.letters]

    def publish(self, *keys: str) -> None:
        """Publish a record of each key."""
        for key in keys:
            one = record(len(self._log), key)
            self._log.append(one)
            self._by_id[one.idempotency_key()] = one
            self.published_at.append(asyncio.get_running_loop().time())
        self._changed.set()

    async def publish_every(self, seconds: float, *keys: str) -> None:
        """Publish a record of each key in turn, and wait so long after each."""
        for key in keys:
            self.publish(key)
            await asyncio.sleep(seconds)

    def delays(self, key: str) -> list[float]:
        """Seconds from published to finished of records whose key begins so, in ascending order.

        Unfinished ones took until now.
        """
        now = asyncio.get_running_loop().time()
        return sorted(
            self.finished_at.get(one.offset, now) - self.published_at[one.offset]
            for one in self._log
            if (one.key or b"").startswith(key.encode())
        )

    async def until_finished(self, within_seconds: float = 10_000.0) -> None:
        """Wait until all that is published is finished; each key in its order."""
        await self.bench.until_finished(len(self._log), within_seconds)
        by_key: dict[bytes | None, list[int]] = {}
        for offset in self.bench.finished_offsets:
            by_key.setdefault(self._log[offset].key, []).append(offset)
        assert all(offsets == sorted(offsets) for offsets in by_key.values())
        commit = self._progress.commit()
        assert commit is not None
        assert commit.offset == len(self._log)

    async def stop(self) -> None:
        """End reading."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            if self._position == len(self._log):
                self._changed.clear()
                await self._changed.wait()
                continue
            one = self._log[self._position]
            self._position += 1
            self.records_read += 1
            if not self._progress.add(one.offset, 0.0) or not self._progress.claim(one.offset):
                continue
            if not await self.bench.dispatcher.submit(one):
                self._progress.leave(one.offset)

    def _move(self, offset: int | None) -> None:
        position = self._progress.position if offset is None else offset
        assert position is not None
        self._position = position
        self._changed.set()

    def _decide(self, event_id: str) -> Step:
        attempt = self.attempts[event_id] = self.attempts.get(event_id, 0) + 1
        return self._answers(self._by_id[event_id], asyncio.get_running_loop().time(), attempt)

    def _finished(self, one: Record) -> None:
        self._progress.finish(one.offset)
        self.finished_at[one.offset] = asyncio.get_running_loop().time()
