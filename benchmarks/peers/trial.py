"""One run of a peer: every record has to arrive, and the second half of them is measured."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.brokers import Brokers
from benchmarks.processes import CannotMeasure, Child, Sink, SinkCounts
from benchmarks.subjects import Job, Start

# Few enough that a key's next record often comes while the last one is on its way.
KEYS = 5_000
POLL_SECONDS = 0.02
# Longer than any peer's session time-out: after a kill, Kafka waits for it.
QUIET_SECONDS = 100.0


@dataclass(frozen=True, slots=True)
class Speed:
    """What a run showed.

    Attributes:
        records_per_second: Arrivals a second in the second half.
        cpu_us: CPU microseconds an arrival there: of the process and its children.
        lost: Records that never arrived.
        repeated: Arrivals of a record that had arrived before.
        reordered: Records that arrived after a later one of their key.
        overlapping: Records that arrived while another of their key waited for its answer.
    """

    records_per_second: float
    cpu_us: float
    lost: int
    repeated: int
    reordered: int
    overlapping: int


@dataclass(frozen=True, slots=True)
class Killed:
    """What a kill halfway cost: records that never arrived, and that arrived again."""

    lost: int
    repeated: int


def measure_speed(
    start: Start, brokers: Brokers, *, records: int, latency_ms: float, in_flight: int
) -> Speed:
    """Deliver so many records by one process.

    Raises:
        CannotMeasure: It ended, or did not get through the first half.
    """
    with brokers.topic() as topic, Sink(latency_ms) as sink:
        topic.fill(records, KEYS)
        with start(Job(brokers, topic, sink, in_flight, topic.new_group())) as subject:
            begin = _wait(subject, sink, records // 2)
            if begin.arrived < records // 2:
                raise CannotMeasure(
                    f"only {begin.arrived} of {records} arrived:\n{subject.last_words()}"
                )
            cpu_seconds = subject.cpu_seconds()
            end = _wait(subject, sink, records)
            cpu_seconds = subject.cpu_seconds() - cpu_seconds
    delivered = end.arrived - begin.arrived
    return Speed(
        delivered / (end.last_arrival - begin.clock),
        cpu_seconds / delivered * 1e6,
        records - end.arrived,
        end.repeated,
        end.reordered,
        end.overlapping,
    )


def measure_kill(
    start: Start, brokers: Brokers, *, records: int, latency_ms: float, in_flight: int
) -> Killed:
    """Deliver so many records by a process that is killed halfway, and its successor.

    Raises:
        CannotMeasure: One of them ended by itself.
    """
    with brokers.topic() as topic, Sink(latency_ms) as sink:
        topic.fill(records, KEYS)
        job = Job(brokers, topic, sink, in_flight, topic.new_group())
        with start(job) as subject:
            _wait(subject, sink, records // 2)
            subject.kill()
        with start(job) as successor:
            end = _wait(successor, sink, records)
    return Killed(records - end.arrived, end.repeated)


def _wait(subject: Child, sink: Sink, arrived: int) -> SinkCounts:
    """Wait until so many have arrived, or nothing has for long."""
    quiet_since = time.monotonic()
    before = -1
    while True:
        counts = sink.counts()
        if counts.arrived != before:
            before, quiet_since = counts.arrived, time.monotonic()
        if counts.arrived >= arrived or time.monotonic() - quiet_since > QUIET_SECONDS:
            return counts
        subject.check()
        time.sleep(POLL_SECONDS)
