"""Detects a stuck intake: each step between Kafka and the streams must make progress.

Tasks of Faust, mode and aiokafka can end without a log line, and others then wait for them for
ever. Whatever the reason, it shows: records do not flow, positions are unknown, or fetches are not
answered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from faust.types import TP


@dataclass(frozen=True, slots=True)
class Intake:
    """A snapshot of the intake.

    Attributes:
        generation: The group's generation.
        errors: The number of errors so far that were logged, and are retried.
        flowing: Whether records may be fetched.
        rounds: The number of rounds of the fetch loop.
        waiting_for_room: Whether the fetch loop waits for room in the streams.
        commits: The number of commits, including those without anything to commit.
        fetches: As ``RelayConsumerThread.fetches`` returns them.
        ready: The partitions whose progress is tracked.
    """

    generation: int
    errors: int
    flowing: bool
    rounds: int
    waiting_for_room: bool
    commits: int
    fetches: Mapping[TP, object] | None
    ready: Collection[TP]


def standstill(before: Intake, now: Intake) -> str | None:
    """Return what made no progress between two snapshots some seconds apart, or ``None``.

    One result alone means nothing: in a rebalance, and while Kafka does not answer, nothing makes
    progress. A new generation and a retried error count as progress.
    """
    if (now.generation, now.errors) != (before.generation, before.errors):
        return None
    if now.fetches is None:
        return "no assignment"
    lost = [tp for tp, mark in now.fetches.items() if mark is None or tp not in now.ready]
    unanswered = [tp for tp, mark in now.fetches.items() if mark == (before.fetches or {}).get(tp)]
    steps = (
        (not now.flowing, "flow is suspended"),
        (lost, f"no position of {_names(lost)}"),
        (now.commits == before.commits, "nothing is committed"),
        (now.rounds == before.rounds and not now.waiting_for_room, "nothing is fetched"),
        (unanswered, f"no answer to a fetch of {_names(unanswered)}"),
    )
    return next((fault for is_stuck, fault in steps if is_stuck), None)


def _names(partitions: Collection[TP]) -> str:
    return ", ".join(sorted(f"{tp.topic}-{tp.partition}" for tp in partitions))
