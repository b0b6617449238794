"""The contract of every fallback store: memory, SQLite and PostgreSQL."""

import asyncio
from datetime import timedelta

import pytest

from order_relay.fallback.store import Claim, FallbackStats, Outcome, Position, RowFilter, Status
from tests.integration.publishing.conftest import Table
from tests.support.publish_fakes import START, acked, gave_up, message, retried


def ids(claim: Claim) -> list[int]:
    """The rows of a claim."""
    return [row.id for row in claim.rows]


async def test_a_row_comes_back_exactly(table: Table) -> None:
    """Any bytes, nulls, duplicate headers and the partition survive; the rest has defaults."""
    key, payload = b"\xff\x00k", b"\\x41 \xc3\x28"
    headers = (("event-id", b"7"), ("a", None), ("a", b""), ("n", b"\x00\x00\x00\x07"))
    saved = await table.store.save(
        message(payload, key, headers=headers, partition=2, error_message="no\0", max_retry=5)
    )
    (row,) = await table.store.find(RowFilter())
    assert row.id == saved
    assert (row.topic, row.key, row.payload, row.headers) == ("orders", key, payload, headers)
    assert (row.partition, row.max_retry, row.retry_count) == (2, 5, 0)
    assert row.status is Status.PENDING
    assert row.next_retry_at == row.created_at == row.updated_at == START
    assert (row.published_at, row.lease_token, row.lease_until) == (None, None, None)
    assert row.malformed is None
    assert (row.error_message or "").startswith("no")


@pytest.mark.parametrize("value", [None, b"", b"x" * 3_000_000, '{"größe":"\\u00e9😀"}'.encode()])
async def test_any_size_of_key_and_payload(table: Table, value: bytes | None) -> None:
    """Null, empty or megabytes, as payload and as key, which has an index."""
    await table.store.save(message(value, value))
    claim = await table.claim(1)
    assert claim.rows[0].payload == value
    assert claim.rows[0].key == value


async def test_a_clock_that_is_set_back(table: Table) -> None:
    """Rows saved or refused before are still due, and a dead worker's lease runs out."""
    table.clock.advance(3600)
    await table.save(b"1", b"2", b"3", b"4")
    claim = await table.claim(1, 1)
    later = table.clock() + timedelta(seconds=60)
    await table.store.settle(claim.token, [retried(claim.rows[0].id, 1, later, "no")])
    left = await table.claim(1)
    table.clock.advance(-3600)

    found = ids(await table.claim(10, 10))
    assert len(found) == 3
    assert not {*ids(left)} & {*found}
    table.clock.advance(100)
    assert (await table.store.stats()).oldest_pending_seconds == 100
    assert {*ids(left)} < {*ids(await table.claim(10, 10))}


async def test_a_lease_of_a_clock_that_is_set_back(table: Table) -> None:
    """A row that was saved before, and claimed by a worker that died while the clock was ahead."""
    await table.save(b"1")
    table.clock.advance(86_400)
    assert len(ids(await table.claim(1))) == 1
    table.clock.advance(-86_400)
    assert len(ids(await table.claim(10, 10))) == 1
    assert not ids(await table.claim(10, 10))


async def test_a_row_for_later(table: Table) -> None:
    """A row refused by a clock that is a little ahead waits for its time."""
    await table.store.save(message())
    claim = await table.claim(1, 10)
    later = table.clock() + timedelta(seconds=3600)
    await table.store.settle(claim.token, [retried(claim.rows[0].id, 1, later, "no")])
    table.clock.advance(-30)
    assert not ids(await table.claim(10, 10))


async def test_saves_at_once(table: Table) -> None:
    """Many tasks may save at once; each gets its own row's id."""
    saved = await asyncio.gather(
        *(table.store.save(message(b"%d" % n, b"%d" % n)) for n in range(450))
    )
    assert len(set(saved)) == 450
    rows = {row.id: row for row in await table.store.find(RowFilter(), limit=1000)}
    assert [rows[row_id].payload for row_id in saved] == [b"%d" % n for n in range(450)]


async def test_claims_are_leases(table: Table) -> None:
    """A claimed row stays claimed until it is settled or the lease runs out."""
    await table.store.save(message())
    first = await table.claim()
    assert ids(first) == [1]
    assert first.until == START + timedelta(seconds=60)
    assert first.rows[0].lease_token == first.token
    assert ids(await table.claim()) == []
    table.clock.advance(60)
    second = await table.claim()
    assert ids(second) == [1]
    assert await table.store.settle(first.token, [acked(1)]) == set()
    assert await table.store.renew(first.token, [1], 60) == set()
    assert await table.store.settle(second.token, [acked(1)]) == {1}
    assert await table.store.settle(second.token, [acked(1)]) == set()


