"""The consumer: passes records to the streams, and commits the finished prefix."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Protocol, cast

from aiokafka.errors import (
    InvalidSessionTimeoutError,
    KafkaError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
)
from faust.transport.consumer import RecordMap
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import Producer
from faust.types import TP, ConsumerMessage, Message
from faust.types.transports import TPorTopicSet
from mode import ServiceT

from order_relay.delivery.left_in_kafka import LeftInKafka
from order_relay.delivery.progress import Commit, PartitionProgress
from order_relay.kafka.consumer.aiokafka_patches import read_any_header_name
from order_relay.kafka.consumer.standstill import Intake, standstill
from order_relay.kafka.consumer.thread import COMMIT_TIMEOUT_SECONDS, RelayConsumerThread
from order_relay.model.record import Record

# The longest wait for a commit in flight before another commit.
PENDING_COMMIT_SECONDS = 1.0
SHORT_FETCH_SECONDS = 0.02
FETCH_WITH_RECORDS_LEFT_SECONDS = 0.1
# How long to retry before partitions are revoked, until a dead coordinator is replaced: Kafka takes
# 9 s to notice, and then loads the group. Together with the end of deliveries this is well within
# the rebalance time-out (60 s).
REVOKE_COMMIT_SECONDS = 20.0
# The longest wait for the final commit. Waiting for a slow coordinator avoids redeliveries.
FINAL_COMMIT_SECONDS = 7.0


class DeliverySide(Protocol):
    """What the consumer calls when partitions come and go."""

    async def revoking(self) -> None:
        """End deliveries: all partitions are revoked. Finished records are committed then."""

    def assigned(self, partitions: Collection[int]) -> None:
        """Start deliveries of these partitions of the source topic."""


class RelayConsumer(driver.Consumer):
    """Reads records, and commits the contiguous finished prefix of each partition."""

    _thread: RelayConsumerThread
    _deliveries: DeliverySide
    _left: LeftInKafka
    _on_deleted: Callable[[int], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owners = self._thread.owners
        self.log_ends = self._thread.log_ends
        self.offsets_at = self._thread.offsets_at
        self._progress: dict[TP, PartitionProgress] = {}
        self._last_commits: dict[TP, Commit | None] = {}
        # The partitions that were deleted with their topic, and their ends.
        self._gone: dict[TP, int] = {}
        # The offset after the last fetched record. aiokafka returns a lower one only after the
        # partition was truncated.
        self._read_to: dict[TP, int] = {}
        # Seeks before the next fetch: the offset, or None to continue at the end of what was read,
        # and whether to pause there.
        self._pending_seeks: dict[TP, tuple[int | None, bool]] = {}
        # The offsets of backward seeks, until a record was fetched there.
        self._moved_back_to: dict[TP, int] = {}
        self._intake_ended = self._final_commit_started = False
        self._stops = 0
        self._fetch_was_dropped = False
        self._has_room = asyncio.Event()
        self._rounds = 0
        self._commits = 0
        self._errors = 0
        self.group_problem = ""
        """Why the worker is not in its group; empty if it is, or nothing is known."""
        self._waiting_for_room = False
        self._intake: Intake | None = None

    def _new_consumer_thread(self) -> RelayConsumerThread:
        return RelayConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def deliver_with(
        self, deliveries: DeliverySide, left: LeftInKafka, on_deleted: Callable[[int], None]
    ) -> None:
        """Set what the consumer works with. Call it before the start.

        ``on_deleted`` is called with the number of records that Kafka deleted before they were
        delivered.
        """
        self._deliveries, self._left, self._on_deleted = deliveries, left, on_deleted

    # --- called by deliveries and monitoring ----------------------------------------------------

    def claim(self, record: Record) -> bool:
        """Claim a record; return whether it is to be delivered now.

        Duplicates and records of an older generation are not: they are delivered another time.
        """
        progress = self._progress_of(record)
        return progress is not None and progress.claim(record.offset)

    def finished(self, record: Record) -> None:
        """Note that a record is finished. Records of an older generation are ignored."""
        progress = self._progress_of(record)
        if progress is not None:
            progress.finish(record.offset)

    def is_finished(self, topic: str, partition: int, offset: int) -> bool:
        """Return whether a record is finished, as far as this worker has its partition."""
        progress = self._progress.get(TP(topic, partition))
        return progress is not None and progress.is_finished(offset)

    def leave(self, record: Record) -> None:
        """Withdraw a claim: there is no room for the record, which is read again later."""
        progress = self._progress_of(record)
        if progress is not None:
            progress.leave(record.offset)

    def _progress_of(self, record: Record) -> PartitionProgress | None:
        # Twice for each record, and a plain tuple costs a third of a TP.
        progress = self._progress.get(cast(TP, (record.topic, record.partition)))
        if progress is None or progress.generation != record.generation:
            return None
        return progress

    def read_again(self, topic: str, partition: int, offset: int) -> None:
        """See ``order_relay.delivery.left_in_kafka.Reading``."""
        self._pending_seeks[TP(topic, partition)] = (offset, False)
        self._has_room.set()

    def read_on(self, topic: str, partition: int, *, paused: bool) -> None:
        """See ``order_relay.delivery.left_in_kafka.Reading``."""
        self._pending_seeks[TP(topic, partition)] = (None, paused)
        self._has_room.set()

    def committed_offsets(self) -> dict[TP, int | None]:
        """Return the committed offset of each assigned partition; ``None`` without one."""
        return {tp: commit.offset if commit else None for tp, commit in self._last_commits.items()}

    def positions(self) -> dict[TP, int | None]:
        """Return the next offset to read of each assigned partition; ``None`` if not known."""
        return {tp: progress.position for tp, progress in self._progress.items()}

    def finished_to(self) -> dict[TP, int | None]:
        """Return the end of each partition's finished prefix, whether committed or not."""
        return {tp: progress.finished_to for tp, progress in self._progress.items()}

    async def unread(self, topic: str, partition: int) -> int | None:
        """Ask Kafka how many records of a partition are neither claimed nor finished.

        ``None`` if another worker has the partition, or its position is not known. May hang or
        raise like Kafka's client.
        """
        tp = TP(topic, partition)
        ends = await self.highwaters(tp)
        progress = self._progress.get(tp)
        if progress is None or progress.position is None or tp not in ends:
            return None
        return max(ends[tp] - progress.position, 0) + progress.unclaimed

    def oldest_unfinished_seconds(self) -> float:
        """Return the age of the oldest unfinished record that was read; 0 without one."""
        times = (progress.oldest_unfinished_time() for progress in self._progress.values())
        oldest = min(filter(None, times), default=float("inf"))
        return max(time.time() - oldest, 0.0)

    async def check_group(self) -> None:
        """Resume the group's coordination after an error; crash if its task has ended."""
        try:
            await self._thread.check_group()
        except KafkaError as error:
            self._errors += 1
            self.group_problem = str(error)
            if isinstance(error, InvalidSessionTimeoutError):
                self.group_problem = (
                    f"KAFKA_SESSION_TIMEOUT_MS={self.app.conf.broker_session_timeout * 1000:.0f} "
                    "is not between the brokers' group.min.session.timeout.ms and "
                    "group.max.session.timeout.ms"
                )
            self.log.error(
                "Membership in the consumer group failed, trying again: %s", self.group_problem
            )
        except Exception as error:  # noqa: BLE001 - nothing would be delivered any more
            await self.crash(error)

    async def kafka_answers(self) -> bool:
        """Return whether a broker answers the consumer's client; may hang."""
        try:
            return await self._thread.kafka_answers()
        except KafkaError:
            self._errors += 1  # aiokafka logs it
            return True

    def standstill(self) -> str | None:
        """Return what of the intake made no progress since the last call, or ``None``."""
        before, self._intake = (
            self._intake,
            Intake(
                generation=self._thread.generation(),
                errors=self._errors,
                flowing=self.flow_active,
                rounds=self._rounds,
                waiting_for_room=self._waiting_for_room,
                commits=self._commits,
                fetches=self._thread.fetches(),
                ready=set(self._progress),
            ),
        )
        if before is None or self._intake_ended or self.app.should_stop:
            return None
        return standstill(before, self._intake)

    # --- committing -----------------------------------------------------------------------------

    async def force_commit(
        self, topics: TPorTopicSet | None = None, start_new_transaction: bool = True
    ) -> bool:
        """Commit what has finished since the last commit."""
        did_commit = not self._final_commit_started and await self._commit_progress()
        self._commits += 1
        return did_commit

    async def _commit_progress(self, retry_seconds: float = 0.0) -> bool:
        longest = self._thread.max_metadata_length
        commits = {
            tp: commit
            for tp, progress in self._progress.items()
            if (commit := progress.commit(longest)) is not None
            and commit != self._last_commits.get(tp)
            and tp not in self._gone
        }
        if not commits:
            return False
        state = self.app.sensors.on_commit_initiated(self)
        did_commit = await self._thread.commit_finished(commits, retry_seconds=retry_seconds)
        self.app.sensors.on_commit_completed(self, state)
        if did_commit:
            self._last_commits.update(
                {tp: commit for tp, commit in commits.items() if tp in self._progress}
            )
        return did_commit

    async def final_commit(self) -> None:
        """Commit everything that is finished, for the last time."""
        # Stops Faust's commits once a second, each of which may wait 5 s for a broker.
        self._final_commit_started = True
        last = asyncio.ensure_future(self.commit_before_leaving())
        _, late = await asyncio.wait([last], timeout=FINAL_COMMIT_SECONDS)
        if late:
            self.log.warning(
                "Commit not answered within %.0f s: what finished last is delivered again",
                FINAL_COMMIT_SECONDS,
            )
        last.cancel()  # does nothing to one that has ended

    async def commit_before_leaving(self) -> None:
        """Commit everything that is finished, with retries."""
        # A commit in flight may be older than the last deliveries, so it must come first. The wait
        # is short, since without a broker both commits would time out one after the other.
        if self._commit_fut is not None:
            await asyncio.wait([self._commit_fut], timeout=PENDING_COMMIT_SECONDS)
        await self._commit_progress(retry_seconds=REVOKE_COMMIT_SECONDS)

    def ack(self, message: Message) -> bool:
        """Do nothing: Faust's acks do not mean that a record is finished."""
        return False

    # --- rebalancing ----------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """End deliveries, and commit them before the partitions are revoked.

        Faust would drop its acks first, and then wait. Of a topic that was deleted nothing may be
        committed: it may have been made again meanwhile, with other records at these offsets.
        """
        self.stop_intake()
        self._gone = self._thread.deleted()
        try:
            await self._deliveries.revoking()
            self._report_gone()
            await self.commit_before_leaving()
        finally:
            self._forget_progress()
            await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Reset progress. Records flow after ``seek_to_committed``."""
        self._forget_progress()
        self.resume_partitions(assigned & self._paused_partitions)
        self._deliveries.assigned([tp.partition for tp in assigned])
        self.group_problem = ""
        await super().on_partitions_assigned(assigned, generation_id)

    def _report_gone(self) -> None:
        """Report the records that were deleted with their topic before they were finished."""
        for tp, end in self._gone.items():
            progress = self._progress.get(tp)
            if progress is None or progress.position is None:
                continue
            unread = max(end - progress.position, 0)
            if lost := progress.unfinished + unread:
                last = progress.position + unread - 1
                self._report_deleted(tp, progress.finished_to or 0, last, lost)

    def _forget_progress(self) -> None:
        self._progress = {}
        self._last_commits = {}
        self._gone = {}
        self._pending_seeks.clear()
        self._moved_back_to.clear()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the committed offsets, and restore progress from the commit metadata."""
        generation = self.app.consumer_generation_id
        commits = await self._thread.seek_to_committed_or_beginning()
        if generation != self.app.consumer_generation_id:
            return {}
        for tp, commit in commits.items():
            self._read_to[tp] = commit.offset if commit else 0
            known = self._progress.get(tp)
            if known is None or known.generation != generation:
                self._progress[tp] = PartitionProgress(generation, commit)
                self._last_commits[tp] = commit
        return {tp: commit.offset for tp, commit in commits.items() if commit is not None}

    # --- reading --------------------------------------------------------------------------------

    def stop_flow(self) -> None:
        """Stop passing records to the streams."""
        self._stops += 1
        super().stop_flow()

    def stop_intake(self) -> None:
        """Stop the flow, and drop what the streams have not taken yet."""
        self.stop_flow()
        self.app.flow_control.suspend()
        self.app.flow_control.clear()

    def end_intake(self) -> None:
        """Stop the intake for the last time: the worker stops."""
        self._intake_ended = True
        self.stop_intake()

    def resume_flow(self) -> None:
        """Pass records to the streams again; not after ``end_intake``, whatever is assigned."""
        if not self._intake_ended:
            super().resume_flow()

    def on_buffer_drop(self, tp: TP) -> None:
        """Note that the stream has room for a partition again."""
        super().on_buffer_drop(tp)
        self._has_room.set()

    async def _wait_next_records(self, timeout: float) -> tuple[RecordMap | None, set[TP] | None]:
        """Fetch, or wait until the stream has room for a partition.

        Faust sleeps for a second if no partition has room. If only some have none, the fetch from
        the others is short, since it does not notice when there is room again; nor when records
        that were left in Kafka are to be read again.
        """
        if not self.flow_active:
            await self.wait(self.can_resume_flow.wait())
        active = self._get_active_partitions()
        if not active:
            self._has_room.clear()
            await self.wait(self._has_room.wait(), timeout=timeout)
            return {}, active
        if self._buffered_partitions:
            timeout = SHORT_FETCH_SECONDS
        elif self._left.lanes:
            timeout = FETCH_WITH_RECORDS_LEFT_SECONDS
        return await self._getmany(active_partitions=active, timeout=timeout), active

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        """Pass records to the streams until the worker stops."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                try:
                    try:
                        await self._drain_once()
                    except OffsetOutOfRangeError as error:
                        await self._skip_deleted([TP(*one) for one in error.args[0]])
                except UnicodeDecodeError:
                    self.log.warning(
                        "Header name is not UTF-8, fetching again with a slower parser"
                    )
                    read_any_header_name()
                    await self.sleep(1.0)
                except KafkaError as error:
                    self._errors += 1
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
        self._rounds += 1
        await asyncio.sleep(0)
        if self._fetch_was_dropped:
            if not self.flow_active:
                await self.wait(self.can_resume_flow.wait())
            self._fetch_was_dropped = False
            await self._seek_again()
        if self._pending_seeks:
            await self._do_pending_seeks()
        stops = self._stops
        try:
            fetched, _ = await self._wait_next_records(timeout=1.0)
        except asyncio.CancelledError:
            # aiokafka's position may have advanced over records that are lost now.
            self._fetch_was_dropped = True
            raise
        if fetched is None or not self.flow_active:
            self._fetch_was_dropped = bool(fetched)
            return
        # If the flow was stopped and resumed during the fetch, these records may be from before or
        # after the seek in between.
        if stops != self._stops or (batches := self._take(fetched)) is None:
            # Without the seek the next records would hide that these were dropped.
            await self._seek_again()
            return
        for tp, batch in batches:
            passing = self.callback(_message(tp, batch))
            if self._has_room_for(tp):
                await passing
                continue
            self._waiting_for_room = True
            try:
                # A rebalance ends the wait for room in the stream.
                await self.wait_first(passing, self.suspend_flow.wait())
            finally:
                self._waiting_for_room = False

    def _has_room_for(self, tp: TP) -> bool:
        """Return whether the stream accepts a batch without a wait, which must be guarded."""
        streams = cast(Any, self.app.topics)._tp_index.get(tp, ())
        return self.app.flow_control.is_active() and not any(one.queue.full() for one in streams)

    def _take(self, fetched: RecordMap) -> list[tuple[TP, list[Record]]] | None:
        """Note fetched records; return batches of those that are to be delivered.

        ``None`` if the flow resumed although the seek after the assignment failed.
        """
        generation = self.app.consumer_generation_id
        batches = []
        for partition, raw in fetched.items():
            tp = TP(*partition)
            progress = self._progress.get(tp)
            if progress is None or progress.generation != generation:
                return None
            if raw[0].offset < self._read_to.get(tp, 0):
                progress = self._restart_partition(tp, raw[0].offset)
            elif self._moved_back_to.pop(tp, raw[0].offset) < raw[0].offset:
                self._finish_deleted(tp, raw[0].offset.__gt__)
            if self._left.lanes and raw[0].offset < (progress.position or 0):
                self._finish_compacted(tp, {one.offset for one in raw})
            self._read_to[tp] = raw[-1].offset + 1
            batch = [
                _record(record, generation)
                for record in raw
                if progress.add(record.offset, _time_of(record))
            ]
            if batch:
                batches.append((tp, batch))
        # Only now: all returned records are noted, and no more can be returned yet.
        for tp, position in self._thread.positions().items():
            if tp in self._progress:
                self._progress[tp].skip_to(position)
        return batches

    def _restart_partition(self, tp: TP, offset: int) -> PartitionProgress:
        """Reset a partition's progress: Kafka has other records at the offsets that were read.

        aiokafka's position was beyond the partition's end and went back to its beginning: the topic
        was created again, or an unclean leader election truncated it.
        """
        self.log.error(
            "Partition is shorter than what was read of it, read from its beginning "
            "topic=%s partition=%d read_to=%d now_at=%d",
            tp.topic, tp.partition, self._read_to[tp], offset,
        )  # fmt: skip
        progress = self._progress[tp] = PartitionProgress(self.app.consumer_generation_id)
        self._moved_back_to.pop(tp, None)
        self._left.forget(tp.topic, tp.partition)
        return progress

    async def _do_pending_seeks(self) -> None:
        seeks, self._pending_seeks = self._pending_seeks, {}
        for tp, (offset, paused) in seeks.items():
            progress = self._progress.get(tp)
            if progress is None or progress.position is None:
                continue
            to = progress.position if offset is None else offset
            moved = await self._thread.seek_in_generation(tp, to, progress.generation)
            if not moved or self._progress.get(tp) is not progress:
                continue  # the partition was revoked, or was read again from its commit
            self._read_to[tp] = to
            if offset is not None:
                self._moved_back_to[tp] = offset
            else:
                self._moved_back_to.pop(tp, None)
            if paused:
                self.pause_partitions({tp})
            elif tp in self._paused_partitions:
                self.resume_partitions({tp})

    async def _skip_deleted(self, partitions: Collection[TP]) -> None:
        """Report records that Kafka deleted before they were read, and continue after them."""
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                starts = await self.earliest_offsets(*partitions)
        except TimeoutError as error:
            # The position stays, and the next fetch from there fails in the same way.
            raise RequestTimedOutError from error
        for tp, start in starts.items():
            progress = self._progress.get(tp)
            if progress is None or not await self._thread.seek_in_generation(
                tp, start, progress.generation
            ):
                continue  # the seek after the next assignment finds the same deletion
            first = progress.position
            if unread := progress.delete_before(start):
                self._report_deleted(tp, first or 0, start - 1, unread)
            self._finish_deleted(tp, start.__gt__)

    def _finish_deleted(self, tp: TP, gone: Callable[[int], bool]) -> None:
        """Finish records that were left in Kafka, and deleted there before they were read again."""
        deleted = self._left.forget(tp.topic, tp.partition, gone)
        for one in deleted:
            self._progress[tp].finish(one)
        if deleted:
            self._report_deleted(tp, min(deleted), max(deleted), len(deleted))

    def _finish_compacted(self, tp: TP, found: Collection[int]) -> None:
        """Finish left records that a fetch has passed: compaction deletes some between others."""
        passed = range(self._read_to.get(tp, 0), max(found))
        self._finish_deleted(tp, lambda offset: offset in passed and offset not in found)

    def _report_deleted(self, tp: TP, first: int, last: int, count: int) -> None:
        self._on_deleted(count)
        self.log.error(
            "Records were deleted before they were delivered "
            "topic=%s partition=%d first=%d last=%d count=%d",
            tp.topic, tp.partition, first, last, count,
        )  # fmt: skip

    async def _seek_again(self) -> None:
        """Seek to the committed offsets, since fetched records were dropped."""
        stops = self._stops
        while stops == self._stops and not self.should_stop:
            try:
                await self.perform_seek()
            except KafkaError as error:
                self._errors += 1
                self.log.warning("Seek failed, trying again: %r", error)
                await self.sleep(1.0)
            else:
                return


def _time_of(record: Any) -> float:
    """Return a record's timestamp in seconds since the epoch; now if it has none."""
    timestamp_ms = record.timestamp
    return timestamp_ms / 1000 if timestamp_ms and timestamp_ms > 0 else time.time()


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


def _message(tp: TP, batch: list[Record]) -> ConsumerMessage:
    """Return Faust's message for a non-empty batch of a partition."""
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


class UnusedProducer(driver.Producer):
    """Faust's producer without a connection: records are published by ``KafkaProducer``."""

    async def on_start(self) -> None:
        """Do not connect, which ends the worker where Kafka does not answer just then."""
        await Producer.on_start(self)


class RelayTransport(driver.Transport):
    """Faust's transport with our consumer, and without a producer."""

    Consumer: ClassVar = RelayConsumer
    Producer: ClassVar = UnusedProducer
