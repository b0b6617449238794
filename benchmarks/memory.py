"""The worker's memory with few and with many records waiting."""

from __future__ import annotations

from statistics import median

from benchmarks import subjects
from benchmarks.brokers import Brokers
from benchmarks.measure import measure
from benchmarks.processes import Child

BACKLOGS = (1_000, 100_000, 1_000_000)
EMBEDDED_BACKLOGS = (1_000, 80_000)
LATENCY_MS = 5.0
DELIVERIES = 100_000
# Until then the worker's memory still grows by what it uses for the first time.
SETTLED = 10_000
_ROW = "{:>12}{:>14}{:>14}{:>12}"


def compare_memory(brokers: Brokers, backlogs: tuple[int, ...], in_flight: int) -> None:
    """Print the worker's memory for each backlog, which stays that long all the time."""
    print(f"Resident memory while {DELIVERIES:,} records are delivered, {LATENCY_MS:g} ms each:")
    print(_ROW.format("waiting", "median MiB", "at the end", "peak MiB"))
    for backlog in backlogs:
        samples: list[float] = []
        with brokers.topic() as topic:
            topic.fill(backlog)

            def look(subject: Child, answered: int) -> None:
                topic.fill(answered + backlog)  # noqa: B023 - called before the loop goes on
                if answered >= SETTLED:
                    samples.append(subject.rss_mib())  # noqa: B023 - as above

            result = measure(
                subjects.relay,
                brokers,
                topic,
                latency_ms=LATENCY_MS,
                in_flight=in_flight,
                seconds=300.0,
                records=DELIVERIES,
                during=look,
            )
        print(
            _ROW.format(
                f"{backlog:,}",
                f"{median(samples):.1f}",
                f"{samples[-1]:.1f}",
                f"{result.peak_rss_mib:.1f}",
            ),
            flush=True,
        )
