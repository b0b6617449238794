"""One run of a peer: every record has to arrive, and the second half of them is measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.brokers import Brokers
from benchmarks.processes import CannotMeasure, Sink
from benchmarks.subjects import Job, Start

# Few enough that a key's next record often comes while the last one is on its way.
KEYS = 5_000
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
            begin = sink.wait_for(records // 2, subject, QUIET_SECONDS)
            if begin.arrived < records // 2:
                raise CannotMeasure(
                    f"only {begin.arrived} of {records} arrived:\n{subject.last_words()}"
                )
            cpu_seconds = subject.cpu_seconds()
            end = sink.wait_for(records, subject, QUIET_SECONDS)
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
            sink.wait_for(records // 2, subject, QUIET_SECONDS)
            subject.kill()
        with start(job) as successor:
            end = sink.wait_for(records, successor, QUIET_SECONDS)
    return Killed(records - end.arrived, end.repeated)
