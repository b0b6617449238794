"""Findings A to F about stock Faust, on real Kafka: the reasons for the design of delivery.

Each test runs a small Faust app (in the folder findings) in a real worker process, and reads the
group's committed offsets from outside. The apps use no code of ours. If a test fails after an
upgrade of Faust, read what it says about our design before changing it.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from tests.kafka.faust.stock_worker import FaustWorker, Note
from tests.support.kafka.cluster import RealKafka
from tests.support.stage import Stage
from tests.support.waiting import wait_until

# For the test of finding F.
KEYS = 60
PARTITIONS = 3
RECORDS = 5_000


class Bench:
    """A topic, a group and the workers of one test."""

    def __init__(self, kafka: RealKafka, module: str, name: str, directory: Path) -> None:
        self.kafka = kafka
        self.topic = f"{name}-topic"
        self.group = f"{name}-group"
        self.workers: list[FaustWorker] = []
        self.produced = 0
        self._stage = Stage(kafka.bootstrap_servers, self.topic, "", self.group)
        self._module = module
        self._directory = directory
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "acks": "all"})

    def start_worker(self, **environment: str) -> FaustWorker:
        """Start one more worker of the group."""
        worker = FaustWorker(
            self._module,
            name=f"worker-{len(self.workers)}",
            directory=self._directory,
            bootstrap_servers=self.kafka.bootstrap_servers,
            group=self.group,
            topic=self.topic,
            environment=environment,
        )
        self.workers.append(worker)
        return worker

    def produce(self, *values: bytes, key: bytes | None = None, partition: int = 0) -> None:
        """Write records and wait until Kafka has them."""
        for value in values:
            self._producer.produce(self.topic, value, key, partition)
        self._flush()
        self.produced += len(values)

    def produce_over_keys(self, records: int) -> None:
        """Write records of KEYS keys in turn, each key always to the same partition."""
        for number in range(self.produced, self.produced + records):
            key = number % KEYS
            self._producer.produce(self.topic, b"x", b"key-%d" % key, key % PARTITIONS)
        self._flush()
        self.produced += records

    def produce_until(self, condition: Callable[[], bool], what: str) -> None:
        """Write records until a condition holds, so that it is reached with work in flight."""

        def holds() -> bool:
            self.produce_over_keys(KEYS)
            assert self.committed_but_not_delivered() == set()
            return condition()

        wait_until(holds, limit=90, what=what)

    def committed(self) -> dict[int, int]:
        """What the group has committed, by partition."""
        return {number: one.offset for number, one in asyncio.run(self._stage.committed()).items()}

    def ends(self) -> dict[int, int]:
        """The offset that the next record of each partition will get."""
        return asyncio.run(self._stage.ends())

    def committed_but_not_delivered(self) -> set[tuple[int, int]]:
        """The records that a kill of all workers at this moment would lose."""
        committed = self.committed()  # read before the journals, which may only be further
        delivered = {(n.partition, n.offset) for w in self.workers for n in w.noted("delivered")}
        return {
            (partition, offset) for partition, end in committed.items() for offset in range(end)
        } - delivered

    def _flush(self) -> None:
        left = self._producer.flush(30)
        assert left == 0, f"{left} records not acknowledged"


@pytest.fixture
def bench(kafka: RealKafka, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Make a bench with a topic: `bench("agent_error", partitions=1)`; ends its workers."""
    benches: list[Bench] = []

    def make(module: str, partitions: int = 1) -> Bench:
        made = Bench(kafka, module, f"{module}-{uuid4().hex[:8]}", tmp_path)
        benches.append(made)
        kafka.create_topic(made.topic, partitions)
        return made

    yield make
    for made in benches:
        for worker in made.workers:
            worker.kill()


@pytest.mark.parametrize(
    ("finished_before", "unfinished"),
    [(0, {0}), (0, {0, 1, 2}), (3, {3})],
    ids=["nothing-committed", "nothing-committed-wide-gap", "after-a-commit"],
)
def test_a_acks_out_of_order_commit_past_an_unfinished_record(
    bench: Callable[..., Bench], finished_before: int, unfinished: set[int]
) -> None:
    """(A) Stock Faust commits offset 6 while a record before it runs; a kill then loses that one.

    `Consumer._new_offset` allows a gap of one before an acked offset, and any gap while nothing, or
    offset 0, is committed. We ack in offset order, so there is never a gap.
    """
    a = bench("out_of_order_acks")
    first = a.start_worker(FINDING_UNFINISHED=" ".join(map(str, unfinished)))
    if finished_before:
        a.produce(*[b"x"] * finished_before)
        first.wait_for(lambda: a.committed() == {0: finished_before}, "commit of what is finished")
    a.produce(*[b"x"] * (6 - finished_before))

    first.wait_for(lambda: a.committed() == {0: 6}, "commit past the unfinished record")
    assert {note.offset for note in first.noted("started")} == set(range(6))
    assert {note.offset for note in first.noted("acked")} == set(range(6)) - unfinished

    first.kill()
    second = a.start_worker(FINDING_UNFINISHED="")
    a.produce(b"next")
    second.wait_for(lambda: bool(second.noted("acked")), "delivery by the second worker")
    assert [note.offset for note in second.noted("started")] == [6]  # the unfinished record is lost


