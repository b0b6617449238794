"""The relay and the partition's progress together: any outcomes, any rebalances."""

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from order_relay.delivery.progress import Commit, PartitionProgress
from order_relay.errors import PublishRefused
from order_relay.model.record import Record
from tests.support.fakes import NO_ANSWER, Bench, Step, answer, must, record
from tests.support.virtual_time import run_virtual

OUTCOMES = [
    *(answer(status) for status in (200, 204, 302, 400, 401, 404, 500, 503)),
    answer(429, retry_after_seconds=7.0), NO_ANSWER, ValueError("unexpected"),
]  # fmt: skip
VALID = b""  # tests.support.fakes.record writes an order
FATES = st.lists(
    st.builds(Step, st.sampled_from(OUTCOMES), st.sampled_from([0.0, 0.5, 3.0, 10.0])), max_size=6
)


@dataclass(frozen=True, slots=True)
class Rebalance:
    after: float
    attempt: float
    commits: bool


RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]), st.sampled_from([VALID, VALID, b"{", None]), FATES
    ),
    min_size=1,
    max_size=10,
)
REBALANCES = st.lists(
    st.builds(
        Rebalance,
        after=st.sampled_from([0.0, 0.25, 4.0, 60.0]),
        attempt=st.sampled_from([0.0, 1.0, 3.0]),
        commits=st.booleans(),
    ),
    max_size=3,
)


class Worker:
    """The relay and a partition's progress, put together as the transport does it."""

    def __init__(self, bench: Bench, log: list[Record]) -> None:
        self.bench = bench
        self.log = log
        self.committed: Commit | None = None
        self.finished_at_commit: set[int] = set()
        bench.on_finished = self._finished
        bench.target.on_attempt = self._attempted
        bench.reading.on_asked = self._move
        bench.reading.on_left = lambda one: self.progress.leave(one.offset)
        self.assign()

    def assign(self) -> None:
        """Begin at the committed offset; what finished uncommitted comes again."""
        self.progress = PartitionProgress(1, self.committed)
        self.finished = set(self.finished_at_commit)
        self.last_attempted: dict[object, int] = {}
        self.last_finished: dict[object, int] = {}
        self.position = self.committed.offset if self.committed else 0
        self.moved = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    def commit(self) -> None:
        self.committed = self.progress.commit()
        self.finished_at_commit = set(self.finished)

    async def until_all_finished(self) -> None:
        await self.reading
        left = len(self.log) - len(self.finished)
        await self.bench.until_finished(len(self.bench.finished) + left)

    async def _read(self) -> None:
        dispatcher = self.bench.dispatcher
        # What is queued may be left in Kafka later.
        while self.position < len(self.log) or dispatcher.left.lanes or dispatcher.queued:
            if self.position == len(self.log):
                self.moved.clear()
                await self.moved.wait()
                continue
            one = self.log[self.position]
            self.position += 1
            if not self.progress.add(one.offset, 0.0):
                continue
            assert one.offset not in self.finished
            if self.progress.claim(one.offset) and not await dispatcher.submit(one):
                self.progress.leave(one.offset)

    def _move(self, offset: int | None) -> None:
        position = self.progress.position if offset is None else offset
        assert position is not None
        self.position = position
        self.moved.set()

    def _attempted(self) -> None:
        under_way = [_key(self.log[_offset(event_id)]) for event_id in self.bench.target.under_way]
        must(len(under_way) == len(set(under_way)), "two of one key at a time")
        offset = _offset(self.bench.target.under_way[-1])
        must(offset not in self.finished, "attempt at a finished record")
        self._goes_on(self.last_attempted, offset)

    def _finished(self, one: Record) -> None:
        must(one.offset not in self.finished, "finished twice")
        self.finished.add(one.offset)
        self.progress.finish(one.offset)
        self.moved.set()
        self._goes_on(self.last_finished, one.offset)

    def _goes_on(self, last: dict[object, int], offset: int) -> None:
        key = _key(self.log[offset])
        must(last.get(key, -1) <= offset, "back in its key")
        last[key] = offset


def _key(one: Record) -> object:
    return one.key if one.key is not None else one.offset


def _offset(event_id: str) -> int:
    return int(event_id.rpartition("-")[2])


@given(RECORDS, REBALANCES, st.sampled_from([0, 1, 2, 5]), st.integers(1, 3), st.integers(0, 4))
@settings(max_examples=200)
def test_every_record_ends_once_and_in_order(
    records: list[tuple[str | None, bytes | None, list[Step]]],
    rebalances: list[Rebalance],
    threshold: int,
    max_in_flight: int,
    refusals: int,
) -> None:
    """In any case all end, once per assignment, in order within a key."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        bench = Bench(breaker_threshold=threshold, max_in_flight=max_in_flight, max_queued=6)
        log = [record(offset, key, value=value) for offset, (key, value, _) in enumerate(records)]
        for one, (_, _, fate) in zip(log, records, strict=True):
            bench.target.plan(one, *fate)
        bench.dead_letters.refusals.extend([PublishRefused("dlq", "down")] * refusals)
        worker = Worker(bench, log)
        for rebalance in rebalances:
            await asyncio.sleep(rebalance.after)
            began = loop.time()
            await bench.dispatcher.drain(attempt_seconds=rebalance.attempt)
            assert loop.time() - began <= rebalance.attempt
            assert (bench.dispatcher.queued, bench.dispatcher.in_flight) == (0, 0)
            assert bench.target.under_way == []
            finished = set(worker.finished)
            await asyncio.sleep(0.5)
            worker.moved.set()  # nothing is left any more
            await asyncio.sleep(0)
            assert worker.reading.done(), "the task that waited to submit a record returned"
            assert worker.finished == finished
            if rebalance.commits:
                worker.commit()
            bench.dispatcher.resume()
            worker.assign()
        await worker.until_all_finished()
        await asyncio.sleep(0.5)

        worker.commit()
        assert worker.committed == Commit(len(log), "")
        assert (bench.dispatcher.queued, bench.dispatcher.in_flight) == (0, 0)
        assert bench.dispatcher.dead_lettering == 0
        assert bench.target.most_under_way <= max_in_flight

    run_virtual(main())
