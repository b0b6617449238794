"""Faust's Kafka transport, with our own idea of what may be committed.

Stock Faust commits what was acked, and acks on paths that lose data: out-of-order acks, errors
that leave an agent, undecodable records, skipped events, cancelled ones (docs/decisions/0001).
Here an offset is committed only when the delivery code says that every record before it is
finished. Faust's acks are not consulted: topics are declared with ``acks=False`` and agents read
``stream.noack()``.

Records go to the streams in batches, one event for what a fetch brought of a partition: Faust's
work for an event (queue, guards, sensors) is the largest cost of a worker otherwise.

What is overridden is private to Faust 0.15.3, which is therefore pinned exactly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

import aiokafka
import faust
from aiokafka.errors import (
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.consumer import RecordMap
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage, Message
from faust.types.transports import TPorTopicSet
from mode import ServiceT

from app.delivery.progress import Commit, PartitionProgress
from app.delivery.record import Record

# A commit that a dead broker holds up must not outlive its generation, nor hold up a rebalance.
COMMIT_TIMEOUT_SECONDS = 5.0
FETCH_MAX_WAIT_MS = 200


class NoProgress(Exception):
    """Records of a partition whose progress was never begun."""


class RelayConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread that talks to Kafka: commits with metadata, and never crashes over a commit."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust fixes 1,500 ms; a seek, and the embedded cluster's answer, wait for it.
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        return consumer

    async def on_thread_stop(self) -> None:
        """Stop the client, whatever it says of brokers that are gone.

        aiokafka lets the cancellation of its own requests out, and Faust would wait for the thread
        that it ended until the process is killed.
        """
        try:
            await super().on_thread_stop()
        except (asyncio.CancelledError, KafkaError) as error:
            self.log.info("Stopped without the brokers' leave: %r", error)

    async def check_group(self) -> None:
        """Raise what stopped the group's coordination, if something did.

        aiokafka holds an error until somebody asks, and does nothing until then; Faust never asks.
        """
        if self._consumer is not None:
            await self.call_thread(self._check_group, self._consumer)

    async def _check_group(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        consumer._coordinator.check_errors()

    async def commit_finished(self, commits: Mapping[TP, Commit]) -> bool:
        """Commit for the assigned ones of these partitions; ``False`` if Kafka did not take it."""
        return bool(await self.call_thread(self._commit_finished, commits))

    async def _commit_finished(self, commits: Mapping[TP, Commit]) -> bool:
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
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                await self._commit_once(consumer, offsets)
        except (UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError) as error:
            # The group moved on. Nothing is lost: the records are delivered again.
            self.log.info("Commit came too late for the group: %r", error)
            return False
        except (KafkaError, TimeoutError) as error:
            self.log.warning("Commit failed, it is tried again with the next one: %r", error)
            return False
        return True

    async def _commit_once(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
    ) -> None:
        """Ask the coordinator once.

        aiokafka's own commit tries on until it succeeds, with whatever generation the member has
        by then: an old offset could land after newer ones.
        """
        coordinator = consumer._coordinator
        await coordinator.ensure_coordinator_known()
        async with coordinator._commit_lock:
            await coordinator._do_commit_offsets(None, offsets)

    async def seek_to_committed_or_beginning(self) -> dict[TP, Commit | None]:
        """Seek every assigned partition to its committed offset, or else to its beginning.

        aiokafka's own call leaves the position alone where nothing, or offset 0, is committed:
        records that were fetched and dropped before would never be read again.
        """
        return cast(
            dict[TP, Commit | None], await self.call_thread(self._seek_to_committed_or_beginning)
        )

    async def _seek_to_committed_or_beginning(self) -> dict[TP, Commit | None]:
        consumer = self._ensure_consumer()
        assigned = list(consumer.assignment())
        committed = await consumer._coordinator.fetch_committed_offsets(assigned)
        commits: dict[TP, Commit | None] = {}
        uncommitted = []
        for partition in assigned:
            found = committed.get(partition)
            tp = TP(partition.topic, partition.partition)
            if found is None or found.offset < 0:
                commits[tp] = None
                uncommitted.append(partition)
            else:
                commits[tp] = Commit(found.offset, found.metadata or "")
                consumer.seek(partition, found.offset)
        if uncommitted:
            await consumer.seek_to_beginning(*uncommitted)
        return commits

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


class RelayConsumer(driver.Consumer):
    """Reads records, and commits the contiguous finished prefix of each partition."""

    _thread: RelayConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._progress: dict[TP, PartitionProgress] = {}
        self._last_commits: dict[TP, Commit | None] = {}
        self._stops = 0
        self._fetch_was_cancelled = False

    def _new_consumer_thread(self) -> RelayConsumerThread:
        return RelayConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # --- what the delivery code calls -----------------------------------------------------------

    def claim(self, record: Record) -> bool:
        """Whether a record is to be delivered now.

        Not second copies, and not those of an older generation: both come, or came, again.
        """
        progress = self._progress.get(TP(record.topic, record.partition))
        return (
            progress is not None
            and progress.generation == record.generation
            and progress.hold(record.offset)
        )

    def finished(self, record: Record) -> None:
        """Note that a record is finished; one of an older generation does not count."""
        progress = self._progress.get(TP(record.topic, record.partition))
        if progress is not None and progress.generation == record.generation:
            progress.finish(record.offset)

    def committed_offsets(self) -> dict[TP, int | None]:
        """Return the committed offset of every assigned partition; ``None`` without one."""
        return {tp: commit.offset if commit else None for tp, commit in self._last_commits.items()}

    def oldest_unfinished_seconds(self) -> float:
        """Return the age of the oldest record that was read and is not finished; 0 if none."""
        times = [
            moment
            for progress in self._progress.values()
            if (moment := progress.oldest_unfinished_time()) is not None
        ]
        return max(time.time() - min(times), 0.0) if times else 0.0

    async def check_group(self) -> None:
        """Let the group's coordination go on after an error; crash if it ended for good."""
        try:
            await self._thread.check_group()
        except KafkaError as error:
            self.log.error("Membership in the consumer group failed, trying again: %s", error)
        except Exception as error:  # noqa: BLE001 - whatever ended it, nothing would be delivered
            await self.crash(error)

    # --- committing -----------------------------------------------------------------------------

    async def force_commit(
        self, topics: TPorTopicSet | None = None, start_new_transaction: bool = True
    ) -> bool:
        """Commit what is finished, where it changed since the last commit."""
        commits = {
            tp: commit
            for tp, progress in self._progress.items()
            if (commit := progress.commit()) is not None and commit != self._last_commits.get(tp)
        }
        if not commits:
            return False
        state = self.app.sensors.on_commit_initiated(self)
        did_commit = await self._thread.commit_finished(commits)
        self.app.sensors.on_commit_completed(self, state)
        if did_commit:
            self._last_commits.update(
                {tp: commit for tp, commit in commits.items() if tp in self._progress}
            )
            offsets = {tp: commit.offset for tp, commit in commits.items()}
            self.app.tables.on_commit(offsets)
            self.app.monitor.on_tp_commit(offsets)
        return did_commit

    async def commit_before_leaving(self) -> None:
        """Commit everything that is finished by now."""
        # A commit under way may have begun before the last deliveries ended: wait it out first.
        await self.maybe_wait_for_commit_to_finish()
        await self.force_commit()

    def ack(self, message: Message) -> bool:
        """Take no notice: Faust's acks say nothing about whether a record is finished."""
        return False

    # --- rebalancing ----------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """End deliveries and commit them before the partitions go.

        Faust itself forgets what was acked first, and waits afterwards.
        """
        self.stop_flow()
        self.app.flow_control.suspend()
        self.app.flow_control.clear()
        try:
            await cast(Any, self.app).on_partitions_leaving()
            await self.commit_before_leaving()
        finally:
            self._progress = {}
            self._last_commits = {}
            await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin each partition anew; records flow after ``seek_to_committed``."""
        self._progress = {}
        self._last_commits = {}
        cast(Any, self.app).on_partitions_arriving(len(assigned))
        await super().on_partitions_assigned(assigned, generation_id)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to what the group committed, and take up the progress that stands there."""
        generation = self.app.consumer_generation_id
        commits = await self._thread.seek_to_committed_or_beginning()
        if generation != self.app.consumer_generation_id:
            return {}
        for tp, commit in commits.items():
            known = self._progress.get(tp)
            if known is None or known.generation != generation:
                self._progress[tp] = PartitionProgress(generation, commit)
                self._last_commits[tp] = commit
        return {tp: commit.offset for tp, commit in commits.items() if commit is not None}

    # --- reading --------------------------------------------------------------------------------

    def stop_flow(self) -> None:
        """Stop handing out records."""
        self._stops += 1
        super().stop_flow()

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        """Hand records to the streams until the worker stops."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                try:
                    await self._drain_once()
                except KafkaError as error:
                    # The position stays where it is: nothing is skipped.
                    self.log.error("Fetch failed, trying again: %r", error)
                    await self.sleep(1.0)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
            self.log.info("Broker stopped consumer, shutting down...")
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise
            self.log.info("Consumer shutting down for user cancel.")

    async def _drain_once(self) -> None:
        await self.sleep(0)
        if self._fetch_was_cancelled:
            self._fetch_was_cancelled = False
            await self._seek_again()
        stops = self._stops
        try:
            fetched, _ = await self._wait_next_records(timeout=1.0)
        except asyncio.CancelledError:
            # What it may have brought is lost to us, though Kafka's client stands behind it.
            self._fetch_was_cancelled = True
            raise
        if fetched is None or not self.flow_active:
            return  # flow resumes after a seek to what is committed
        if stops != self._stops:
            # Stopped and resumed during the fetch: whether these records are from before or
            # after the seek in between is unknown, so they are read again.
            await self._seek_again()
            return
        try:
            batches = self._take(fetched)
        except NoProgress:
            # Dropping the records would leave a hole that the next ones cover up.
            await self._seek_again()
            return
        for tp, batch in batches:
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            # A rebalance breaks off the wait for room in the stream.
            await self.wait_first(
                self.callback(_batch_message(tp, batch)), self.suspend_flow.wait()
            )

    def _take(self, fetched: RecordMap) -> list[tuple[TP, list[Record]]]:
        """Note what was fetched; returns what of it is to be delivered, in batches.

        Raises:
            NoProgress: Flow resumed although the seek after the assignment did not succeed.
        """
        generation = self.app.consumer_generation_id
        batches = []
        for partition, raw in fetched.items():
            tp = TP(partition.topic, partition.partition)
            progress = self._progress.get(tp)
            if progress is None or progress.generation != generation:
                raise NoProgress(tp)
            batch = [
                _record(record, generation)
                for record in raw
                if progress.take(record.offset, (record.timestamp or 0) / 1000)
            ]
            if batch:
                batches.append((tp, batch))
        # Only now, with all that was handed out taken and before more can be.
        for tp, position in self._thread.positions().items():
            if tp in self._progress:
                self._progress[tp].skip_to(position)
        return batches

    async def _seek_again(self) -> None:
        """Go back to what is committed: records were fetched that nobody may take."""
        stops = self._stops
        while stops == self._stops and not self.should_stop:
            try:
                await self.perform_seek()
            except KafkaError as error:
                self.log.warning("Seek failed, trying again: %r", error)
                await self.sleep(1.0)
            else:
                return


class RecordBatches(faust.Schema[Any, list[Record]]):
    """Hands batches of records to the streams as they are: there is nothing to decode."""

    def loads_key(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return no key: a batch has none."""
        return None

    def loads_value(self, app: Any, message: Message, **kwargs: Any) -> Any:
        """Return the batch, a list of ``Record``."""
        return message.value


def _record(raw: Any, generation: int) -> Record:
    timestamp_ms = raw.timestamp if raw.timestamp is not None else -1
    return Record(
        raw.topic,
        raw.partition,
        raw.offset,
        generation,
        raw.key,
        raw.value,
        tuple(raw.headers),
        timestamp_ms,
        raw.timestamp_type or 0,
    )


def _batch_message(tp: TP, batch: list[Record]) -> ConsumerMessage:
    first = batch[0]
    return ConsumerMessage(
        tp.topic,
        tp.partition,
        first.offset,
        first.timestamp_ms / 1000,
        first.timestamp_type,
        None,
        None,
        cast(Any, batch),
        None,
        0,
        0,
        tp,
        generation_id=first.generation,
    )


class RelayTransport(driver.Transport):
    """The transport that ``app.main`` gives to Faust."""

    Consumer = RelayConsumer
