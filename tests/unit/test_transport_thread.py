"""The order of steps in the consumer's thread, and standstills of the intake."""

import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import errors
from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from order_relay.delivery.progress import MAX_METADATA_LENGTH, Commit
from order_relay.kafka.consumer.standstill import Intake, standstill
from order_relay.kafka.consumer.thread import ClientEnded, RelayConsumerThread

PARTITION = TopicPartition("order-paid-events", 0)


class Client:
    """A Kafka client with one assigned partition."""

    def __init__(self, committed: OffsetAndMetadata | None) -> None:
        self.committed = committed
        self.sought: list[int | str] = []
        self._coordinator = self._subscription = self._fetcher = self
        self.generation = 5
        self.group_id = "order-relay"
        self.subscription = None

    def assignment(self) -> set[TopicPartition]:
        """One partition."""
        return {PARTITION}

    async def ensure_coordinator_known(self) -> None:
        """It is."""

    async def _send_req(self, request: object) -> OffsetFetchResponse_v3:
        """What the group committed."""
        offset, metadata = self.committed or (-1, "")
        return OffsetFetchResponse_v3(0, [(PARTITION.topic, [(0, offset, metadata, 0)])], 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Note where to."""
        self.sought.append(offset)

    def request_offset_reset(self, partitions: list[TopicPartition], strategy: int) -> None:
        """Note it."""
        self.sought.append(f"{strategy}")

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        """Note it."""
        self.sought.append("beginning")


def thread_of(client: Client, monkeypatch: pytest.MonkeyPatch) -> RelayConsumerThread:
    """A thread that was never started, with this client."""
    thread = RelayConsumerThread.__new__(RelayConsumerThread)
    thread._consumer = cast(Any, client)
    thread._fetch_lock = asyncio.Lock()
    thread.max_metadata_length = MAX_METADATA_LENGTH
    monkeypatch.setattr(thread, "_ensure_consumer", lambda: client)
    monkeypatch.setattr(thread, "run_in_thread", lambda call: call)
    return thread


@pytest.mark.parametrize("stops", [False, True])
async def test_the_client_starts_once_brokers_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stops: bool
) -> None:
    """Brokers that stop after the declaration of the topics do not end the worker."""
    thread = thread_of(Client(None), monkeypatch)
    state = {"stopped": False, "tries": 0}
    monkeypatch.setattr(RelayConsumerThread, "should_stop", property(lambda _: state["stopped"]))
    monkeypatch.setattr(thread, "log", logging.getLogger("thread"), raising=False)

    async def sleep(seconds: float) -> None:
        state["stopped"] = stops

    monkeypatch.setattr(thread, "sleep", sleep)

    async def start() -> None:
        state["tries"] += 1
        if state["tries"] < 3:
            raise errors.KafkaConnectionError("Unable to bootstrap from [('127.0.0.1', 9092)]")

    await thread._start_client(start)
    assert state["tries"] == (1 if stops else 3)
    lines = [line for line in caplog.messages if "does not connect, trying again" in line]
    assert len(lines) == (1 if stops else 2)


async def test_a_process_that_stood_still_logs_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A busy machine, or SIGSTOP and SIGCONT: a person need not act."""
    thread = thread_of(Client(None), monkeypatch)
    now = {"seconds": 100.0, "rounds": 0}
    monkeypatch.setattr("mode.threads.monotonic", lambda: now["seconds"])
    monkeypatch.setattr(RelayConsumerThread, "should_stop", property(lambda _: now["rounds"] == 3))
    monkeypatch.setattr(thread, "log", logging.getLogger("thread"), raising=False)
    thread.parent_loop = asyncio.get_running_loop()

    async def sleep(seconds: float) -> None:
        if seconds:
            now["seconds"] += 10.0
            now["rounds"] += 1

    monkeypatch.setattr(thread, "sleep", sleep)
    await thread._keepalive2()
    assert now["rounds"] == 3
    assert caplog.messages == []


async def test_a_seek_waits_until_no_fetch_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that ends after the seek would skip its records, which are dropped."""
    client = Client(OffsetAndMetadata(7, "relay2:7:3:0"))
    thread = thread_of(client, monkeypatch)
    waits, ends = asyncio.Event(), asyncio.Event()

    async def fetch(*args: object, **kwargs: object) -> dict[Any, Any]:
        waits.set()
        await ends.wait()
        assert client.sought == [], "the seek came while a fetch was under way"
        return {}

    monkeypatch.setattr(AIOKafkaConsumerThread, "_fetch_records", fetch)
    fetching = asyncio.create_task(thread._fetch_records(cast(Any, client), set()))
    await waits.wait()
    seeking = asyncio.create_task(thread.seek_to_committed_or_beginning())
    for _ in range(10):
        await asyncio.sleep(0)
    ends.set()

    await fetching
    assert await seeking == {TP("order-paid-events", 0): Commit(7, "relay2:7:3:0")}
    assert client.sought == [7]


@pytest.mark.parametrize(
    ("committed", "sought"), [(None, "beginning"), (OffsetAndMetadata(0, ""), 0)]
)
async def test_every_partition_is_sought(
    committed: OffsetAndMetadata | None, sought: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if nothing, or offset 0, is committed: records may have been fetched and dropped."""
    client = Client(committed)

    await thread_of(client, monkeypatch).seek_to_committed_or_beginning()

    assert client.sought == [sought]


async def test_a_fetch_before_the_seek_of_an_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition without a commit has lost nothing: it is read from its beginning."""
    client = Client(None)
    thread = thread_of(client, monkeypatch)

    async def fetch(*args: object, **kwargs: object) -> dict[Any, Any]:
        raise errors.NoOffsetForPartitionError(PARTITION)

    monkeypatch.setattr(AIOKafkaConsumerThread, "_fetch_records", fetch)
    monkeypatch.setattr(thread, "positions", dict)
    assert await thread._fetch_records(cast(Any, client), set()) == {}
    assert client.sought == ["-2"]


@pytest.mark.parametrize("ended", ["coordination", "metadata", "fetches"])
async def test_a_client_whose_tasks_have_ended_is_told_from_one_in_trouble(
    ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing restarts them: the worker would be ready, and never deliver."""

    async def fails() -> None:
        raise RuntimeError("the handler is closed")

    async def goes_on() -> None:
        await asyncio.Event().wait()

    tasks = {
        name: asyncio.create_task(fails() if name == ended else goes_on())
        for name in ("coordination", "metadata", "fetches")
    }
    await asyncio.wait([tasks[ended]])
    client = cast(Any, Client(None))
    client._client = client._fetcher = client
    client._coordination_task, client._sync_task = tasks["coordination"], tasks["metadata"]
    client._fetch_task = tasks["fetches"]
    with pytest.raises(ClientEnded, match="the handler is closed"):
        await thread_of(client, monkeypatch).check_group()


async def test_a_client_that_is_still_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Kafka is slow at the start, a check of the group is not an error."""
    client: Any = Client(None)
    client._coordinator = None
    thread = thread_of(client, monkeypatch)
    await thread.check_group()
    assert await thread.kafka_answers()
    assert thread.generation() == -1


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (None, True),
        (errors.NodeNotReadyError(), False),
        (errors.RequestTimedOutError(), False),
        (errors.KafkaConnectionError(), False),
        (errors.GroupAuthorizationFailedError(), None),
    ],
)
async def test_whether_a_broker_answers_the_consumers_client(
    error: errors.KafkaError | None, answered: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer's client may find brokers that the consumer's does not; a refusal is raised."""
    client: Any = Client(None)

    async def look_up(kind: object, group_id: str) -> int:
        if error is not None:
            raise error
        return 1

    client._client, client.coordinator_lookup = client, look_up
    asking = thread_of(client, monkeypatch).kafka_answers()
    if answered is None:
        with pytest.raises(errors.GroupAuthorizationFailedError):
            await asking
    else:
        assert await asking is answered


class Fetching:
    """A client that reads one partition."""

    def __init__(self) -> None:
        self.leader: int | None = 1
        self.state = SimpleNamespace(has_valid_position=True, position=7, timestamp=1000)
        self.assignment: Any = self
        self.tps = {PARTITION}
        self._records: dict[TopicPartition, object] = {}
        self._client = self.cluster = self._fetcher = self._subscription = self.subscription = self

    def leader_for_partition(self, partition: TopicPartition) -> int | None:
        return self.leader

    def state_value(self, partition: TopicPartition) -> Any:
        return self.state


def test_each_fetch_leaves_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition's mark stays the same only if a fetch is due and not answered."""
    client = Fetching()
    thread = thread_of(cast(Any, client), monkeypatch)

    def mark() -> object:
        return (thread.fetches() or {})[TP(*PARTITION)]

    assert mark() == mark()
    before = mark()
    client.state.timestamp = 1200
    assert mark() != before
    client.leader = -1
    assert mark() != mark()  # there is no leader to ask
    client.leader = 1
    client._records[PARTITION] = "fetched"
    assert mark() != mark()  # there is no fetch while records are ready
    client._records.clear()
    client.state.has_valid_position = False
    assert mark() is None
    client.assignment = None
    assert thread.fetches() is None


class Coordinator:
    """A group's coordination, whose commits get these answers, then succeed."""

    def __init__(self, *answers: errors.KafkaError) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.generation = 5
        self.joins_anew_when_asked = False
        self._commit_lock = asyncio.Lock()

    async def ensure_coordinator_known(self) -> None:
        """It is."""

    async def _do_commit_offsets(self, assignment: None, offsets: dict[Any, Any]) -> None:
        self.asked.append(offsets)
        self.generation += self.joins_anew_when_asked
        if self.answers:
            raise self.answers.pop(0)


def committing(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> tuple[RelayConsumerThread, dict[TP, Commit]]:
    """A thread that was never started, whose client has this coordination; and a commit."""
    client = Client(None)
    cast(Any, client)._coordinator = coordinator
    thread = thread_of(client, monkeypatch)
    thread.log = cast(Any, logging.getLogger("thread"))
    monkeypatch.setattr(thread, "assignment", lambda: {TP(*PARTITION)})
    monkeypatch.setattr("order_relay.kafka.consumer.thread.COMMIT_RETRY_SECONDS", 0.0)
    return thread, {TP(*PARTITION): Commit(7, "")}


@pytest.mark.parametrize(
    ("answers", "retry_seconds", "joins_anew", "asked"),
    [
        (
            [errors.NotCoordinatorForGroupError(), errors.NotCoordinatorForGroupError()],
            60.0,
            False,
            3,
        ),
        # The next commit comes within a second, and has more.
        ([errors.NotCoordinatorForGroupError()], 0.0, False, 1),
        # No coordinator will accept it.
        ([errors.TopicAuthorizationFailedError()], 60.0, False, 1),
        ([errors.IllegalGenerationError()], 60.0, False, 1),
        # Another member may have continued from there.
        ([errors.NotCoordinatorForGroupError()], 60.0, True, 1),
    ],
)
async def test_a_commit_is_repeated_in_its_generation_while_the_coordinator_moves(
    answers: list[errors.KafkaError],
    retry_seconds: float,
    joins_anew: bool,
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only before partitions leave, and only where repeating it can help."""
    coordinator = Coordinator(*answers)
    coordinator.joins_anew_when_asked = joins_anew
    thread, commits = committing(coordinator, monkeypatch)
    did_commit = await thread.commit_finished(commits, retry_seconds=retry_seconds)
    assert did_commit is (asked > len(answers))
    assert coordinator.asked == [{PARTITION: OffsetAndMetadata(7, "")}] * asked


@pytest.mark.parametrize(
    "error", [errors.OffsetMetadataTooLargeError(), errors.InvalidCommitOffsetSizeError()]
)
async def test_a_commit_goes_without_metadata_that_is_too_long(
    error: errors.KafkaError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and later ones have less; if Kafka refuses that too, it is not repeated."""
    coordinator = Coordinator(error, error, error)
    thread, _ = committing(coordinator, monkeypatch)
    long = {TP(*PARTITION): Commit(7, "x" * 1000)}
    assert not await thread.commit_finished(long, retry_seconds=0.0)
    assert coordinator.asked == [
        {PARTITION: OffsetAndMetadata(7, "x" * 1000)},
        {PARTITION: OffsetAndMetadata(7, "")},
    ]
    assert thread.max_metadata_length == 500
    assert await thread.commit_finished(long, retry_seconds=0.0)
    assert len(coordinator.asked) == 4


ONE, TWO = TP("orders", 0), TP("orders", 1)
BEFORE = Intake(
    generation=3,
    errors=1,
    flowing=True,
    rounds=10,
    waiting_for_room=False,
    commits=5,
    fetches={ONE: (7, 1000), TWO: (9, 1000)},
    ready={ONE, TWO},
)
MOVED = replace(BEFORE, rounds=12, commits=7, fetches={ONE: (7, 1200), TWO: (9, 1200)})


def test_a_worker_without_partitions_does_not_stand_still() -> None:
    """Workers may outnumber partitions."""
    assert standstill(replace(BEFORE, fetches={}), replace(MOVED, fetches={})) is None


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        (replace(MOVED, fetches=None), "no assignment"),
        (replace(MOVED, flowing=False), "flow is suspended"),
        (replace(MOVED, fetches={ONE: None, TWO: (9, 1200)}), "no position of orders-0"),
        (replace(MOVED, ready={ONE}), "no position of orders-1"),
        (replace(MOVED, commits=5), "nothing is committed"),
        (replace(MOVED, rounds=10), "nothing is fetched"),
        (
            replace(MOVED, fetches={ONE: (7, 1000), TWO: (9, 1200)}),
            "no answer to a fetch of orders-0",
        ),
        (
            replace(MOVED, waiting_for_room=True, fetches=BEFORE.fetches),
            "no answer to a fetch of orders-0, orders-1",
        ),
    ],
)
def test_what_stands_still_is_named(now: Intake, fault: str) -> None:
    """Each step between Kafka and the streams, with its partitions."""
    assert standstill(BEFORE, now) == fault


@pytest.mark.parametrize(
    "now",
    [
        MOVED,
        replace(MOVED, flowing=False, generation=4),
        replace(MOVED, flowing=False, errors=2),
        replace(MOVED, rounds=10, waiting_for_room=True),
    ],
    ids=["no records", "a new generation", "an error that is tried again", "full streams"],
)
def test_what_has_a_reason_does_not_count(now: Intake) -> None:
    """There are no records, a new generation, an error that is logged, or the logger is slow."""
    assert standstill(BEFORE, now) is None
