"""``python -m benchmarks.delivery``: the worker beside two plain loops, on the same records.

The topic is filled once; every run reads it from its beginning, as a consumer group of its own,
against a sink of its own, in a process of its own. Runs alternate (relay, unordered, relay,
unordered, ...), so that a neighbour's load falls on both of a pair.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager

from benchmarks import brokers as where
from benchmarks import subjects
from benchmarks.brokers import Brokers, Topic
from benchmarks.measure import Result, measure
from benchmarks.memory import BACKLOGS, EMBEDDED_BACKLOGS, compare_memory
from benchmarks.options import EMBEDDED, REAL_KAFKA, Options, parse_options
from benchmarks.processes import CannotMeasure
from benchmarks.report import comparison, machine, table_comparison
from benchmarks.subjects import Start

TABLES: dict[str, Start] = {
    "without table": subjects.relay_without_table,
    "table in memory": subjects.relay,
    "table in RocksDB": subjects.relay_with_rocksdb,
}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, too
    print(machine(), flush=True)
    try:
        with _cluster(options.brokers) as brokers:
            if options.memory:
                backlogs = EMBEDDED_BACKLOGS if options.brokers == EMBEDDED else BACKLOGS
                compare_memory(brokers, backlogs, options.in_flight)
                return 0
            with brokers.topic() as topic:
                topic.fill(options.records)
                for latency_ms in options.latencies_ms:
                    _compare(options, brokers, topic, latency_ms)
    except CannotMeasure as failure:
        print(f"benchmarks.delivery: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _cluster(name: str) -> AbstractContextManager[Brokers]:
    if name == EMBEDDED:
        return where.embedded()
    if name == REAL_KAFKA:
        return where.real_kafka()
    return where.given(name)


def _compare(options: Options, brokers: Brokers, topic: Topic, latency_ms: float) -> None:
    def run(start: Start) -> Result:
        return measure(
            start,
            brokers,
            topic,
            latency_ms=latency_ms,
            in_flight=options.in_flight,
            seconds=options.seconds,
        )

    print(f"\nSink answers after {latency_ms:g} ms, {options.in_flight} in flight:", flush=True)
    if options.table:
        results: dict[str, list[Result]] = {name: [] for name in TABLES}
        for _ in range(options.repeat):
            for name, start in TABLES.items():
                results[name].append(run(start))
        print(table_comparison(results), flush=True)
        return
    relay, unordered = [], []
    for _ in range(options.repeat):
        relay.append(run(subjects.relay))
        unordered.append(run(subjects.unordered))
    print(comparison(relay, unordered, run(subjects.one_at_a_time)), flush=True)
    print(f"repeated by the relay: {sum(result.repeated for result in relay)}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
