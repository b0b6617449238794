"""Where the intake stands still: each step between Kafka and the streams is seen to move.

Faust, mode and aiokafka end tasks of theirs without a word, and wait for ever for one that ended.
What they wait for is theirs; that records flow, positions are known and fetches are answered can be
seen from outside, whatever the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from faust.types import TP


@dataclass(frozen=True, slots=True)
class Intake:
    """The intake as it is at one moment.

    Attributes:
        generation: Of the group.
        troubles: Errors that were logged and after which it tries again, so far.
        flowing: Whether records may be fetched.
        rounds: How often the loop that fetches came round.
        handing_out: Whether that loop waits for the streams to take records.
        commits: How often it came to a commit, whether there was something to commit or not.
        fetches: As ``RelayConsumerThread.fetches`` returns them.
        ready: The partitions whose progress is kept.
    """

    generation: int
    troubles: int
    flowing: bool
    rounds: int
    handing_out: bool
    commits: int
    fetches: Mapping[TP, object] | None
    ready: Collection[TP]


def standstill(before: Intake, now: Intake) -> str | None:
    """Return what did not move between two moments some seconds apart, or ``None``.

    Once it means nothing: in a rebalance, and while Kafka does not answer, all of it stands still.
    A new generation, and an error that is tried again, count as movement.
    """
    if (now.generation, now.troubles) != (before.generation, before.troubles):
        return None
    if now.fetches is None:
        return "no assignment"
    lost = [tp for tp, mark in now.fetches.items() if mark is None or tp not in now.ready]
    unasked = [tp for tp, mark in now.fetches.items() if mark == (before.fetches or {}).get(tp)]
    steps = (
        (not now.flowing, "flow is suspended"),
        (lost, f"no position of {_names(lost)}"),
        (now.commits == before.commits, "nothing is committed"),
        (now.rounds == before.rounds and not now.handing_out, "nothing is fetched"),
        (unasked, f"no answer to a fetch of {_names(unasked)}"),
    )
    return next((fault for stands, fault in steps if stands), None)


def _names(partitions: Collection[TP]) -> str:
    return ", ".join(sorted(f"{tp.topic}-{tp.partition}" for tp in partitions))
