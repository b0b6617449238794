"""What the user asks of the benchmark."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from benchmarks.brokers import EMBEDDED_MAX_RECORDS
from benchmarks.measure import WARM_UP_RECORDS

EMBEDDED = "embedded"
REAL_KAFKA = "real-kafka"
LATENCIES_MS = (0.0, 5.0, 20.0, 100.0)


@dataclass(frozen=True, slots=True)
class Options:
    """How the benchmark is to run.

    Attributes:
        latencies_ms: How long the sink takes to answer, one comparison each.
        records: Records in the topic.
        in_flight: Deliveries at a time, of the relay and of the unordered loop.
        brokers: ``embedded``, ``real-kafka``, or bootstrap servers.
        repeat: Pairs of runs for each latency.
        seconds: Longest measured part of a run.
        memory: Compare memory under different backlogs instead.
        table: Compare the worker with and without the table of orders instead.
    """

    latencies_ms: tuple[float, ...]
    records: int
    in_flight: int
    brokers: str
    repeat: int
    seconds: float
    memory: bool
    table: bool


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is there for ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"benchmarks.delivery: {message.removeprefix('argument ')}\n")


def parse_options(arguments: Sequence[str]) -> Options:
    """Read the options; ends the process with status 2 and one line when one is wrong."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        parser.error("needs Linux: processor time and memory are read from /proc")
    brokers = REAL_KAFKA if given.real_kafka else given.brokers
    if brokers == EMBEDDED and given.records > EMBEDDED_MAX_RECORDS:
        parser.error(
            f"--records: the embedded cluster keeps no more than {EMBEDDED_MAX_RECORDS:,}; "
            "for more give --brokers SERVERS or --real-kafka"
        )
    return Options(
        latencies_ms=given.latency_ms,
        records=given.records,
        in_flight=given.in_flight,
        brokers=brokers,
        repeat=given.repeat,
        seconds=given.seconds,
        memory=given.memory,
        table=given.table,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="python -m benchmarks.delivery",
        description="Measure the worker against a sink of a given latency, beside two plain "
        "loops of aiokafka and aiohttp. docs/explanation/performance.md says how to read "
        "the result.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--latency-ms",
        type=_latencies,
        default=LATENCIES_MS,
        metavar="MS,MS...",
        help="how long the sink takes to answer (default 0,5,20,100)",
    )
    parser.add_argument(
        "--records",
        type=_whole(2 * WARM_UP_RECORDS, 10_000_000),
        default=EMBEDDED_MAX_RECORDS,
        metavar="N",
        help=f"records in the topic; a run that delivers all of them ends (default "
        f"{EMBEDDED_MAX_RECORDS:,})",
    )
    parser.add_argument(
        "--in-flight",
        type=_whole(1, 10_000),
        default=256,
        metavar="N",
        help="deliveries at a time (default 256)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--brokers",
        default=EMBEDDED,
        metavar="embedded|SERVERS",
        help="librdkafka's embedded cluster (default), or the bootstrap servers of a cluster; "
        "topics are made there and removed again",
    )
    where.add_argument(
        "--real-kafka",
        action="store_true",
        help="start three brokers of Apache Kafka (needs Java 17 and Maven)",
    )
    parser.add_argument(
        "--repeat",
        type=_whole(1, 100),
        default=3,
        metavar="N",
        help="pairs of runs for each latency; medians are shown (default 3)",
    )
    parser.add_argument(
        "--seconds",
        type=_number(1, 600),
        default=10.0,
        metavar="S",
        help="longest measured part of a run (default 10)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--table",
        action="store_true",
        help="compare the worker with its table of orders in memory, in RocksDB, and without it",
    )
    instead.add_argument(
        "--memory",
        action="store_true",
        help="show the worker's memory with few and with many records waiting, nothing else",
    )
    return parser


def _latencies(text: str) -> tuple[float, ...]:
    return tuple(_number(0, 10_000)(part.strip()) for part in text.split(","))


class _whole:  # noqa: N801 - reads as the argparse type it is
    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and self._low <= int(text) <= self._high):
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {self._low:,} to {self._high:,}, not {text[:40]!r}"
            )
        return int(text)


class _number:  # noqa: N801 - reads as the argparse type it is
    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not self._low <= number <= self._high:  # not-a-number fails this as well
            raise argparse.ArgumentTypeError(
                f"must be a number from {self._low:g} to {self._high:g}, not {text[:40]!r}"
            )
        return number
