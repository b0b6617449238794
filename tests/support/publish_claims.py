"""Random operations on a fallback table by its workers, for property tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

from hypothesis import strategies as st

from order_relay.fallback.store import Claim, FallbackRow, Outcome, Status
from order_relay.fallback.table import FallbackTable
from tests.support.publish_fakes import Clock, acked, gave_up, message, retried

LEASE_SECONDS = 60


# A step, and its details:
#   ("save", key)                    a message of a key (None: without one) is saved
#   ("take", worker, limit, go_on)   a worker claims; maybe from its last claim's position
#   ("settle", worker, letters)      a worker settles its oldest claim, one letter a row:
#                                    a(ck), r(etry), g(ive up), free
#   ("renew", worker)                a worker renews its claims
#   ("requeue", row_id)              a person requeues a row
#   ("pass", seconds)                time passes
Step: TypeAlias = tuple[Any, ...]

_workers = st.integers(0, 2)


def _step(kind: str, *details: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(kind), *details)


steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        _step("save", st.sampled_from([b"a", b"a", b"b", b"\xff\0", None])),
        _step("save", st.sampled_from([b"a", b"b", b"c", None])),
        _step("take", _workers, st.integers(1, 5), st.booleans()),
        _step("settle", _workers, st.text("aarg.", min_size=1, max_size=5)),
        _step("renew", _workers),
        _step("requeue", st.integers(1, 10)),
        _step("pass", st.sampled_from([1, 30, 61, 130])),
    ),
    max_size=60,
)


@dataclass
class Life:
    """Plays steps on a store and remembers what each worker holds.

    Attributes:
        told: Everything the store answered, for comparing two stores.
        settled: Ids in the order in which they were acknowledged.
    """

    store: FallbackTable
    clock: Clock
    told: list[object] = field(default_factory=list)
    acked: list[FallbackRow] = field(default_factory=list)
    live: dict[int, list[Claim]] = field(default_factory=dict)
    requeued: set[int] = field(default_factory=set)

    async def play(self, step: Step) -> Claim | None:
        """Take one step; return the claim if it made one."""
        match step:
            case ("save", key):
                self.told.append(await self.store.save(message(key=key)))
            case ("pass", seconds):
                self.clock.advance(seconds)
            case ("requeue", row_id):
                requeued = await self.store.requeue([row_id])
                self.requeued |= requeued
                self.told.append(requeued)
            case ("renew", worker):
                for claim in self.live.get(worker, []):
                    ids = [row.id for row in claim.rows]
                    self.told.append(await self.store.renew(claim.token, ids, LEASE_SECONDS))
            case ("settle", worker, letters):
                await self._settle(worker, letters)
            case ("take", worker, limit, go_on):
                claims = self.live.setdefault(worker, [])
                after = claims[-1].position if claims and go_on else None
                claim = await self.store.claim(
                    limit=limit, lease_seconds=LEASE_SECONDS, after=after
                )
                claims.append(claim)
                self.told.append([row.id for row in claim.rows])
                self.told.append(claim.position)
                return claim
        return None

    async def _settle(self, worker: int, letters: str) -> None:
        claims = self.live.get(worker)
        if not claims:
            return
        claim = claims.pop(0)
        outcomes: list[Outcome] = []
        blocked: set[bytes] = set()
        # As a batch does it: a row that is not settled holds back those of its key.
        for row, letter in zip(claim.rows, letters * len(claim.rows), strict=False):
            if letter in "r." or row.key in blocked:
                if row.key is not None:
                    blocked.add(row.key)
                queued = letter != "r"
                later = self.clock() + timedelta(seconds=60)
                outcomes.append(
                    Outcome(row.id) if queued else retried(row.id, row.retry_count + 1, later, "no")
                )
            elif letter == "a":
                outcomes.append(acked(row.id))
            else:
                outcomes.append(gave_up(row.id, row.retry_count + 1, "never"))
        written = await self.store.settle(claim.token, outcomes)
        self.told.append(written)
        published = {one.row_id for one in outcomes if one.status is Status.PUBLISHED} & written
        self.acked += [row for row in claim.rows if row.id in published]
