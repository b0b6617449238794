"""One run: a subject and a sink of its own, measured once the subject is warm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.brokers import Brokers, Topic
from benchmarks.processes import CannotMeasure, Child, Sink
from benchmarks.subjects import Job, Start

# Until then: connections, caches, and the first garbage collections.
WARM_UP_RECORDS = 2_000
WARM_UP_SECONDS = 3.0
POLL_SECONDS = 0.05
FIRST_DELIVERY_SECONDS = 60.0
STALL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a run showed in its steady part.

    Attributes:
        records_per_second: Deliveries a second.
        cpu_us: CPU microseconds a delivery: user and system time of the process and its children.
        peak_rss_mib: The most memory it ever had.
        repeated: Requests for an order that had come before.
    """

    records_per_second: float
    cpu_us: float
    peak_rss_mib: float
    repeated: int


def measure(
    start: Start,
    brokers: Brokers,
    topic: Topic,
    *,
    latency_ms: float,
    in_flight: int,
    seconds: float,
    records: int | None = None,
    during: Callable[[Child, int], None] = lambda subject, answered: None,
) -> Result:
    """Run one subject until the topic is delivered, or for ``seconds`` once it is warm.

    Args:
        start: Starts the subject.
        brokers: Where the topic is.
        topic: The filled topic; it may grow meanwhile.
        latency_ms: How long the sink takes to answer.
        in_flight: Deliveries at a time.
        seconds: Longest measured part.
        records: Deliveries after which the run ends; all of the topic's by default.
        during: Called at every look with the subject and the deliveries so far.

    Raises:
        CannotMeasure: The subject ended, or stopped delivering.
    """
    with (
        Sink(latency_ms) as sink,
        start(Job(brokers, topic, sink, in_flight, topic.new_group())) as subject,
    ):
        looks = _Looks(subject, sink, during)
        begin = looks.wait_until_warm()
        while True:
            end = looks.take()
            at_end = end.answered >= (records or topic.records)
            if at_end or end.at - begin.at >= seconds:
                break
        delivered = end.answered - begin.answered
        return Result(
            delivered / ((end.last_answer if at_end else end.at) - begin.at),
            (end.cpu_seconds - begin.cpu_seconds) / delivered * 1e6,
            subject.peak_rss_mib(),
            sink.counts().repeated,
        )


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    answered: int
    last_answer: float
    cpu_seconds: float


class _Looks:
    """Looks at a subject and its sink, again and again."""

    def __init__(self, subject: Child, sink: Sink, during: Callable[[Child, int], None]) -> None:
        self._subject = subject
        self._sink = sink
        self._during = during
        self._started = time.monotonic()

    def wait_until_warm(self) -> _Look:
        first = None
        while True:
            look = self.take()
            if look.answered:
                first = first or look.at
                if look.answered >= WARM_UP_RECORDS or look.at - first >= WARM_UP_SECONDS:
                    return look

    def take(self) -> _Look:
        time.sleep(POLL_SECONDS)
        self._subject.check()
        counts = self._sink.counts()
        cpu_seconds = self._subject.cpu_seconds()
        self._during(self._subject, counts.answered)
        quiet_since = counts.last_answer or self._started
        limit = STALL_SECONDS if counts.answered else FIRST_DELIVERY_SECONDS
        if counts.clock - quiet_since > limit:
            raise CannotMeasure(f"no delivery for {limit:g} s:\n{self._subject.last_words()}")
        return _Look(counts.clock, counts.answered, counts.last_answer, cpu_seconds)