async def test_renewed_leases_hold_on(table: Table) -> None:
    """A renewed lease counts from the renewal."""
    await table.save(*[None] * 2)
    claim = await table.claim()
    table.clock.advance(50)
    assert await table.store.renew(claim.token, [1, 99], 60) == {1}
    (renewed,) = await table.store.find(RowFilter(ids=[1]))
    assert renewed.updated_at == table.clock()
    table.clock.advance(20)
    assert ids(await table.claim()) == [2]


async def test_claims_that_share_a_lease(table: Table) -> None:
    """A claim may join the lease of an earlier one: one token renews and settles both."""
    await table.save(*[None] * 3)
    token = (await table.claim(1)).token
    joined = await table.claim(1, token=token)
    assert (joined.token, ids(joined)) == (token, [2])
    assert await table.store.renew(token, [1, 2, 3], 60) == {1, 2}
    assert await table.store.settle(token, [acked(1), Outcome(2), acked(3)]) == {1, 2}


async def test_every_outcome(table: Table) -> None:
    """Acknowledged, retried, given up, released: each row has the right state afterwards."""
    await table.save(*[None] * 4)
    claim = await table.claim()
    table.clock.advance(5)
    later = table.clock() + timedelta(minutes=2)
    outcomes: list[Outcome] = [
        acked(1), retried(2, 1, later, "re\0fused"), gave_up(3, 3, "néver"), Outcome(4),
    ]  # fmt: skip
    assert await table.store.settle(claim.token, outcomes) == {1, 2, 3, 4}
    one, two, three, four = await table.store.find(RowFilter())
    assert (one.status, one.published_at) == (Status.PUBLISHED, table.clock())
    assert (two.status, two.retry_count, two.next_retry_at) == (Status.PENDING, 1, later)
    assert (two.error_message or "").startswith("re")
    assert (three.status, three.retry_count) == (Status.FAILED, 3)
    assert (three.error_message, three.next_retry_at) == ("néver", START)
    assert (four.status, four.retry_count, four.next_retry_at) == (Status.PENDING, 0, START)
    for row in (one, two, three, four):
        assert (row.lease_token, row.lease_until) == (None, None)
        assert row.updated_at == table.clock()
    assert ids(await table.claim()) == [4]
    table.clock.advance(119)
    assert ids(await table.claim(100)) == [4]
    table.clock.advance(1)
    assert ids(await table.claim()) == [2]


async def test_a_key_is_claimed_in_order(table: Table) -> None:
    """Rows of a topic and key are claimed together, the earliest first."""
    for topic, key in (("a", b"1"), ("a", b"1"), ("b", b"1"), ("a", None), ("a", None)):
        await table.store.save(message(key=key, topic=topic))
    assert ids(await table.claim(1)) == [1]
    assert ids(await table.claim()) == [3, 4, 5]
    table.clock.advance(60)
    assert ids(await table.claim()) == [1, 2, 3, 4, 5]


async def test_an_earlier_unfinished_row_holds_back(table: Table) -> None:
    """A row waits while an earlier one of its key waits or is leased, but not if it FAILED."""
    await table.save(*[b"k"] * 3)
    claim = await table.claim(1)
    later = table.clock() + timedelta(minutes=1)
    await table.store.settle(claim.token, [retried(1, 1, later, "refused")])
    assert ids(await table.claim()) == []
    table.clock.advance(60)
    claim = await table.claim()
    assert ids(claim) == [1, 2, 3]
    await table.store.settle(claim.token, [gave_up(1, 2, "never"), Outcome(2), Outcome(3)])
    assert ids(await table.claim()) == [2, 3]


async def test_followers_end_where_one_is_not_due(table: Table) -> None:
    """A claim never skips a row of a key."""
    await table.save(*[b"k"] * 3)
    claim = await table.claim()
    later = table.clock() + timedelta(minutes=1)
    await table.store.settle(claim.token, [Outcome(1), retried(2, 1, later, "x"), Outcome(3)])
    assert ids(await table.claim()) == [1]


async def test_claims_go_on_where_the_last_ended(table: Table) -> None:
    """A pass of claims sees every due row once, the longest due first."""
    for number in range(7):
        await table.store.save(message(key=b"%d" % number))
        table.clock.advance(1)
    position: Position | None = None
    seen = []
    while True:
        claim = await table.claim(3, after=position)
        seen.append(ids(claim))
        await table.store.settle(claim.token, [Outcome(row.id) for row in claim.rows])
        position = claim.position
        if position is None:
            break
    assert seen == [[1, 2, 3], [4, 5, 6], [7]]


async def test_concurrent_claims_share(table: Table) -> None:
    """Concurrent claims never share a row, and together claim all rows."""
    for number in range(200):
        await table.store.save(message(key=b"%d" % (number % 150)))
    claims = await asyncio.gather(*(table.claim(30) for _ in range(10)))
    claimed = [row_id for claim in claims for row_id in ids(claim)]
    assert len(claimed) == len(set(claimed))
    while rest := ids(await table.claim(30)):
        claimed += rest
    # Rows whose key is in another claim follow when that is settled.
    assert set(range(1, 151)) <= set(claimed)


