"""The thread that talks to Kafka for the consumer."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Collection, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import aiokafka
from aiokafka.client import CoordinationType
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, OffsetResetStrategy
from aiokafka.errors import (
    IllegalGenerationError,
    InvalidCommitOffsetSizeError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NoOffsetForPartitionError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    RequestTimedOutError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from order_relay.delivery.progress import MAX_METADATA_LENGTH, Commit
from order_relay.kafka.committed_offsets import fetch_commits
from order_relay.kafka.consumer.aiokafka_send import patch_aiokafka_send
from order_relay.kafka.consumer.assignor import OwnersAssignor
from order_relay.kafka.consumer.rebootstrap import ask_bootstrap_servers_again

# A commit that a dead broker holds up must not outlive its generation, nor hold up a rebalance.
COMMIT_TIMEOUT_SECONDS = 5.0
COMMIT_AGAIN_SECONDS = 0.2
COMMIT_FAILED = "Commit failed, it is tried again with the next one: %r"
FETCH_MAX_WAIT_MS = 200
# Leaving the group and closing connections.
STOP_SECONDS = 3.0

T = TypeVar("T")


class ClientEnded(Exception):
    """A fault ended a task of Kafka's client: it would wait for ever."""


class Deletion(NamedTuple):
    """Kafka has no record of this partition before ``start``, and some of them were to be read."""

    tp: TP
    start: int
    generation: int


class RelayConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread that talks to Kafka: commits with metadata, and never crashes over a commit.

    Attributes:
        max_metadata_length: How long a partition's commit metadata may be, as far as is known of
            the brokers' ``offset.metadata.max.bytes``.
    """

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        patch_aiokafka_send()
        ask_bootstrap_servers_again()
        consumer = super()._create_worker_consumer(transport)
        # Faust fixes 1,500 ms; a seek, and the embedded cluster's answer, wait for it.
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        # An order whose transaction was rolled back was not paid. Faust reads those, too.
        consumer._isolation_level = "read_committed"
        # Kafka's client would pass over records that were deleted, and say so in one INFO line.
        consumer._auto_offset_reset = "none"
        # Faust gives plain round robin; ours is the same, and tells who has what.
        self._owners = OwnersAssignor(cast(Any, self.consumer).own_url)
        consumer._partition_assignment_strategy = [self._owners]
        return consumer

    def owners(self, topic: str) -> dict[int, str]:
        """Return the base URL of the worker that has each partition, where it is known."""
        if self._consumer is None:
            return {}
        return {tp.partition: url for tp, url in self._owners.owners.items() if tp.topic == topic}

    def __post_init__(self) -> None:
        """Set up what the thread's own loop uses."""
        super().__post_init__()
        self._reading = asyncio.Lock()
        self._deletions: deque[Deletion] = deque()
        self.max_metadata_length = MAX_METADATA_LENGTH

    def close(self) -> None:
        """Do nothing: ``on_thread_stop`` closes, in the thread's own loop.

        Faust calls this in a rebalance while the worker stops; the client would be half closed, and
        the others of the group wait for this member until its session is over.
        """

    async def on_thread_stop(self) -> None:
        """Stop the client, whatever it says of brokers that are gone.

        aiokafka lets the cancellation of its own requests out, and Faust would wait for the thread
        that it ended until the process is killed. A broker that does not answer, or does not say
        good-bye on a connection with TLS (asyncio waits 30 s for that), is not waited for either.
        """
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await super().on_thread_stop()
        except (asyncio.CancelledError, KafkaError, OSError) as error:  # TimeoutError is an OSError
            self.log.info("Stopped without the brokers' leave: %r", error)

    async def _in_thread(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call in the thread, beside others; cancelling the wait cancels the call.

        Faust's own ``call_thread`` has two workers for all calls, and goes on with calls that
        nobody waits for any more: questions to a broker that hangs would hold up commits.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self.thread_loop))

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka how far these partitions can be read: up to the first open transaction."""
        return cast(Mapping[TP, int], await self._in_thread(self._highwaters(list(partitions))))

    async def log_ends(self, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka for the ends of these partitions, open transactions or not."""
        fetcher, timeout_ms = self._beyond_transactions()
        ask = fetcher.end_offsets(partitions, timeout_ms)
        return cast(Mapping[TP, int], await self._in_thread(ask))

    async def offsets_at(self, moment: float, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka for the first record of each that was made at this time or later.

        Args:
            moment: Seconds since the epoch.
            partitions: Those to ask for. One without such a record is not in the answer.
        """
        fetcher, timeout_ms = self._beyond_transactions()
        asked = {TopicPartition(*tp): max(int(moment * 1000), 0) for tp in partitions}
        found = await self._in_thread(fetcher.get_offsets_by_times(asked, timeout_ms))
        return {TP(*tp): at.offset for tp, at in found.items() if at is not None}

    def _beyond_transactions(self) -> tuple[Any, int]:
        """Return what asks for offsets as if no transaction were open, and its time-out."""
        consumer = self._ensure_consumer()
        fetcher = copy.copy(consumer._fetcher)
        fetcher._isolation_level = READ_UNCOMMITTED
        return fetcher, consumer._request_timeout_ms

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka for the beginnings of these partitions."""
        ask = self._ensure_consumer().beginning_offsets(partitions)
        return cast(Mapping[TP, int], await self._in_thread(ask))

    async def check_group(self) -> None:
        """Raise what stopped the group's coordination, if something did.

        aiokafka holds an error until somebody asks, and does nothing until then; Faust never asks.

        Raises:
            KafkaError: It goes on, now that somebody has asked.
            ClientEnded: A task of aiokafka's has ended, and nothing would ever begin it again.
        """
        if self._consumer is not None:
            await self._in_thread(self._check_group(self._consumer))

    async def _check_group(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        tasks = (
            consumer._coordinator._coordination_task,
            consumer._client._sync_task,
            consumer._fetcher._fetch_task,
        )
        for task in tasks:
            if task is None or not task.done() or task.cancelled():
                continue
            if (fault := task.exception()) is not None:
                raise ClientEnded(repr(fault)) from fault
        consumer._coordinator.check_errors()

    async def kafka_answers(self) -> bool:
        """Whether a broker answers this client; may hang.

        Raises:
            KafkaError: One did, and says that the group cannot be served.
        """
        return self._consumer is None or await self._in_thread(self._kafka_answers(self._consumer))

    async def _kafka_answers(self, consumer: aiokafka.AIOKafkaConsumer) -> bool:
        group_id = consumer._coordinator.group_id
        try:
            await consumer._client.coordinator_lookup(CoordinationType.GROUP, group_id)
        except (KafkaConnectionError, NodeNotReadyError, RequestTimedOutError):
            return False
        return True

    def generation(self) -> int:
        """Return the generation of the group that this member is in; -1 in none."""
        return int(self._consumer._coordinator.generation) if self._consumer else -1

    def fetches(self) -> dict[TP, object] | None:
        """Return a mark of each assigned partition that is another one after each fetch.

        It is also another one each time where no fetch is due: records of it lie ready, or Kafka
        has no leader for it. ``None`` for a partition whose position is not known, and instead of
        all where there is no assignment. May be called from another thread.
        """
        consumer = self._consumer
        subscription = consumer._subscription.subscription if consumer is not None else None
        assignment = subscription.assignment if subscription is not None else None
        if consumer is None or assignment is None:
            return None
        marks: dict[TP, object] = {}
        for tp in assignment.tps:
            state = assignment.state_value(tp)
            leader = consumer._client.cluster.leader_for_partition(tp)
            if leader in {None, -1} or tp in consumer._fetcher._records:
                mark: object = object()
            elif state is None or not state.has_valid_position:
                mark = None
            else:
                mark = state.position, state.timestamp
            marks[TP(tp.topic, tp.partition)] = mark
        return marks

    async def commit_finished(
        self, commits: Mapping[TP, Commit], *, insist_seconds: float = 0.0
    ) -> bool:
        """Commit for the assigned ones of these partitions; ``False`` if Kafka did not take it.

        Args:
            commits: What to commit.
            insist_seconds: How long to ask again, where a coordinator that moves or dies may take
                it a moment later. Nothing else may be committed meanwhile.
        """
        return await self._in_thread(self._commit_finished(commits, insist_seconds))

    async def _commit_finished(self, commits: Mapping[TP, Commit], insist_seconds: float) -> bool:
        consumer = self._ensure_consumer()
        assigned = self.assignment()
        offsets = {
            TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(
                commit.offset, commit.metadata
            )
            for tp, commit in commits.items()
            if tp in assigned
        }
        if not offsets:
            return False
        coordinator = consumer._coordinator
        generation = coordinator.generation
        deadline = time.monotonic() + insist_seconds
        while True:
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                    await self._commit_once(coordinator, offsets)
                return True
            except (OffsetMetadataTooLargeError, InvalidCommitOffsetSizeError) as error:
                longest = max(len(one.metadata) for one in offsets.values())
                if not longest or coordinator.generation != generation:
                    self.log.warning(COMMIT_FAILED, error)
                    return False
                self.max_metadata_length = longest // 2
                self.log.warning(
                    "Commit metadata is too long for the brokers, committed without it: "
                    "length=%d shorter_from_now_on=%d detail=%r",
                    longest, self.max_metadata_length, error,
                )  # fmt: skip
                offsets = {tp: OffsetAndMetadata(one.offset, "") for tp, one in offsets.items()}
                continue
            except (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError) as late:
                # The group moved on. Nothing is lost: the records are delivered again.
                self.log.info("Commit came too late for the group: %r", late)
                return False
            except (KafkaError, TimeoutError) as error:
                passing = not isinstance(error, KafkaError) or error.retriable
                out_of_time = time.monotonic() + COMMIT_AGAIN_SECONDS > deadline
                if not passing or out_of_time or coordinator.generation != generation:
                    self.log.warning(COMMIT_FAILED, error)
                    return False
            await asyncio.sleep(COMMIT_AGAIN_SECONDS)

    async def _commit_once(
        self, coordinator: Any, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        """Ask the coordinator once.

        aiokafka's own commit tries on until it succeeds, with whatever generation the member has
        by then: an old offset could land after newer ones.
        """
        await coordinator.ensure_coordinator_known()
        async with coordinator._commit_lock:
            await coordinator._do_commit_offsets(None, offsets)

    async def seek_in_generation(self, tp: TP, offset: int, generation: int) -> bool:
        """Seek one partition, unless the group has moved on; returns whether it did.

        A seek that came after that of the next assignment would pass over records.
        """
        return await self._in_thread(self._seek_in_generation(tp, offset, generation))

    async def _seek_in_generation(self, tp: TP, offset: int, generation: int) -> bool:
        consumer = self._ensure_consumer()
        partition = TopicPartition(tp.topic, tp.partition)
        async with self._reading:
            if consumer._coordinator.generation != generation:
                return False
            if partition not in consumer.assignment():
                return False
            consumer.seek(partition, offset)
            return True

    async def seek_to_committed_or_beginning(self) -> dict[TP, Commit | None]:
        """Seek every assigned partition to its committed offset, or else to its beginning.

        aiokafka's own call leaves the position alone where nothing, or offset 0, is committed:
        records that were fetched and dropped before would never be read again.
        """
        return await self._in_thread(self._seek_to_committed_or_beginning())

    async def _seek_to_committed_or_beginning(self) -> dict[TP, Commit | None]:
        consumer = self._ensure_consumer()
        assigned = list(consumer.assignment())
        committed = await fetch_commits(consumer._coordinator, assigned)
        async with self._reading:
            for partition, found in committed.items():
                if found is not None:
                    consumer.seek(partition, found.offset)
            if uncommitted := [one for one in assigned if committed[one] is None]:
                await consumer.seek_to_beginning(*uncommitted)
        return {
            TP(tp.topic, tp.partition): Commit(found.offset, found.metadata) if found else None
            for tp, found in committed.items()
        }

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Any:
        # A fetch that waits over a rebalance would move on in the new assignment behind the back of
        # the seek, and its records be dropped: seeks wait until no fetch is under way.
        async with self._reading:
            before = self.positions()
            try:
                return await super()._fetch_records(*args, **kwargs)
            except OffsetOutOfRangeError as error:
                await self._read_from_beginning(error.args[0])
                return {}
            except NoOffsetForPartitionError as error:
                # Fetched before the seek that follows every assignment.
                consumer = self._ensure_consumer()
                if (partition := error.args[0]) in consumer.assignment():
                    consumer._fetcher.request_offset_reset(
                        [partition], OffsetResetStrategy.EARLIEST
                    )
                return {}
            except Exception:
                # Of one partition something cannot be read. What was taken out of others before is
                # dropped with the error, though their positions stand behind it.
                consumer = self._ensure_consumer()
                for tp, position in self.positions().items():
                    if before.get(tp, position) != position:
                        consumer.seek(TopicPartition(tp.topic, tp.partition), before[tp])
                raise

    async def _read_from_beginning(self, partitions: Collection[TopicPartition]) -> None:
        """Seek to the beginning of partitions whose position Kafka does not have, and note it."""
        consumer = self._ensure_consumer()
        generation = consumer._coordinator.generation
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                starts = await consumer.beginning_offsets(partitions)
        except TimeoutError as error:
            # The position stays: it is fetched from there again, with the same answer.
            raise RequestTimedOutError from error
        if consumer._coordinator.generation != generation:
            return
        for partition, start in starts.items():
            if partition in consumer.assignment():
                consumer.seek(partition, start)
                self._deletions.append(
                    Deletion(TP(partition.topic, partition.partition), start, generation)
                )

    def take_deletions(self) -> list[Deletion]:
        """Return what was noted since the last call; may be called from another thread."""
        return [self._deletions.popleft() for _ in range(len(self._deletions))]

    def positions(self) -> dict[TP, int]:
        """Return the next offset to be handed out of every partition where it is known.

        May be called from another thread: each is one number, read at once.
        """
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None:
            return {}
        states = ((tp, assignment.state_value(tp)) for tp in assignment.tps)
        return {
            TP(tp.topic, tp.partition): state.position
            for tp, state in states
            if state is not None and state.has_valid_position
        }

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Say nothing: a paused intake is no livelock. ``/health/live`` watches progress."""
