"""Whatever workers do: one lease a row, and the order of a key."""

import asyncio
from collections import defaultdict

from hypothesis import given

from order_relay.fallback.store import Status
from tests.support.memory_store import MemoryFallbackStore
from tests.support.publish_claims import Life, Step, steps
from tests.support.publish_fakes import Clock


@given(steps)
def test_claims_keep_the_rules(life: list[Step]) -> None:
    """No row is claimed while its lease holds, before its time, or past an unfinished one."""

    async def main() -> None:
        clock = Clock()
        store = MemoryFallbackStore(clock=clock)
        table = Life(store, clock)
        for step in life:
            before = dict(store.rows)
            claim = await table.play(step)
            if claim is None:
                continue
            taken = {row.id for row in claim.rows}
            for row_id in taken:
                row = before[row_id]
                assert row.status is Status.PENDING
                assert row.next_retry_at <= clock()
                assert row.lease_until is None or row.lease_until <= clock()
                for other in before.values():
                    same = other.topic == row.topic and other.key == row.key is not None
                    if same and other.id < row_id and other.status is Status.PENDING:
                        assert other.id in taken
        _check_order(table)

    asyncio.run(main())


@given(steps)
def test_everything_due_is_claimed_in_the_end(life: list[Step]) -> None:
    """No life leaves a PENDING row that no worker ever gets: nothing blocks for ever."""

    async def main() -> None:
        clock = Clock()
        store = MemoryFallbackStore(clock=clock)
        table = Life(store, clock)
        for step in life:
            await table.play(step)
        clock.advance(3600)
        claim = await store.claim(limit=1000, lease_seconds=60)
        pending = {row.id for row in store.rows.values() if row.status is Status.PENDING}
        assert {row.id for row in claim.rows} == pending
        assert claim.position is None

    asyncio.run(main())


def _check_order(table: Life) -> None:
    """Rows of a key were acknowledged in order, but for those that a person sent back."""
    published = defaultdict(list)
    for row in table.acked:
        if row.key is not None and row.id not in table.requeued:
            published[row.key].append(row.id)
    for ids in published.values():
        assert ids == sorted(ids)