async def test_figures(table: Table) -> None:
    """Rows by status, and how long the oldest PENDING and the oldest FAILED one have waited."""
    assert await table.store.stats() == FallbackStats()
    await table.save(*[None] * 5)
    table.clock.advance(10)
    claim = await table.claim(3, 1)
    await table.store.settle(claim.token, [acked(1), acked(2), gave_up(3, 1, "x")])
    table.clock.advance(90)
    assert await table.store.stats() == FallbackStats(2, 2, 1, 100.0, 90.0)


async def test_purge_takes_old_published_rows_only(table: Table) -> None:
    """The oldest PUBLISHED rows go first, at most ``limit``; others stay."""
    await table.save(*[None] * 6)
    claim = await table.claim(5, 1)
    for row_id in (1, 2, 3):
        table.clock.advance(1)
        await table.store.settle(claim.token, [acked(row_id)])
    await table.store.settle(claim.token, [gave_up(4, 1, "x"), Outcome(5)])
    before = START + timedelta(seconds=3)
    assert await table.store.purge(published_before=before, limit=1) == 1
    assert [row.id for row in await table.store.find(RowFilter())] == [2, 3, 4, 5, 6]
    assert await table.store.purge(published_before=before, limit=100) == 1
    assert [row.id for row in await table.store.find(RowFilter())] == [3, 4, 5, 6]


async def test_requeue(table: Table) -> None:
    """FAILED rows become due with all retries again; others do not change."""
    await table.save(*[None] * 3)
    claim = await table.claim(2, 1)
    await table.store.settle(claim.token, [gave_up(1, 3, "x"), acked(2)])
    table.clock.advance(10)
    assert await table.store.requeue([1, 2, 3, 99]) == {1}
    row = (await table.store.find(RowFilter(ids=[1])))[0]
    assert (row.status, row.retry_count, row.error_message) == (Status.PENDING, 0, "x")
    assert row.next_retry_at == table.clock()


async def test_discard(table: Table) -> None:
    """FAILED rows and free PENDING ones can be deleted; published and leased ones cannot."""
    await table.save(*[None] * 4)
    claim = await table.claim(3)
    await table.store.settle(claim.token, [gave_up(1, 3, "x"), acked(2)])
    assert await table.store.discard([1, 2, 3, 4, 99]) == {1, 4}
    assert [row.id for row in await table.store.find(RowFilter())] == [2, 3]


async def test_discard_those_of_a_status(table: Table) -> None:
    """A row that another person has requeued meanwhile is left."""
    await table.save(None, None)
    claim = await table.claim(2)
    await table.store.settle(claim.token, [gave_up(1, 3, "x"), gave_up(2, 3, "x")])
    assert await table.store.requeue([1]) == {1}
    assert await table.store.discard([1, 2], Status.FAILED) == {2}
    assert await table.store.discard([1], Status.PENDING) == {1}


async def test_find_and_count(table: Table) -> None:
    """All conditions apply, and pages follow by id."""
    for number in range(5):
        await table.store.save(
            message(key=None, topic="odd" if number % 2 else "even", error_message=f"E{number}%")
        )
    claim = await table.claim(1)
    await table.store.settle(claim.token, [gave_up(1, 1, "Broker: Not_Enough 100% replicas")])
    store = table.store
    assert [row.id for row in await store.find(RowFilter(topic="even"), limit=2)] == [1, 3]
    assert [row.id for row in await store.find(RowFilter(topic="even"), after_id=3)] == [5]
    assert await store.count(RowFilter()) == 5
    assert await store.count(RowFilter(status=Status.FAILED)) == 1
    assert await store.count(RowFilter(status=Status.PENDING, topic="even")) == 2
    assert await store.count(RowFilter(ids=[1, 2, 77], status=Status.PENDING)) == 1
    assert await store.count(RowFilter(ids=[])) == 0
    assert await store.count(RowFilter(error_contains="not_enough 100%")) == 1
    assert await store.count(RowFilter(error_contains="e_%")) == 0
    for key in (b"7", b"SKU 4/7", b"\xff\x00"):
        row_id = await store.save(message(key=key))
        assert [row.id for row in await store.find(RowFilter(key=key))] == [row_id]
    assert await store.count(RowFilter(key=b"8")) == 0


async def test_empty_arguments_have_empty_results(table: Table) -> None:
    """Empty arguments have empty results."""
    assert await table.store.settle("nobody", []) == set()
    assert await table.store.renew("nobody", [], 60) == set()
    assert await table.store.requeue([]) == await table.store.discard([]) == set()
    assert await table.store.now() == START