def test_b_an_exception_that_leaves_an_agent_commits_the_event(bench: Callable[..., Bench]) -> None:
    """(B) A record whose handling raised is acked and committed, and so lost.

    The agent restarts after it. Our agent does not ack when it leaves the loop (`noack`), and lets
    no exception out: a record ends delivered, dead-lettered, or unfinished.
    """
    b = bench("agent_error")
    worker = b.start_worker()
    b.produce(b"fine", b"broken", b"fine")

    worker.wait_for(lambda: b.committed() == {0: 3}, "commit past the broken record")
    assert [note.offset for note in worker.noted("delivered")] == [0, 2]
    assert [note.offset for note in worker.noted("started")] == [0, 1, 2]  # no second try of 1


def test_c_an_exception_in_a_timer_ends_the_worker(bench: Callable[..., Bench]) -> None:
    """(C) One exception in an `@app.timer` ends the whole worker with its agents.

    Every timer of ours catches and logs its errors.
    """
    c = bench("timer_error")
    worker = c.start_worker()
    c.produce(b"x")

    worker.wait_for(lambda: bool(worker.noted("timer raises")), "the timer's exception")
    status = worker.wait_for_end()
    assert status > 0  # it ended by itself, without a signal


def test_d_without_stream_wait_empty_a_stop_commits_the_cancelled_event(
    bench: Callable[..., Bench],
) -> None:
    """(D) With stream_wait_empty=False, SIGTERM commits the very record that it cancels.

    We leave stream_wait_empty on, and ack only what is finished.
    """
    d = bench("cancelled_at_stop")
    worker = d.start_worker()
    d.produce(b"x")
    worker.wait_for(lambda: bool(worker.noted("started")), "a record in flight")
    assert d.committed() == {}

    worker.terminate()
    worker.wait_for_end()
    assert [note.what for note in worker.notes] == ["started", "cancelled"]
    assert d.committed() == {0: 1}


def test_e_a_record_that_cannot_be_decoded_is_committed_unseen(bench: Callable[..., Bench]) -> None:
    """(E) With a serializer on the topic, a poison record is committed, and no agent gets it.

    Our topics are raw bytes, decoded in the agent, which can make a dead letter of them.
    """
    e = bench("decode_error")
    worker = e.start_worker()
    e.produce(b'{"good":1}', b"\xffnot json", b'{"good":2}')

    worker.wait_for(lambda: e.committed() == {0: 3}, "commit past the poison record")
    assert [note.offset for note in worker.noted("delivered")] == [0, 2]


def test_f_acks_in_offset_order_lose_nothing_and_keep_each_key_in_order(
    bench: Callable[..., Bench],
) -> None:
    """(F) `noack().events()` with acks in offset order: nothing lost over rebalances and a kill.

    This is the pattern of our delivery. A second worker joins under load, the first one is killed
    with SIGKILL, and a third replaces it.
    """
    f = bench("ordered_acks", PARTITIONS)
    first = f.start_worker()
    f.produce_until(lambda: len(first.notes) > 300, "work of the first worker")
    second = f.start_worker()
    f.produce_until(lambda: len(second.notes) > 300, "work of the second worker")
    first.kill()
    third = f.start_worker()
    f.produce_until(lambda: len(third.notes) > 300, "work of the third worker")
    f.produce_over_keys(max(0, RECORDS - f.produced))

    ends = f.ends()
    assert sum(ends.values()) == f.produced
    third.wait_for(lambda: f.committed() == ends, "commit of all records")

    first_at: dict[tuple[int, int], Note] = {}
    for note in sorted((n for w in f.workers for n in w.notes), key=lambda note: note.at):
        first_at.setdefault((note.partition, note.offset), note)
    assert len(first_at) == f.produced  # every record at least once
    by_key: dict[str | None, list[int]] = {}
    for note in first_at.values():  # in the order of first deliveries
        by_key.setdefault(note.key, []).append(note.offset)
    assert len(by_key) == KEYS
    for key, offsets in by_key.items():
        assert offsets == sorted(offsets), f"{key} out of order"
