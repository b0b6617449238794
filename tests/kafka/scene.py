"""One story's topic, group, scripted logger, load and workers on the real cluster.

    async with Scene(kafka, tmp_path) as scene:
        worker = await scene.ready_worker("a")
        scene.load.flow(200)
        ...
        await scene.settle_and_check()

At its end, a scene checks that only finished records were committed, and none of them was resent.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from tests.kafka.administration import Administration
from tests.kafka.commit_watch import LIMIT_SECONDS, CommitWatch, Place
from tests.kafka.load import Load
from tests.support.kafka.cluster import RealKafka
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import new_stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

MAX_IN_FLIGHT = 256
# Commits come every second. On a busy machine one may be late and slow.
COMMIT_LAG_SECONDS = 5.0
CHECKPOINT_SECONDS = 5.0
# How soon a group removes a killed member. Less would be too short on a busy machine.
SESSION_SECONDS = 6.0
GIVES_BACK = "Revoking previously assigned partitions"
OF_THE_GROUP = (
    GIVES_BACK, "Setting newly assigned", "Commit ", "eartbeat", "changes late", "Signal",
    "[ERROR]",
)  # fmt: skip
# The logger runs in the test's event loop: on a busy machine it answers late.
ANSWERED: dict[str, Any] = {"external_logger_timeout_seconds": LIMIT_SECONDS}
PATIENT: dict[str, Any] = {
    "consumer_retry_max_attempts": 1000, "consumer_retry_initial_interval_ms": 500,
    "consumer_retry_max_interval_ms": 500, "breaker_failure_threshold": 0,
}  # fmt: skip
"""Settings of a worker that neither gives a record up nor takes a few keys for an outage."""
SESSION: dict[str, Any] = {"kafka_session_timeout_ms": round(SESSION_SECONDS * 1000)}


class WorkerScene:
    """Topics, a group, a scripted logger and workers; all is stopped at the end of the block.

    Args:
        settings: Of all workers.
        partitions: Of both topics.
        declared: Whether the topics exist before a worker declares them.
        topic_configs: Of the source topic.
        dlq_configs: Of the dead-letter topic.
    """

    def __init__(
        self,
        kafka: RealKafka,
        directory: Path,
        settings: Mapping[str, object],
        *,
        partitions: int = 3,
        declared: bool = True,
        topic_configs: Mapping[str, str] | None = None,
        dlq_configs: Mapping[str, str] | None = None,
    ) -> None:
        self.kafka = kafka
        self.stage = new_stage(kafka.bootstrap_servers, declare_topics=True)
        self.admin = Administration(self.stage)
        self.sink = ScriptedSink()
        self._directory = directory / self.stage.topic
        self._settings = dict(settings)
        self._partitions = partitions
        self._created = {self.stage.topic: topic_configs, self.stage.dlq_topic: dlq_configs}
        self._declared = declared
        self._everything = AsyncExitStack()
        self._workers: list[WorkerProcess] = []

    async def __aenter__(self) -> Self:
        self._directory.mkdir(parents=True)
        for name, configs in self._created.items() if self._declared else ():
            await self.create_topic(name, configs)
        await self._everything.enter_async_context(self.sink)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self._everything.aclose()

    async def create_topic(self, name: str, configs: Mapping[str, str] | None = None) -> None:
        """Create a topic with the scene's number of partitions."""
        await asyncio.to_thread(self.kafka.create_topic, name, self._partitions, configs=configs)

    def worker(self, name: str, **settings: object) -> WorkerProcess:
        """Start a worker; its name is the last part of the path that it posts to."""
        url = f"{self.sink.url}/{name}"
        given = self._settings | settings
        worker = WorkerProcess(self._directory, self.stage, url, name=name, **given)
        self._everything.callback(worker.kill9)
        self._workers.append(worker)
        return worker.start()

    async def ready_worker(self, name: str, **settings: object) -> WorkerProcess:
        """Start a worker and wait until it has partitions."""
        worker = self.worker(name, **settings)
        await worker.wait_ready()
        return worker


