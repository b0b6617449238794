"""The command: runs the peers in turn and prints a table in Markdown.

One broker of Apache Kafka serves them all; each run has a topic, a sink and a process of its own.
docs/explanation/performance.md says how to read the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from benchmarks.brokers import Brokers
from benchmarks.one_broker import one_broker
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.installation import CannotSetUp, java_version
from benchmarks.peers.tables import kill_table, speed_table
from benchmarks.peers.trial import Killed, Speed, measure_kill, measure_speed
from benchmarks.processes import CannotMeasure, run_benchmark
from benchmarks.subjects import Start
from tests.support.kafka.distribution import kafka_version

LATENCIES_MS = (0.0, 20.0)
KILL_LATENCY_MS = 20.0
KILL_RECORDS = 20_000
IN_FLIGHT = 256

Result = TypeVar("Result")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parser().parse_args(arguments)

    def run() -> None:
        print(f"Java {java_version()}, one broker of Apache Kafka {kafka_version()}\n", flush=True)
        peers = dict(_set_up(options.only))
        with one_broker() as brokers:
            table = _kill if options.kill else _race
            print(table(peers, brokers, options))

    return run_benchmark("peers", run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Measure the relay beside others of its kind, on one broker of Apache Kafka. "
        "They are installed into ~/.cache/order-relay/peers first. "
        "docs/explanation/performance.md says how to read the result.",
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
    return parser


def _set_up(only: str) -> Iterator[tuple[Peer, Start]]:
    for peer in PEERS:
        if only.lower() not in peer.name.lower():
            continue
        try:
            yield peer, peer.set_up()
        except CannotSetUp as reason:
            print(f"not measured: {peer.name}: {reason}", flush=True)


def _race(peers: Mapping[Peer, Start], brokers: Brokers, options: argparse.Namespace) -> str:
    def measure(peer: Peer, start: Start, latency_ms: float) -> Speed:
        return measure_speed(
            start,
            brokers,
            records=_records(peer, latency_ms, options.records, options.seconds),
            latency_ms=latency_ms,
            in_flight=IN_FLIGHT,
        )

    return speed_table(
        {
            latency_ms: _in_turn(
                peers,
                options.repeat,
                lambda peer, start: measure(peer, start, latency_ms),  # noqa: B023 - called at once
            )
            for latency_ms in LATENCIES_MS
        }
    )


def _kill(peers: Mapping[Peer, Start], brokers: Brokers, options: argparse.Namespace) -> str:
    def measure(peer: Peer, start: Start) -> Killed:
        return measure_kill(
            start,
            brokers,
            records=_records(peer, KILL_LATENCY_MS, KILL_RECORDS, options.seconds),
            latency_ms=KILL_LATENCY_MS,
            in_flight=IN_FLIGHT,
        )

    return kill_table(_in_turn(peers, options.repeat, measure))


def _records(peer: Peer, latency_ms: float, at_most: int, seconds: float) -> int:
    """As many as the peer can deliver in twice the time; half of them are measured."""
    if not latency_ms:
        return at_most
    return min(at_most, int((peer.threads or IN_FLIGHT) / latency_ms * 1000 * 2 * seconds))


def _in_turn(
    peers: Mapping[Peer, Start], rounds: int, measure: Callable[[Peer, Start], Result]
) -> dict[Peer, list[Result]]:
    """Run each, and again, so that a neighbour's load falls on all of them."""
    results: dict[Peer, list[Result]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer, start in peers.items():
            try:
                result = measure(peer, start)
            except CannotMeasure as failure:
                print(f"{peer.name}: {failure}", file=sys.stderr, flush=True)
            else:
                print(f"{peer.name}: {result}", file=sys.stderr, flush=True)
                results[peer].append(result)
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
