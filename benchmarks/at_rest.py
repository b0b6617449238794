"""``python -m benchmarks.at_rest``: the cost of a nearly idle worker, and its start time.

One broker of Apache Kafka, one worker as it ships, a sink that answers at once.
docs/explanation/performance.md says how to read the result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

from confluent_kafka import Producer

from benchmarks import subjects
from benchmarks.brokers import Brokers, Topic, order
from benchmarks.one_broker import one_broker
from benchmarks.processes import CannotMeasure, Child, Sink, SinkCounts, run_benchmark
from benchmarks.subjects import Job

IN_FLIGHT = 256
STARTS = 5
START_SECONDS = 60.0
# Connections, caches, and the first garbage collections.
SETTLE_SECONDS = 5.0
# The imports of `faust -A app` at its start.
IMPORTS = """
import time
begin = time.perf_counter()
import faust.cli.faust, app
app.app
print(time.perf_counter() - begin)
"""

Result = TypeVar("Result")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.at_rest",
        description="Measure an idle worker, one with a few records a second, and its start.",
        allow_abbrev=False,
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measured part (30)")
    parser.add_argument("--rate", type=int, default=50, help="records a second (50)")
    options = parser.parse_args(arguments)

    def run() -> None:
        print("\n| | |\n|---|---|", flush=True)
        with one_broker() as brokers:
            rows = (*_starts(brokers), *_worker(brokers, options.rate, options.seconds))
            for name, value in rows:
                print(f"| {name} | {value} |", flush=True)

    return run_benchmark("at_rest", run)


def _starts(brokers: Brokers) -> list[tuple[str, str]]:
    """Time from start to the first delivery of an existing record; each run has a new group."""
    deliveries, imports = [], []
    with brokers.topic() as topic:
        topic.fill(1)
        for _ in range(STARTS):
            with Sink(0) as sink:
                begin = time.monotonic()
                with subjects.relay(Job(brokers, topic, sink, IN_FLIGHT, topic.new_group())) as one:
                    deliveries.append(_wait_for(1, one, sink).last_arrival - begin)
            with (
                tempfile.TemporaryDirectory() as folder,
                Child(["-c", IMPORTS], folder=Path(folder)) as importing,
            ):
                imports.append(float(importing.first_line()))
    return [
        ("start to first delivery", f"{median(deliveries):.2f} s"),
        ("of which imports", f"{median(imports):.2f} s"),
    ]


def _worker(brokers: Brokers, rate: int, seconds: float) -> list[tuple[str, str]]:
    with brokers.topic() as topic, Sink(0) as sink:
        topic.fill(1)
        with subjects.relay(Job(brokers, topic, sink, IN_FLIGHT, topic.new_group())) as worker:
            _wait_for(1, worker, sink)
            time.sleep(SETTLE_SECONDS)
            idle, _ = _cpu_percent(worker, lambda: time.sleep(seconds))
            busy, published = _cpu_percent(worker, lambda: _publish(brokers, topic, rate, seconds))
            _wait_for(len(published) + 1, worker, sink)
            arrivals = sink.arrivals()
    delays = quantiles((arrivals[order] - at for order, at in published.items()), n=100)
    return [
        ("CPU, idle", f"{idle:.1f} % of a core"),
        (f"CPU at {rate} records/s", f"{busy:.1f} % of a core"),
        (f"produce to arrival at {rate} records/s, median", f"{delays[49] * 1000:.1f} ms"),
        (
            f"produce to arrival at {rate} records/s, 99 of 100 within",
            f"{delays[98] * 1000:.1f} ms",
        ),
    ]


def _publish(brokers: Brokers, topic: Topic, rate: int, seconds: float) -> dict[int, float]:
    """Publish orders evenly; returns when each was given to the producer."""
    producer = Producer({"bootstrap.servers": brokers.servers, "linger.ms": 0, "log_level": 0})
    published = {}
    begin = time.monotonic()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, begin + number / rate - time.monotonic()))
        order_id = topic.records + 1 + number
        published[order_id] = time.monotonic()
        producer.produce(topic.name, order(order_id, order_id), str(order_id))
        producer.poll(0)
    if producer.flush(30):
        raise CannotMeasure("the broker did not take every record")
    return published


def _cpu_percent(worker: Child, during: Callable[[], Result]) -> tuple[float, Result]:
    begin, cpu_seconds = time.monotonic(), worker.cpu_seconds()
    result = during()
    spent = worker.cpu_seconds() - cpu_seconds
    return spent / (time.monotonic() - begin) * 100, result


def _wait_for(arrived: int, worker: Child, sink: Sink) -> SinkCounts:
    counts = sink.wait_for(arrived, worker, START_SECONDS)
    if counts.arrived < arrived:
        raise CannotMeasure(f"{counts.arrived} of {arrived} arrived:\n{worker.last_words()}")
    return counts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
