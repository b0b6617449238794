"""``python -m benchmarks.scale_out``: throughput of one, two and three workers, and its limits.

Three brokers of Apache Kafka, a sink that answers after a fixed time, and workers of one group on a
filled topic. It measures from the moment when every worker has its share of the partitions.
docs/how-to/scaling.md says how to read the result.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from benchmarks import subjects
from benchmarks.brokers import Brokers, real_kafka
from benchmarks.processes import CannotMeasure, Sink, run_benchmark
from benchmarks.subjects import Job

# For connections, caches, and deliveries of the first worker while the others joined.
SETTLE_SECONDS = 2.0
SHARED_SECONDS = 90.0
LOOK_SECONDS = 0.2
# For deliveries before the measured part.
JOINING_SECONDS = 15.0
_ROW = "{:>10}{:>12}{:>12}{:>13}{:>12}{:>12}{:>12}"


@dataclass(frozen=True, slots=True)
class Series:
    """Runs that differ in one thing; the first is the baseline.

    Attributes:
        name: The name of the series.
        shapes: Workers and partitions of each run.
        latency_ms: The sink's time to answer.
        in_flight: MAX_IN_FLIGHT of each worker.
        keys: Keys of the records; ``None`` gives each its own.
        rate_at_most: The most records a second that a run may deliver; sets the size of the topic.
    """

    name: str
    shapes: tuple[tuple[int, int], ...]
    latency_ms: float
    in_flight: int
    rate_at_most: int
    keys: int | None = None


SERIES = (
    Series(
        "more workers; the sink's latency bounds each",
        ((1, 3), (2, 3), (3, 3)),
        latency_ms=100,
        in_flight=32,
        rate_at_most=1_000,
    ),
    Series(
        "three workers, more partitions",
        ((3, 1), (3, 2), (3, 3), (3, 6)),
        latency_ms=100,
        in_flight=32,
        rate_at_most=1_000,
    ),
    Series(
        "one worker, more in flight instead",
        ((1, 3), (2, 3), (3, 3)),
        latency_ms=100,
        in_flight=96,
        rate_at_most=3_000,
    ),
    Series(
        "ten keys only",
        ((1, 3), (2, 3), (3, 3)),
        latency_ms=20,
        in_flight=256,
        rate_at_most=600,
        keys=10,
    ),
    Series(
        "no latency: processors bound it",
        ((1, 3), (2, 3), (3, 3)),
        latency_ms=0,
        in_flight=256,
        rate_at_most=10_000,
    ),
)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of the measured part of a run, over all workers.

    Attributes:
        records_per_second: Deliveries a second.
        cpu_us: CPU microseconds a delivery.
        cores: Processors that the workers kept busy.
    """

    records_per_second: float
    cpu_us: float
    cores: float


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale_out",
        description="Measure one, two and three workers of a group beside each other, on three "
        "brokers of Apache Kafka. docs/how-to/scaling.md says how to read the result.",
        allow_abbrev=False,
    )
    parser.add_argument("--repeat", type=int, default=3, help="rounds; medians are shown (3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured part of a run (8)")
    parser.add_argument(
        "--series",
        type=int,
        choices=range(1, len(SERIES) + 1),
        help="only this one: "
        + "; ".join(f"{number} {series.name}" for number, series in enumerate(SERIES, 1)),
    )
    options = parser.parse_args(arguments)
    if options.repeat < 1 or not options.seconds >= 1:
        parser.error("--repeat and --seconds must be at least 1")
    chosen = SERIES if options.series is None else (SERIES[options.series - 1],)

    def run() -> None:
        with real_kafka() as brokers:
            for series in chosen:
                for line in _report(brokers, series, options.repeat, options.seconds):
                    print(line, flush=True)

    return run_benchmark("scale_out", run)


def _report(brokers: Brokers, series: Series, repeat: int, seconds: float) -> Iterator[str]:
    yield (
        f"\n{series.name}: {series.latency_ms:g} ms, {series.in_flight} in flight a worker"
        + (f", {series.keys} keys" if series.keys else "")
    )
    yield _ROW.format(
        "workers", "partitions", "records/s", "to the first", "CPU us/rec", "cores busy", "load"
    )
    results: dict[tuple[int, int], list[Result]] = {shape: [] for shape in series.shapes}
    load = []
    for _ in range(repeat):
        for shape in series.shapes:
            results[shape].append(_measure(brokers, series, shape, seconds))
            load.append(os.getloadavg()[0])
    first = results[series.shapes[0]]
    for shape, its in results.items():
        ratios = (
            a.records_per_second / b.records_per_second for a, b in zip(its, first, strict=True)
        )
        yield _ROW.format(
            *shape,
            f"{median(one.records_per_second for one in its):,.0f}",
            f"x {median(ratios):.2f}",
            f"{median(one.cpu_us for one in its):.0f}",
            f"{median(one.cores for one in its):.2f}",
            f"{median(load):.1f}",
        )


def _measure(brokers: Brokers, series: Series, shape: tuple[int, int], seconds: float) -> Result:
    workers, partitions = shape
    records = int(series.rate_at_most * (JOINING_SECONDS + SETTLE_SECONDS + seconds))
    with brokers.topic(partitions) as topic, Sink(series.latency_ms) as sink:
        topic.fill(records, series.keys)
        job = Job(brokers, topic, sink, series.in_flight, topic.new_group())
        with ExitStack() as stack:
            fleet = [stack.enter_context(subjects.relay(job)) for _ in range(workers)]
            _wait_until_shared(brokers, job.group, workers, partitions)
            time.sleep(SETTLE_SECONDS)
            begin, cpu = sink.counts(), sum(one.cpu_seconds() for one in fleet)
            time.sleep(seconds)
            end, cpu = sink.counts(), sum(one.cpu_seconds() for one in fleet) - cpu
            for one in fleet:
                one.check()
    if end.answered >= records * 0.98:
        raise CannotMeasure(f"{records} records were too few")
    delivered = end.answered - begin.answered
    if not delivered:
        raise CannotMeasure("nothing was delivered in the measured part")
    elapsed = end.clock - begin.clock
    return Result(delivered / elapsed, cpu / delivered * 1e6, cpu / elapsed)


def _wait_until_shared(brokers: Brokers, group: str, workers: int, partitions: int) -> None:
    """Wait until each worker has its share of the partitions, even none."""
    wanted = sorted(partitions // workers + (n < partitions % workers) for n in range(workers))
    deadline = time.monotonic() + SHARED_SECONDS
    while (shares := sorted(brokers.shares(group))) != wanted:
        if time.monotonic() > deadline:
            raise CannotMeasure(f"partitions are shared {shares}, not {wanted}")
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
