"""Polls a group's commits, and checks that the committed records are finished."""

import asyncio
import time
from collections.abc import Callable
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.support.stage import Committed, Stage
from tests.support.waiting import eventually

LOOK_SECONDS = 0.1
# Followers fetch at least every 500 ms (replica.fetch.wait.max.ms), and learn only then how far
# the others are.
REPLICATED_SECONDS = 1.0
ANSWER_MS = 3000
LIMIT_SECONDS = 120.0

Place = tuple[int, int]
"""Partition and offset."""


def finished_beyond(committed: Committed) -> set[int]:
    """Offsets after the committed one that its metadata says are finished.

    order_relay/delivery/progress.py defines the format, "relay2:<offset>:<length>:<gap>,<gap>...";
    this is a second parser on purpose.
    """
    if not committed.metadata:
        return set()
    version, offset, length, gaps = committed.metadata.split(":")
    assert (version, int(offset)) == ("relay2", committed.offset)
    finished = set(range(committed.offset, committed.offset + int(length)))
    position = committed.offset
    for gap in filter(None, gaps.split(",")):
        position += int(gap)
        finished.remove(position)  # never twice, never beyond the length
    return finished


class CommitWatch:
    """Polls a group's commits while its block runs.

    Attributes:
        looks: Every answer, in order.
        faults: Commits of records that were not finished; there must be none.
        steps_back: Commits that were behind an earlier one.
        coordinator_died_at: When the group's coordinator was killed or frozen, in monotonic
            seconds. For a moment the next one answers without the latest commits, as it does not
            know yet that a majority has them. (A bare consumer sees this, too.)
        known_at: When each record was first seen as committed, by the offset or by the metadata;
            monotonic seconds.
        not_records: Places without a record: deleted, or a transaction's marker.
    """

    def __init__(self, stage: Stage, is_finished: Callable[[Place], bool]) -> None:
        """Watch the stage's group; ``is_finished`` is asked about each record that is committed."""
        self.looks: list[dict[int, Committed]] = []
        self.faults: list[str] = []
        self.steps_back: list[str] = []
        self.known_at: dict[Place, float] = {}
        self.not_records: set[Place] = set()
        self.coordinator_died_at = float("inf")
        self._stage = stage
        self._is_finished = is_finished
        self._checked: dict[int, int] = {}
        # Not confluent_kafka: it reads beyond the end of metadata in memory.
        self._client = AIOKafkaAdminClient(
            bootstrap_servers=stage.bootstrap_servers, request_timeout_ms=ANSWER_MS
        )
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._client.start()
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._client.close()
        if self._looking is not None and not self._looking.cancelled():
            self._looking.result()  # the loop never ends, so it has failed

    @property
    def last(self) -> dict[int, Committed]:
        """The last answer."""
        return self.looks[-1] if self.looks else {}

    async def until_all_committed(
        self, timeout: float = LIMIT_SECONDS, describe: Callable[[], object] | None = None
    ) -> None:
        """Wait until the group has committed the end of every partition that has records."""
        ends = {p: end for p, end in (await self._stage.ends()).items() if end > 0}
        await eventually(
            lambda: ends == {p: self.offset(p) for p in ends},
            timeout,
            describe or (lambda: (ends, self.last)),
        )

    def check(self) -> None:
        """There were commits, all of finished records."""
        assert self.looks
        assert not self.faults, self.faults[:10]

    def offset(self, partition: int) -> int | None:
        """The committed offset of a partition by the last answer; ``None`` without one."""
        committed = self.last.get(partition)
        return None if committed is None else committed.offset

    async def _look(self) -> None:
        while True:
            committed = await self._ask()
            if committed:
                self._check(committed)
                self.looks.append(committed)
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask(self) -> dict[int, Committed]:
        try:
            answer = await self._client.list_consumer_group_offsets(self._stage.group_id)
        except (KafkaError, AttributeError):
            # A fault is in progress: try again. (The client cannot parse some error answers.)
            return {}
        return {
            tp.partition: Committed(one.offset, one.metadata or "")
            for tp, one in answer.items()
            if tp.topic == self._stage.topic and one.offset >= 0
        }

    def _check(self, committed: dict[int, Committed]) -> None:
        for partition, now in committed.items():
            checked = self._checked.get(partition, 0)
            if any(self._was_known(partition, one) for one in range(now.offset, checked)):
                self.steps_back.append(f"{partition}: from {checked} back to {now.offset}")
            self._checked[partition] = max(checked, now.offset)
            for offset in {*range(checked, now.offset), *finished_beyond(now)}:
                place = partition, offset
                if place in self.known_at or place in self.not_records:
                    continue
                self.known_at[place] = time.monotonic()
                if not self._is_finished(place):
                    self.faults.append(f"committed {now}, and {place} is not finished")

    def _was_known(self, partition: int, offset: int) -> bool:
        """Whether every coordinator must know that the record there is committed."""
        known_at = self.known_at.get((partition, offset))
        return known_at is not None and known_at < self.coordinator_died_at - REPLICATED_SECONDS
