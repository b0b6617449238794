"""Times of the console's questions to the index of a million open dead letters.

    python -m benchmarks.open_letters [--letters 1000000]

Prints the time to fill the index, the memory of the process, and the time of each query of a page.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.index import LetterIndex
from order_relay.dead_letters.letter import Letter

BATCH = 500
PARTITIONS = 3
BEGAN = 1_766_000_000
REASONS = ("rejected", "rejected", "retries_exhausted", "invalid_json")
WAITS_SECONDS = (300.0, 1800.0, 7200.0)


def letter(number: int) -> Letter:
    """Return a letter of one of four reasons, with one of a hundred messages."""
    failed_at = datetime.fromtimestamp(BEGAN + number / 100, UTC)
    message = f"no product {number} in shop {'abcdefghij'[number % 10] * 3}: {'x' * (number % 10)}"
    return Letter(
        "orders.DLQ",
        number % PARTITIONS,
        number // PARTITIONS,
        b"%d" % number,
        b'{"orderId":%d}' % number,
        (
            ("event-id", b"paid-%d" % number),
            ("kafka_dlt-exception-message", message.encode()),
            ("dlq-reason", REASONS[number % len(REASONS)].encode()),
            ("dlq-http-status", b"%d" % (400 + number % 5)),
            ("dlq-failed-at", failed_at.isoformat(timespec="milliseconds").encode()),
        ),
        BEGAN * 1000,
    )


def questions(index: LetterIndex, letters: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Return the queries of pages and auto-redrive."""
    everything = LetterFilter()
    last = (PARTITIONS - 1, letters // PARTITIONS - 60)
    since = datetime.fromtimestamp(BEGAN + letters / 100 - 60, UTC)
    found = LetterFilter(message="SHOP ccc")
    yield "figures by reason", index.by_reason
    yield "count of all", lambda: index.count(everything)
    yield "first page", lambda: index.find(everything, limit=50)
    yield "last page", lambda: index.find(everything, after=last, limit=50)
    yield "groups", lambda: index.groups(everything, limit=50)
    for name, wanted in (
        ("reason", LetterFilter(reason="invalid_json")),
        ("reason without letters", LetterFilter(reason="tombstone")),
        ("status", LetterFilter(http_status=404)),
        ("key", LetterFilter(key=str(letters - 1))),
        ("event id", LetterFilter(event_id=f"paid-{letters - 1}")),
        ("since", LetterFilter(since=since)),
        ("message", found),
        ("message without letters", LetterFilter(message="no such text")),
    ):
        yield f"count by {name}", lambda wanted=wanted: index.count(wanted)  # type: ignore[misc]
        yield f"page by {name}", lambda wanted=wanted: index.find(wanted, limit=50)  # type: ignore[misc]
    yield "groups by message", lambda: index.groups(found, limit=50)
    yield "due for automatic redriving", lambda: index.due(WAITS_SECONDS, time.time(), limit=1000)
    yield "one letter", lambda: index.is_open(0, 17)


def main() -> None:
    """Fill the index, and time the queries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--letters", type=int, default=1_000_000)
    letters = parser.parse_args().letters
    index = LetterIndex()
    before = memory_mib()
    began = time.perf_counter()
    for first in range(0, letters, BATCH):
        index.add([letter(number) for number in range(first, min(first + BATCH, letters))])
    seconds = time.perf_counter() - began
    print(f"{letters:,} letters in {seconds:.1f} s, {letters / seconds:,.0f}/s")
    for name, question in questions(index, letters):
        began = time.perf_counter()
        question()
        print(f"{name:32} {(time.perf_counter() - began) * 1000:10.1f} ms")
    print(f"memory: {before:.0f} MiB before, {memory_mib():.0f} MiB at most")
    index.close()


def memory_mib() -> float:
    """Return the largest resident memory of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
