"""The shipped worker gets SIGTERM, and the next one continues; on real Kafka, see tests/kafka."""

from collections import Counter

import pytest

from tests.support.orders import event_ids, orders
from tests.support.sink import Answer, Fault, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e

GRACE_SECONDS = 5
# Time after the grace for leaving the group and closing connections.
TAIL_SECONDS = 15
# With the deliveries table, a worker would not repeat uncommitted deliveries.
COMMITS_ALONE = {"deliveries_store": "off"}


async def test_sigterm_lets_deliveries_end_and_commits_them(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """MAX_IN_FLIGHT deliveries end within the grace and are committed: none is repeated."""
    sink.script = lambda request: Answer(delay_seconds=1.0)
    published = await stage.publish(orders(40, keys=20))
    new = new_worker(max_in_flight=10, shutdown_grace_seconds=GRACE_SECONDS * 4)
    async with new.in_new_interpreter() as worker:
        await sink.wait_for(lambda s: s.open_requests == 10, timeout=60)
        begun = {request.idempotency_key for request in sink.requests}
        worker.sigterm()
        assert await worker.wait(GRACE_SECONDS * 4 + TAIL_SECONDS) == 0
        assert "Traceback" not in worker.log_text()
    assert sink.most_open_requests == 10
    # Everything that it had begun was finished.
    assert begun <= set(sink.accepted_keys)
    assert len(sink.requests) == len(sink.accepted)
    first_worker = len(sink.accepted)

    sink.script = lambda request: Answer()
    async with new_worker(name="second", **COMMITS_ALONE) as second:
        await second.wait_ready()
        await sink.wait_for(lambda s: set(s.accepted_keys) >= set(event_ids(published)), timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        assert await second.stop() == 0
    assert first_worker > 0
    assert Counter(sink.accepted_keys) == Counter(event_ids(published))


async def test_sigterm_gives_up_what_the_grace_does_not_suffice_for(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """A delivery that outlasts the grace stays unfinished; the next worker delivers it."""
    sink.script = lambda request: Answer(fault=Fault.HANG if request.order_id == 3 else None)
    published = await stage.publish(orders(30))
    slow = published[2]
    async with new_worker(external_logger_timeout_seconds=60, shutdown_grace_seconds=1) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(published) - 1, timeout=60)
        await sink.wait_for(lambda s: s.attempts(slow.event_id), timeout=10)
        worker.sigterm()
        assert await worker.wait(1 + TAIL_SECONDS) == 0
    assert not await stage.dead_letters()

    sink.script = lambda request: Answer()
    async with new_worker(name="second", **COMMITS_ALONE):
        await sink.wait_for(lambda s: slow.event_id in s.accepted_keys, timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
    # Commit metadata has what finished behind the slow one: it is not repeated.
    assert Counter(sink.accepted_keys) == Counter(event_ids(published))


async def test_sigterm_does_not_wait_for_an_outage_to_end(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """With the breaker open, the worker ends well before the end of its grace."""
    await sink.down()
    published = await stage.publish(orders(50))
    async with new_worker(
        breaker_failure_threshold=3, breaker_probe_interval_seconds=60, shutdown_grace_seconds=600
    ) as worker:
        await worker.wait_log("Breaker open")
        worker.sigterm()
        assert await worker.wait(TAIL_SECONDS) == 0
    assert not await stage.dead_letters()
    await sink.up()
    async with new_worker(name="second"):
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=60)
    assert sorted(sink.accepted_keys) == sorted(event_ids(published))


async def test_sigterm_does_not_wait_for_a_long_backoff(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """A retry in a minute, or a target that throttles, does not outlast the grace.

    Both are delivered later.
    """
    sink.script = lambda request: Answer(
        500 if request.order_id == 1 else 503, {"Retry-After": "60"}
    )
    published = await stage.publish(orders(1))
    async with new_worker(shutdown_grace_seconds=1) as worker:
        await worker.wait_log("Retrying message")
        published += await stage.publish(orders(1, first=2))
        await worker.wait_log("Target throttles")
        worker.sigterm()
        assert await worker.wait(1 + TAIL_SECONDS) == 0
    assert len(sink.requests) == len(published)
    assert not await stage.dead_letters()
    assert not any(c.offset for c in (await stage.committed()).values())
    sink.script = lambda request: Answer()
    async with new_worker(name="second"):
        await sink.wait_for(lambda s: set(s.accepted_keys) == set(event_ids(published)), timeout=60)
