"""The command: runs the peers in turn and prints a table in Markdown.

One broker of Apache Kafka serves them all; each run has its own topic, sink and process.
Every record must arrive, and the second half is measured.
docs/explanation/comparison.md says how to read the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.brokers import Brokers
from benchmarks.one_broker import one_broker
from benchmarks.peers.catalogue import PEERS, CannotSetUp, Peer, java_version
from benchmarks.processes import CannotMeasure, Sink, run_benchmark
from benchmarks.subjects import Job, Start
from tests.support.kafka.distribution import kafka_version

LATENCIES_MS = (0.0, 20.0)
KILL_LATENCY_MS = 20.0
KILL_RECORDS = 20_000
IN_FLIGHT = 256
# Few enough that a key's next record often comes while the last one is in flight.
KEYS = 5_000
# Longer than any peer's session time-out: after a kill, Kafka waits for it.
QUIET_SECONDS = 100.0


@dataclass(frozen=True, slots=True)
class Run:
    """The result of a run.

    Attributes:
        records_per_second: Arrivals a second in the second half; 0 with a kill, as ``cpu_us``.
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


Results = Mapping[Peer, Sequence[Run]]


def measure(start: Start, brokers: Brokers, records: int, latency_ms: float, *, kill: bool) -> Run:
    """Deliver ``records`` by one process; with ``kill``, it is killed halfway and restarted.

    Raises:
        CannotMeasure: It ended, or did not get through the first half.
    """
    with brokers.topic() as topic, Sink(latency_ms) as sink:
        topic.fill(records, KEYS)
        job = Job(brokers, topic, sink, IN_FLIGHT, topic.new_group())
        with start(job) as subject:
            begin = sink.wait_for(records // 2, subject, QUIET_SECONDS)
            if begin.arrived < records // 2:
                raise CannotMeasure(
                    f"only {begin.arrived} of {records} arrived:\n{subject.last_words()}"
                )
            cpu_seconds = subject.cpu_seconds()
            if kill:
                subject.kill()
            else:
                end = sink.wait_for(records, subject, QUIET_SECONDS)
                cpu_seconds = subject.cpu_seconds() - cpu_seconds
        if kill:
            with start(job) as successor:
                end = sink.wait_for(records, successor, QUIET_SECONDS)
    delivered = end.arrived - begin.arrived
    if not delivered and not kill:
        raise CannotMeasure("all had arrived before the measured half")
    return Run(
        0.0 if kill else delivered / (end.last_arrival - begin.clock),
        0.0 if kill else cpu_seconds / delivered * 1e6,
        records - end.arrived,
        end.repeated,
        end.reordered,
        end.overlapping,
    )


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)

    def run() -> None:
        print(f"Java {java_version()}, one broker of Apache Kafka {kafka_version()}\n", flush=True)
        starts: dict[Peer, Start] = {}
        for peer in PEERS:
            if options.only.lower() in peer.name.lower():
                try:
                    starts[peer] = peer.set_up()
                except CannotSetUp as reason:
                    print(f"not measured: {peer.name}: {reason}", flush=True)
        with one_broker() as brokers:
            if options.kill:
                print(kill_table(_in_turn(starts, brokers, options, KILL_LATENCY_MS)))
                return
            print(speed_table({ms: _in_turn(starts, brokers, options, ms) for ms in LATENCIES_MS}))

    return run_benchmark("peers", run)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Measure the relay beside others of its kind, on one broker of Apache Kafka. "
        "They are installed into ~/.cache/order-relay/peers first. "
        "docs/explanation/comparison.md says how to read the result.",
        allow_abbrev=False,
    )
    parser.add_argument("--repeat", type=int, default=3, help="rounds; medians are shown (3)")
    parser.add_argument(
        "--records", type=int, default=100_000, help="records of a run, half to warm up (100,000)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="fewer records for a peer that the sink's latency would keep longer than this (10)",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="peers with this in their name")
    parser.add_argument(
        "--kill",
        action="store_true",
        help="kill -9 each halfway instead, start it again, and count what is lost and repeated",
    )
    return parser.parse_args(arguments)


def _in_turn(
    starts: Mapping[Peer, Start], brokers: Brokers, options: argparse.Namespace, latency_ms: float
) -> dict[Peer, list[Run]]:
    """Run each in turn, repeatedly, so that other load affects all of them."""
    results: dict[Peer, list[Run]] = {peer: [] for peer in starts}
    for _ in range(options.repeat):
        for peer, start in starts.items():
            records = KILL_RECORDS if options.kill else options.records
            if latency_ms:  # enough for twice the time, as half is measured
                in_flight = peer.threads or IN_FLIGHT
                records = min(records, int(in_flight / latency_ms * 2000 * options.seconds))
            try:
                run = measure(start, brokers, records, latency_ms, kill=options.kill)
            except CannotMeasure as failure:
                print(f"{peer.name}: {failure}", file=sys.stderr, flush=True)
            else:
                print(f"{peer.name}: {run}", file=sys.stderr, flush=True)
                results[peer].append(run)
    return results


def speed_table(results: Mapping[float, Results]) -> str:
    """Records a second and processor time for each latency; order and loss over all runs."""
    heads = [f"{ms:g} ms: records/s | CPU us/record" for ms in results]
    lines = [
        f"| | version | {' | '.join(heads)} | order by key | lost | repeated |",
        f"|---|---|{'---|' * (2 * len(heads) + 3)}",
    ]
    for peer in next(iter(results.values())):
        cells = [peer.name, peer.version]
        runs: list[Run] = []
        for by_peer in results.values():
            its = by_peer[peer]
            runs += its
            if its:
                cells.append(f"{median(run.records_per_second for run in its):,.0f}")
                cells.append(f"{median(run.cpu_us for run in its):.0f}")
            else:
                cells += ["failed", ""]
        reordered = sum(run.reordered for run in runs)
        overlapping = sum(run.overlapping for run in runs)
        kept = not reordered and not overlapping
        cells += ["kept" if kept else f"{reordered:,} late, {overlapping:,} at once"]
        cells += [f"{sum(run.lost for run in runs):,}", f"{sum(run.repeated for run in runs):,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kill_table(results: Results) -> str:
    """The results of each kill."""
    lines = ["| | version | kills | lost | repeated |", "|---|---|---|---|---|"]
    for peer, runs in results.items():
        lost = " / ".join(f"{run.lost:,}" for run in runs)
        repeated = " / ".join(f"{run.repeated:,}" for run in runs)
        lines.append(f"| {peer.name} | {peer.version} | {len(runs)} | {lost} | {repeated} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