class Scene(WorkerScene):
    """A story of deliveries, with a load.

    All the time the group's commits are compared with what the logger has accepted: an unfinished
    record must not be committed, by offset or by metadata, and a committed one must not be resent.

    Args:
        keys: Of the load's orders.
        others: See ``WorkerScene``.

    Attributes:
        latency_seconds: How long the logger takes to accept.
        failing: Keys whose records the logger answers 503, at once.
        hanging: Keys whose records the logger does not answer, until ``answer_hanging``.
        rejected: Keys whose records the logger answers 422.
        all_brokers_died: Whether they died at once. For a moment Kafka then answers with commits of
            some seconds before (a bare consumer sees this, too): until its followers are back, it
            trusts only its last checkpoint. Checkpoints come every second here
            (``tests.support.kafka.broker``), and late on a busy machine.
        dead_lettered: Places of records that finish without the logger's accepting them.
        deleted: Places of records that Kafka has deleted, and the logger need not get.
    """

    def __init__(
        self, kafka: RealKafka, directory: Path, *, keys: int = 600, **others: Any
    ) -> None:
        super().__init__(kafka, directory, SESSION | ANSWERED, **others)
        self.latency_seconds = 0.0
        self.failing: set[str] = set()
        self.hanging: set[str] = set()
        self.rejected: set[str] = set()
        self.all_brokers_died = False
        self.dead_lettered: set[Place] = set()
        self.deleted: set[Place] = set()
        self.sink.script = self._answer
        self.load = Load(self.stage, keys=keys)
        self.commits = CommitWatch(self.stage, self.is_finished)
        self._indexed = 0
        self._accepted: set[str] = set()
        self._accepted_orders: set[int] = set()
        self._hold_after: int | None = None
        self._hanging = asyncio.Semaphore(0)
        self._gate = asyncio.Semaphore(0)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self._everything.enter_async_context(self.load)
        await self._everything.enter_async_context(self.commits)
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await super().__aexit__(kind, error, trace)
        if error is not None:
            print(self.log_of_the_group())
        if error is None:
            self.commits.check()
            if not self.all_brokers_died:
                assert not self.commits.steps_back, self.commits.steps_back[:10]
                assert not (again := self.sent_after_commit()), again[:10]

    async def let_join(self, name: str, worker: WorkerProcess, **settings: object) -> None:
        """Start one more worker, and wait until ``worker`` begins to give its partitions back.

        The log shows it; the state itself may last less than half a second.
        """
        before = len(worker.log_lines(GIVES_BACK))
        self.worker(name, **settings)
        await worker.wait_until(
            lambda: len(worker.log_lines(GIVES_BACK)) > before, what=f"to notice worker {name}"
        )

    def hold(self, after: int = 0) -> None:
        """Have the logger accept this many requests and then no more, until ``let_go``.

        A state such as "256 in flight" then lasts until a test has seen it.
        """
        self._hold_after = after

    def let_go(self, count: int | None = None) -> None:
        """Have the logger accept ``count`` of the held requests, or all and hold no more."""
        gate = self._gate
        if count is None:
            count = len(self.sink.requests)
            self._hold_after = None
            # Permits left in the old gate must not let new requests pass.
            self._gate = asyncio.Semaphore(0)
        for _ in range(count):
            gate.release()

    def answer_hanging(self) -> None:
        """Have the logger answer all hanging requests, and let no more hang."""
        self.hanging = set()
        for _ in self.sink.requests:
            self._hanging.release()
        self._hanging = asyncio.Semaphore(0)

    @property
    def accepted(self) -> set[str]:
        """Event ids of the records that the logger has accepted."""
        for event_id, body in self.sink.accepted[self._indexed :]:
            self._accepted.add(event_id)
            self._accepted_orders.add(json.loads(body)["orderId"])
        self._indexed = len(self.sink.accepted)
        return self._accepted

    @property
    def accepted_orders(self) -> set[int]:
        """Ids of the orders that the logger has accepted."""
        return self._accepted_orders if self.accepted else set()

    def is_finished(self, place: Place) -> bool:
        """Whether the record there was accepted, dead-lettered or deleted."""
        ended = place in self.dead_lettered or place in self.deleted
        return ended or self._event_id(place) in self.accepted

    def repeats(self) -> dict[str, int]:
        """How often records were accepted again, by event id."""
        counts = Counter(self.sink.accepted_keys)
        return {event_id: count - 1 for event_id, count in counts.items() if count > 1}

    def accepted_at(self, event_id: str) -> float:
        """When a record was accepted first; monotonic seconds."""
        return min(
            request.answered_at
            for request in self.sink.attempts(event_id)
            if request.answered_at is not None and request.answer is not None
            if request.answer.accepts
        )

    def has_worker(self, name: str) -> bool:
        """Whether a worker of that name was started."""
        return any(worker.name == name for worker in self._workers)

    def sent_by(self, name: str) -> int:
        """How many requests a worker has made."""
        return sum(request.path.endswith(f"/{name}") for request in self.sink.requests)

    async def until_accepted(self, count: int, timeout: float = LIMIT_SECONDS) -> None:
        """Wait until that many different records were accepted."""
        await eventually(lambda: len(self.accepted) >= count, timeout, self._state)

    async def until_full(self, in_flight: int = MAX_IN_FLIGHT) -> None:
        """Wait until that many requests are open at the logger."""
        await eventually(lambda: self.sink.open_requests >= in_flight, LIMIT_SECONDS, self._state)

    async def until_sent_by(self, name: str, count: int) -> None:
        """Wait until a worker has made that many requests."""
        await eventually(lambda: self.sent_by(name) >= count, LIMIT_SECONDS, self._state)

    async def until_orders_accepted(self, last: int, timeout: float = LIMIT_SECONDS) -> None:
        """Wait until all orders from 1 to this one were accepted."""
        wanted = set(range(1, last + 1))

        def all_there() -> bool:
            return len(self.accepted) >= last and wanted <= self.accepted_orders

        await eventually(all_there, timeout, self._state)

    async def until_all_committed(self, timeout: float = LIMIT_SECONDS) -> None:
        """Wait until the group has committed the end of every partition that has records."""
        await self.commits.until_all_committed(timeout, self._state)

    async def settle_and_check(self, timeout: float = LIMIT_SECONDS) -> None:
        """End the load; wait until all is delivered and committed; check loss and order."""
        await self.load.settle()
        elsewhere = self.dead_lettered | self.deleted
        expected = self.load.event_ids - {self._event_id(place) for place in elsewhere}
        await eventually(lambda: expected <= self.accepted, timeout, self._state)
        await self.until_all_committed(timeout)
        # Nothing lost and nothing invented. After a broker's kill librdkafka may resend records in
        # flight, see ``Records.check_acknowledged``; each copy is a record of its own.
        more = self.accepted - expected
        copies = await self._copies() if more else set()
        assert more <= copies, f"delivered, and no record of the topic: {more - copies}"
        assert self.keys_out_of_order() == {}
        assert {row.source for row in await self.stage.dead_letters()} == self.dead_lettered

    def keys_out_of_order(self) -> dict[str, list[int]]:
        """Order ids, in the order of first acceptance, of the keys whose order is wrong."""
        seen: set[str] = set()
        by_key: dict[str, list[int]] = {}
        for event_id, body in self.sink.accepted:
            if event_id not in seen:
                seen.add(event_id)
                request = self.sink.attempts(event_id)[0]
                assert request.body == body
                ids = by_key.setdefault(str(request.key), [])
                if request.order_id not in ids:  # else a copy, see ``settle_and_check``
                    ids.append(request.order_id or 0)
        return {key: ids for key, ids in by_key.items() if ids != sorted(ids)}

    async def _copies(self) -> set[str]:
        """Event ids of the records whose order is in the topic more than once."""
        by_order: dict[bytes | None, set[str]] = {}
        for row in await self.stage.records():
            event_id = self._event_id((row.partition, row.offset))
            by_order.setdefault(row.value, set()).add(event_id)
        return set().union(*(ids for ids in by_order.values() if len(ids) > 1))

    def sent_after_commit(self) -> list[str]:
        """Event ids of records that were sent after they were committed as finished."""
        return [
            request.idempotency_key
            for place, known_at in self.commits.known_at.items()
            for request in self.sink.attempts(self._event_id(place))
            if request.arrived_at > known_at
        ]

    def overlaps(self) -> list[str]:
        """Keys with a request that arrived while another one was open."""
        found = []
        for key, requests in self.sink.by_key().items():
            ended = float("-inf")
            for request in requests:
                if request.arrived_at < ended:
                    found.append(str(key))
                ended = max(ended, request.answered_at or float("inf"))
        return found

    def repeated_across(self, moments: Iterable[float]) -> set[str]:
        """Event ids of records accepted before one of these moments and resent after it."""
        return {
            event_id
            for event_id in self.repeats()
            for request in self.sink.attempts(event_id)
            if any(self.accepted_at(event_id) < at < request.arrived_at for at in moments)
        }

    def told(self, repeated: Iterable[str]) -> str:
        """Describe the repeated records, with the workers' log lines about the group."""
        places: dict[str, list[int]] = {}
        for event_id in repeated:
            place, offset = event_id.rsplit("-", 1)
            senders = [request.path.rsplit("/", 1)[-1] for request in self.sink.attempts(event_id)]
            places.setdefault(f"{place} {' then '.join(senders)}", []).append(int(offset))
        found = [
            f"{place}: {len(offsets)} records from {min(offsets)} to {max(offsets)}"
            for place, offsets in sorted(places.items())
        ]
        return "\n".join([*found, self.log_of_the_group()])

    def log_of_the_group(self) -> str:
        """Each worker's last log lines about rebalances, commits and errors."""
        return "\n".join(
            f"{worker.name}: {line[:200]}"
            for worker in self._workers
            for line in [line for phrase in OF_THE_GROUP for line in worker.log_lines(phrase)][-25:]
        )

    def assert_nothing_repeated(self) -> None:
        """No record was accepted twice."""
        repeated = self.repeats()
        assert not repeated, self.told(repeated)

    def assert_repeats_are_recent(self, since: float) -> None:
        """Only records in flight at a fault, or finished shortly before, were repeated.

        Args:
            since: Time of the fault, in monotonic seconds. Commits come every second; records
                accepted COMMIT_LAG_SECONDS before are committed, even on a busy machine.
        """
        lag = COMMIT_LAG_SECONDS + CHECKPOINT_SECONDS * self.all_brokers_died
        early = {one for one in self.repeats() if self.accepted_at(one) < since - lag}
        assert not early, self.told(early)

    def _event_id(self, place: Place) -> str:
        return f"{self.stage.topic}-{place[0]}-{place[1]}"

    def _answer(self, request: Received) -> Answer:
        if request.key in self.failing:
            return Answer(503)
        if request.key in self.rejected:
            return Answer(422)
        if request.key in self.hanging:
            return Answer(gate=self._hanging)
        holds = self._hold_after is not None and len(self.sink.accepted) >= self._hold_after
        gate = self._gate if holds else None
        return Answer(gate=gate, delay_seconds=self.latency_seconds)

    def _state(self) -> dict[str, Any]:
        return {
            "at": round(time.monotonic()), "produced": self.load.produced,
            "acknowledged": len(self.load.event_ids), "accepted": len(self.accepted),
            "sink": self.sink.summary(), "committed": self.commits.last,
            "faults": self.commits.faults[:10],
            "workers": {worker.name: worker.last_words(15) for worker in self._workers},
        }  # fmt: skip
