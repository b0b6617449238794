"""The consumer's thread, in which all requests to Kafka run."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

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
    RebalanceInProgressError,
    RequestTimedOutError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from order_relay.delivery.progress import MAX_METADATA_LENGTH, Commit
from order_relay.kafka.committed_offsets import fetch_commits
from order_relay.kafka.consumer.aiokafka_patches import patch_aiokafka
from order_relay.kafka.consumer.assignor import OwnersAssignor

# If a broker is dead, a commit must neither outlive its generation nor delay a rebalance.
COMMIT_TIMEOUT_SECONDS = 5.0
COMMIT_RETRY_SECONDS = 0.2
COMMIT_FAILED = "Commit failed, it is tried again with the next one: %r"
FETCH_MAX_WAIT_MS = 200
CONNECT_AGAIN_SECONDS = 1.0
# For leaving the group and closing connections.
STOP_SECONDS = 3.0

T = TypeVar("T")
P = ParamSpec("P")


class ClientEnded(Exception):
    """An error ended a task of Kafka's client, which would wait for ever."""


def _in_thread(
    method: Callable[Concatenate[RelayConsumerThread, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[RelayConsumerThread, P], Coroutine[Any, Any, T]]:
    """Run a method in the thread's loop, wherever it is called."""

    @wraps(method)
    async def call(self: RelayConsumerThread, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run_in_thread(method(self, *args, **kwargs))

    return call


class RelayConsumerThread(driver.AIOKafkaConsumerThread):
    """The consumer's thread. It commits with metadata, and a failed commit never crashes it.

    Attributes:
        max_metadata_length: The longest commit metadata of a partition, as far as the brokers'
            ``offset.metadata.max.bytes`` is known.
    """

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        patch_aiokafka()
        consumer = super()._create_worker_consumer(transport)
        # Faust sets 1,500 ms. Seeks and the embedded cluster's responses wait that long.
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        # Faust also reads aborted transactions, whose orders were not paid.
        consumer._isolation_level = "read_committed"
        # Else aiokafka skips deleted records with one INFO line.
        consumer._auto_offset_reset = "none"
        # Round robin as in Faust, plus the owners' URLs.
        self._owners = OwnersAssignor(cast(Any, self.consumer).app.own_url)
        consumer._partition_assignment_strategy = [self._owners]
        consumer.start = partial(self._start_client, consumer.start)
        return consumer

    async def _start_client(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the client. Brokers may have gone since the worker asked them for the topics."""
        while not self.should_stop:
            try:
                await start()
                break
            except KafkaConnectionError as error:
                self.log.warning("Kafka's client does not connect, trying again: %s", error)
                await self.sleep(CONNECT_AGAIN_SECONDS)

    async def _wakeup_timer_in_thread(self) -> None:
        """Wake the thread's and the worker's loop, and forget when.

        Otherwise mode logs "Thread keepalive is not responding" as an error whenever the process
        had no processor for 3 s. ``standstill`` detects a thread that is really stuck.
        """
        await super()._wakeup_timer_in_thread()
        self.last_wakeup_at = 0.0

    def owners(self, topic: str) -> dict[int, str]:
        """Return the base URL of each partition's worker, as far as it is known."""
        if self._consumer is None:
            return {}
        return {tp.partition: url for tp, url in self._owners.owners.items() if tp.topic == topic}

    def __post_init__(self) -> None:
        """Set up the state that the thread's loop uses."""
        super().__post_init__()
        self._fetch_lock = asyncio.Lock()
        self.max_metadata_length = MAX_METADATA_LENGTH

    def close(self) -> None:
        """Do nothing: ``on_thread_stop`` closes the client in the thread's loop.

        If a rebalance comes while the worker stops, Faust calls this too early. The client would be
        half closed, and the group would wait for this member until its session ends.
        """

    async def on_thread_stop(self) -> None:
        """Stop the client, 3 s at most, even if brokers are down.

        aiokafka raises the cancellation of its own requests, which would end the thread, and Faust
        would wait for it for ever. A broker may not answer, or not close a TLS connection, for
        which asyncio waits 30 s.
        """
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await super().on_thread_stop()
        except (asyncio.CancelledError, KafkaError, OSError) as error:  # TimeoutError is an OSError
            self.log.info("Stopped without an answer from the brokers: %r", error)

    async def run_in_thread(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call in the thread, concurrently with others; cancelling this cancels the call.

        Faust's ``call_thread`` has two workers for all calls, and continues cancelled calls.
        Requests to a broker that hangs would delay commits.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(call, self.thread_loop)
        except RuntimeError:  # the thread has ended
            call.close()
            raise
        return await asyncio.wrap_future(future)

    @_in_thread
    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka how far these partitions can be read: to the first open transaction."""
        return await self._highwaters(list(partitions))

    @_in_thread
    async def log_ends(self, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka for the ends of these partitions, including open transactions."""
        fetcher, timeout_ms = self._uncommitted_fetcher()
        return cast(Mapping[TP, int], await fetcher.end_offsets(partitions, timeout_ms))

    @_in_thread
    async def offsets_at(self, moment: float, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka for the first record of each partition at a time (seconds since 1970) or later.

        Partitions without such a record are not in the result.
        """
        fetcher, timeout_ms = self._uncommitted_fetcher()
        asked = {TopicPartition(*tp): max(int(moment * 1000), 0) for tp in partitions}
        found = await fetcher.get_offsets_by_times(asked, timeout_ms)
        return {TP(*tp): at.offset for tp, at in found.items() if at is not None}

    def _uncommitted_fetcher(self) -> tuple[Any, int]:
        """Return a fetcher that ignores open transactions, and its time-out."""
        consumer = self._ensure_consumer()
        fetcher = copy.copy(consumer._fetcher)
        fetcher._isolation_level = READ_UNCOMMITTED
        return fetcher, consumer._request_timeout_ms

    @_in_thread
    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Ask Kafka for the beginnings of these partitions."""
        return cast(Mapping[TP, int], await self._ensure_consumer().beginning_offsets(partitions))

    @property
    def _connected(self) -> aiokafka.AIOKafkaConsumer | None:
        """The client once it has connected, which takes long while Kafka is slow."""
        consumer = self._consumer
        return None if consumer is None or consumer._coordinator is None else consumer

    async def check_group(self) -> None:
        """Raise the error that stopped the group's coordination, if there is one.

        aiokafka keeps the error and does nothing until it is fetched, which Faust never does.

        Raises:
            KafkaError: An error stopped it. Fetching the error has resumed it.
            ClientEnded: A task of aiokafka has ended, and is never started again.
        """
        if (consumer := self._connected) is not None:
            await self._check_group(consumer)

    @_in_thread
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
        """Return whether a broker answers this client; may hang.

        Raises:
            KafkaError: A broker answered with an error of the group.
        """
        consumer = self._connected
        return consumer is None or await self._kafka_answers(consumer)

    @_in_thread
    async def _kafka_answers(self, consumer: aiokafka.AIOKafkaConsumer) -> bool:
        group_id = consumer._coordinator.group_id
        try:
            await consumer._client.coordinator_lookup(CoordinationType.GROUP, group_id)
        except (KafkaConnectionError, NodeNotReadyError, RequestTimedOutError):
            return False
        return True

    def generation(self) -> int:
        """Return the group's generation of this member; -1 without one."""
        consumer = self._connected
        return -1 if consumer is None else int(consumer._coordinator.generation)

    def fetches(self) -> dict[TP, object] | None:
        """Return a mark for each assigned partition, which changes with each fetch.

        The mark also differs between two calls if no fetch is due: fetched records wait, or the
        partition has no leader. It is ``None`` if the position is unknown. The result is ``None``
        without an assignment. May be called from another thread.
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
            marks[TP(*tp)] = mark
        return marks

    @_in_thread
    async def commit_finished(
        self, commits: Mapping[TP, Commit], *, retry_seconds: float = 0.0
    ) -> bool:
        """Commit those of the partitions that are assigned; return whether Kafka accepted it.

        Retries for ``retry_seconds`` while the coordinator moves or is replaced. Nothing else may
        be committed meanwhile.
        """
        consumer = self._ensure_consumer()
        assigned = self.assignment()
        offsets = {
            TopicPartition(*tp): OffsetAndMetadata(*commit)
            for tp, commit in commits.items()
            if tp in assigned
        }
        if not offsets:
            return False
        coordinator = consumer._coordinator
        generation = coordinator.generation
        deadline = time.monotonic() + retry_seconds
        while True:
            try:
                # aiokafka's own commit retries until it succeeds, in any later generation: an old
                # offset could overwrite newer ones.
                async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                    await coordinator.ensure_coordinator_known()
                    async with coordinator._commit_lock:
                        await coordinator._do_commit_offsets(None, offsets)
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
                # The group has a new generation. Nothing is lost: records are delivered again.
                self.log.info("Commit came too late for the group: %r", late)
                return False
            except (KafkaError, TimeoutError) as error:
                retriable = not isinstance(error, KafkaError) or error.retriable
                out_of_time = time.monotonic() + COMMIT_RETRY_SECONDS > deadline
                if not retriable or out_of_time or coordinator.generation != generation:
                    self.log.warning(COMMIT_FAILED, error)
                    return False
            await asyncio.sleep(COMMIT_RETRY_SECONDS)

    @_in_thread
    async def seek_in_generation(self, tp: TP, offset: int, generation: int) -> bool:
        """Seek a partition if the group is still in ``generation``; return whether it was.

        A seek after that of the next assignment would skip records.
        """
        consumer = self._ensure_consumer()
        partition = TopicPartition(*tp)
        async with self._fetch_lock:
            is_assigned = partition in consumer.assignment()
            if consumer._coordinator.generation != generation or not is_assigned:
                return False
            consumer.seek(partition, offset)
            return True

    @_in_thread
    async def seek_to_committed_or_beginning(self) -> dict[TP, Commit | None]:
        """Seek each assigned partition to its committed offset, or to its beginning without one.

        aiokafka's own call does not seek if nothing, or offset 0, is committed. Records that were
        fetched and dropped before would never be read again.
        """
        consumer = self._ensure_consumer()
        assigned = list(consumer.assignment())
        committed = await fetch_commits(consumer._coordinator, assigned)
        async with self._fetch_lock:
            for partition, found in committed.items():
                if found is not None:
                    consumer.seek(partition, found.offset)
            if uncommitted := [one for one in assigned if committed[one] is None]:
                await consumer.seek_to_beginning(*uncommitted)
        return {TP(*tp): Commit(*found) if found else None for tp, found in committed.items()}

    async def getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        """Fetch records. Without Faust's queue of calls: it makes three tasks for each call."""
        consumer = self._ensure_consumer()
        return await self.run_in_thread(
            self._fetch_records(
                consumer, active_partitions, timeout=timeout, max_records=consumer._max_poll_records
            )
        )

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Any:
        # A fetch that lasts over a rebalance would advance the position after the new assignment's
        # seek, and its records would be dropped. So seeks wait until no fetch is in flight.
        async with self._fetch_lock:
            before = self.positions()
            try:
                return await super()._fetch_records(*args, **kwargs)
            except NoOffsetForPartitionError as error:
                # This fetch came before the seek that follows every assignment.
                consumer = self._ensure_consumer()
                if (partition := error.args[0]) in consumer.assignment():
                    consumer._fetcher.request_offset_reset(
                        [partition], OffsetResetStrategy.EARLIEST
                    )
                return {}
            except Exception:
                # One partition cannot be read. The error drops records of other partitions, whose
                # positions have advanced.
                consumer = self._ensure_consumer()
                for tp, position in self.positions().items():
                    if before.get(tp, position) != position:
                        consumer.seek(TopicPartition(*tp), before[tp])
                raise

    def positions(self) -> dict[TP, int]:
        """Return the position of each partition, as far as it is known.

        May be called from another thread: each position is read atomically.
        """
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None:
            return {}
        states = ((tp, assignment.state_value(tp)) for tp in assignment.tps)
        return {
            TP(*tp): state.position
            for tp, state in states
            if state is not None and state.has_valid_position
        }

    def deleted(self) -> dict[TP, int]:
        """Return the assigned partitions that no longer exist, each with its last known end.

        May be called from another thread, as ``positions``.
        """
        consumer = self._ensure_consumer()
        cluster = consumer._client.cluster
        return {
            TP(*tp): consumer.highwater(tp) or 0
            for tp in consumer.assignment()
            if tp.topic not in cluster.unauthorized_topics
            and tp.partition not in (cluster.partitions_for_topic(tp.topic) or ())
        }

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: Faust would log a livelock while the intake is paused."""
