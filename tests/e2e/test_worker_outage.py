"""The shipped worker during outages of the external logger, and of Kafka."""

from dataclasses import replace
from pathlib import Path

import pytest

from order_relay.delivery.dispatcher import MAX_READ_AHEAD
from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import event_ids, orders
from tests.support.raw_server import Peer, RawServer
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker, WorkerProcess

pytestmark = pytest.mark.e2e

REBALANCE = "Setting newly assigned partitions"
BREAKER_STATE = "order_relay_breaker_state"
OPEN = 2.0
REFUSED = 'order_relay_delivery_attempts_total{result="retryable",status="connect"}'
"""Attempts for which there was no connection."""


async def test_an_outage_dead_letters_nothing_and_keeps_the_membership(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """The breaker opens; intake waits, and the worker stays in its group; then all is delivered."""
    before = await stage.publish(orders(100, keys=10))
    async with new_worker(
        breaker_failure_threshold=5, max_in_flight=8, consumer_retry_max_attempts=3
    ) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == len(before), timeout=60)
        await worker.wait_ready()
        await sink.down()
        during = await stage.publish(orders(MAX_READ_AHEAD + 1000, first=1000))
        await worker.wait_metric(BREAKER_STATE, lambda state: state == OPEN, 30)
        # Several probes fail, each after a longer wait.
        attempts = (await worker.metrics())[REFUSED]
        await worker.wait_metric(REFUSED, lambda now: now >= attempts + 3, 30)
        # Nothing but a probe.
        await worker.wait_metric("order_relay_in_flight", lambda now: now <= 1, 30)
        metrics = await worker.metrics()
        # Intake has stopped: records of attempts and probes are held, the rest stays in Kafka.
        assert 0 < metrics["order_relay_held_records"] < MAX_READ_AHEAD + 50
        assert metrics["order_relay_oldest_unfinished_seconds"] > 0
        assert await worker.ready()
        assert await worker.live()
        # An order that waits in Kafka is never reported as unknown.
        last = {one.partition: (one.key or b"").decode() for one in during}
        answers = [await worker.get(f"/orders/{order_id}") for order_id in last.values()]
        told = {answer[0]: answer[1] for answer in answers if answer is not None}
        assert told.keys() <= {200, 503}
        assert "is not seen yet, " in told[503]

        await sink.up()
        await sink.wait_for(lambda s: len(s.accepted) >= len(before) + len(during), timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        assert (await worker.metrics())[BREAKER_STATE] == 0
        assert await worker.stop() == 0
    assert sorted(sink.accepted_keys) == sorted(event_ids([*before, *during]))
    assert not await stage.dead_letters()
    assert len(worker.log_lines(REBALANCE)) == 1
    assert worker.log_lines("Breaker open")
    assert worker.log_lines("Breaker closed")
    for requests in sink.by_key().values():
        ids = [request.order_id or 0 for request in requests]
        assert ids == sorted(ids)


async def test_wrong_credentials_are_an_outage(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """401, 403 and a redirect open the breaker, and never count against a message."""
    published = await stage.publish(orders(30))
    refusals = [Answer(401), Answer(403), Answer(307, {"Location": "http://127.0.0.1:1/"})]
    sink.script = lambda request: refusals[len(sink.requests) % 3]
    async with new_worker(
        breaker_failure_threshold=3,
        breaker_probe_interval_seconds=0.1,
        consumer_retry_max_attempts=0,
        external_logger_token="a-token-of-ours",
    ) as worker:
        await worker.wait_log("Breaker open")
        # More than were in flight when it opened: a few probes fail, too.
        await sink.wait_for(lambda s: len(s.requests) >= 9, timeout=30)
        sink.script = lambda request: Answer()
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
    assert not await stage.dead_letters()
    assert "a-token-of-ours" not in worker.log_text()
    assert {request.headers["authorization"] for request in sink.requests} == {
        "Bearer a-token-of-ours"
    }


async def test_brokers_that_come_back_under_other_addresses(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """When no known broker answers, the worker asks the bootstrap servers again."""
    stage = fragile.stage()
    first = await stage.publish(orders(30))
    kafka = fragile

    async def load_balancer(peer: Peer) -> None:
        await peer.pass_on(int(kafka.bootstrap_servers.partition(",")[0].rpartition(":")[2]))

    async with RawServer(load_balancer) as door:
        fronted = replace(stage, bootstrap_servers=f"{LOOPBACK}:{door.port}")
        async with WorkerProcess(tmp_path, fronted, sink.url) as worker:
            await sink.wait_for(lambda s: len(s.accepted) == len(first), timeout=60)
            await worker.wait_ready()
            with EmbeddedKafka() as elsewhere:
                for topic in (stage.topic, stage.dlq_topic):
                    elsewhere.create_topic(topic)
                kafka = elsewhere
                fragile.close()
                moved = replace(stage, bootstrap_servers=elsewhere.bootstrap_servers)
                second = await moved.publish(orders(30, first=1000))
                await sink.wait_for(
                    lambda s: set(event_ids(second)) <= set(s.accepted_keys), timeout=90
                )
                await eventually(moved.all_committed, 60, "everything is committed")
                await worker.wait_ready()

                async def intake_moves() -> bool:
                    answer = await worker.get("/health/live")
                    return answer is not None and answer[0] == 200 and "intake" not in answer[1]

                await worker.wait_until(intake_moves, 60, "to say that its intake moves")
                await worker.wait_log("No known broker answered, the bootstrap servers named")
                assert await worker.stop() == 0
