"""``python -m benchmarks.delivery``: the worker beside two plain loops, on the same records.

The topic is filled once; every run reads it from its beginning, with its own consumer group, sink
and process. Runs alternate (relay, unordered, relay, unordered, ...), so that other load on the
machine affects both of a pair.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

from benchmarks import brokers as where
from benchmarks import subjects
from benchmarks.brokers import EMBEDDED_MAX_RECORDS, Brokers, Topic
from benchmarks.processes import CannotMeasure, Child, Sink, run_benchmark
from benchmarks.subjects import Job, Start

# Before: connections, caches, and the first garbage collections.
WARM_UP_RECORDS = 2_000
WARM_UP_SECONDS = 3.0
POLL_SECONDS = 0.05
FIRST_DELIVERY_SECONDS = 60.0
STALL_SECONDS = 20.0
EMBEDDED = "embedded"
REAL_KAFKA = "real-kafka"
# Each subject is compared with the first.
LOOPS: dict[str, Start] = {
    "plain, unordered": subjects.unordered,
    "relay": subjects.relay,
    "plain, one at a time": subjects.one_at_a_time,
}
TABLES: dict[str, Start] = {
    "without table": subjects.relay_without_table,
    "table in memory": subjects.relay,
    "table in RocksDB": subjects.relay_with_rocksdb,
}
BACKLOGS = (1_000, 100_000, 1_000_000)
EMBEDDED_BACKLOGS = (1_000, 80_000)
MEMORY_LATENCY_MS = 5.0
MEMORY_DELIVERIES = 100_000
# Before, the worker's memory still grows by first uses.
MEMORY_SETTLED = 10_000


@dataclass(frozen=True, slots=True)
class Result:
    """The result of the steady part of a run.

    Attributes:
        records_per_second: Deliveries a second.
        cpu_us: CPU microseconds a delivery: user and system time of the process and its children.
        peak_rss_mib: The largest resident memory.
        repeated: Requests for an order that had arrived before.
    """

    records_per_second: float
    cpu_us: float
    peak_rss_mib: float
    repeated: int


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    answered: int
    last_answer: float
    cpu_seconds: float


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
    """Run one subject until the topic is delivered, or for ``seconds`` after its warm-up.

    Args:
        start: Starts the subject.
        brokers: Where the topic is.
        topic: The filled topic; it may grow during the run.
        latency_ms: The sink's time to answer.
        in_flight: Deliveries at a time.
        seconds: Longest measured part.
        records: Deliveries after which the run ends; all of the topic's by default.
        during: Called at every poll with the subject and the deliveries so far.

    Raises:
        CannotMeasure: The subject ended, or stopped delivering.
    """
    started = time.monotonic()
    first = begin = None
    with (
        Sink(latency_ms) as sink,
        start(Job(brokers, topic, sink, in_flight, topic.new_group())) as subject,
    ):
        while True:
            time.sleep(POLL_SECONDS)
            subject.check()
            counts = sink.counts()
            now = _Look(counts.clock, counts.answered, counts.last_answer, subject.cpu_seconds())
            during(subject, now.answered)
            limit = STALL_SECONDS if now.answered else FIRST_DELIVERY_SECONDS
            if now.at - (now.last_answer or started) > limit:
                raise CannotMeasure(f"no delivery for {limit:g} s:\n{subject.last_words()}")
            if not now.answered:
                continue
            first = first or now
            if now.answered >= WARM_UP_RECORDS or now.at - first.at >= WARM_UP_SECONDS:
                begin = begin or now
            at_end = now.answered >= (records or topic.records)
            if begin and begin is not now and (at_end or now.at - begin.at >= seconds):
                break
        delivered = now.answered - begin.answered
        return Result(
            delivered / ((now.last_answer if at_end else now.at) - begin.at),
            (now.cpu_seconds - begin.cpu_seconds) / delivered * 1e6,
            subject.peak_rss_mib(),
            counts.repeated,
        )


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse_options(arguments)

    def run() -> None:
        with _cluster(options.brokers) as brokers:
            if options.memory:
                backlogs = EMBEDDED_BACKLOGS if options.brokers == EMBEDDED else BACKLOGS
                compare_memory(brokers, backlogs, options.in_flight)
                return
            with brokers.topic() as topic:
                topic.fill(options.records)
                for latency_ms in options.latency_ms:
                    _compare(options, brokers, topic, latency_ms)

    return run_benchmark("delivery", run)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options; ends the process with status 2 and one line when one is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.delivery",
        description="Measure the worker against a sink of a given latency, beside two plain "
        "loops of aiokafka and aiohttp. docs/explanation/performance.md says how to read "
        "the result.",
    )
    add, instead = parser.add_argument, parser.add_mutually_exclusive_group()
    where_ = parser.add_mutually_exclusive_group()
    add("--latency-ms", type=_latencies, default=(0.0, 5.0, 20.0, 100.0), metavar="MS,MS...",
        help="how long the sink takes to answer (default 0,5,20,100)")  # fmt: skip
    add("--records", type=int, metavar="N",
        default=EMBEDDED_MAX_RECORDS, help="records in the topic; a run that delivers all of them "
        f"ends (default {EMBEDDED_MAX_RECORDS:,})")  # fmt: skip
    add("--in-flight", type=int, default=256, metavar="N",
        help="deliveries at a time (default 256)")  # fmt: skip
    add("--repeat", type=int, default=3, metavar="N",
        help="runs of each for each latency; medians are shown (default 3)")  # fmt: skip
    add("--seconds", type=float, default=10.0, metavar="S",
        help="longest measured part of a run (default 10)")  # fmt: skip
    where_.add_argument("--brokers", default=EMBEDDED, metavar="embedded|SERVERS",
        help="librdkafka's embedded cluster (default), or the bootstrap servers of a cluster; "
        "topics are made there and removed again")  # fmt: skip
    where_.add_argument("--real-kafka", action="store_const", const=REAL_KAFKA, dest="brokers",
        help="start three brokers of Apache Kafka (needs Java 17 and Maven)")  # fmt: skip
    instead.add_argument("--table", action="store_true",
        help="compare the worker with its table of orders in memory, in RocksDB, and without it"
    )  # fmt: skip
    instead.add_argument("--memory", action="store_true",
        help="show the worker's memory with few and with many records waiting, nothing else"
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        parser.error("needs Linux: processor time and memory are read from /proc")
    if options.records < 2 * WARM_UP_RECORDS:
        parser.error(f"--records: must be {2 * WARM_UP_RECORDS:,} or more")
    if options.brokers == EMBEDDED and options.records > EMBEDDED_MAX_RECORDS:
        parser.error(
            f"--records: the embedded cluster keeps no more than {EMBEDDED_MAX_RECORDS:,}; "
            "for more give --brokers SERVERS or --real-kafka"
        )
    return options


def _latencies(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _cluster(name: str) -> AbstractContextManager[Brokers]:
    if name == EMBEDDED:
        return where.embedded()
    return where.real_kafka() if name == REAL_KAFKA else where.given(name)


def _compare(
    options: argparse.Namespace, brokers: Brokers, topic: Topic, latency_ms: float
) -> None:
    print(f"\nSink answers after {latency_ms:g} ms, {options.in_flight} in flight:", flush=True)
    compared = TABLES if options.table else LOOPS
    results: dict[str, list[Result]] = {name: [] for name in compared}
    for _ in range(options.repeat):
        for name, start in compared.items():
            result = measure(
                start,
                brokers,
                topic,
                latency_ms=latency_ms,
                in_flight=options.in_flight,
                seconds=options.seconds,
            )
            results[name].append(result)
    print(comparison(results), flush=True)


def comparison(results: Mapping[str, Sequence[Result]]) -> str:
    """The table of one latency: medians, and medians of the ratios to the first, pair by pair."""
    row = "{:<24}{:>12}{:>15}{:>14}{:>15}{:>12}{:>12}"
    heads = ("records/s", "to the first", "CPU us/rec", "to the first", "peak MiB", "repeated")
    lines = [row.format("", *heads)]
    first = next(iter(results.values()))
    for name, runs in results.items():
        pairs = list(zip(runs, first, strict=True))
        speed = median(a.records_per_second / b.records_per_second for a, b in pairs)
        cpu = median(a.cpu_us / b.cpu_us for a, b in pairs)
        lines.append(
            row.format(
                name,
                f"{median(one.records_per_second for one in runs):,.0f}",
                "" if runs is first else f"x {speed:.2f}",
                f"{median(one.cpu_us for one in runs):.0f}",
                "" if runs is first else f"x {cpu:.2f}",
                f"{max(one.peak_rss_mib for one in runs):.0f}",
                sum(one.repeated for one in runs),
            )
        )
    return "\n".join(lines)


def compare_memory(brokers: Brokers, backlogs: tuple[int, ...], in_flight: int) -> None:
    """Print the worker's memory for each backlog, which is kept at that length."""
    print(
        f"Resident memory while {MEMORY_DELIVERIES:,} records are delivered, "
        f"{MEMORY_LATENCY_MS:g} ms each:"
    )
    row = "{:>12}{:>14}{:>14}{:>12}"
    print(row.format("waiting", "median MiB", "at the end", "peak MiB"))
    for backlog in backlogs:
        samples: list[float] = []
        with brokers.topic() as topic:
            topic.fill(backlog)

            def look(subject: Child, answered: int) -> None:
                topic.fill(answered + backlog)  # noqa: B023 - called before the loop goes on
                if answered >= MEMORY_SETTLED:
                    samples.append(subject.rss_mib())  # noqa: B023 - as above

            result = measure(
                subjects.relay,
                brokers,
                topic,
                latency_ms=MEMORY_LATENCY_MS,
                in_flight=in_flight,
                seconds=300.0,
                records=MEMORY_DELIVERIES,
                during=look,
            )
        figures = (median(samples), samples[-1], result.peak_rss_mib)
        print(row.format(f"{backlog:,}", *(f"{one:.1f}" for one in figures)), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
