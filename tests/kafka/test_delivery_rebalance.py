"""A second worker joins and leaves under load, again and again."""

import time
from pathlib import Path

from tests.kafka.scene import MAX_IN_FLIGHT, Scene
from tests.support.kafka_cluster import RealKafka

ROUNDS = 3
PATIENT = {
    "shutdown_grace_seconds": 4,
    "consumer_retry_max_attempts": 1000,
    "consumer_retry_initial_interval_ms": 500,
    "consumer_retry_max_interval_ms": 500,
    "breaker_failure_threshold": 0,
}
"""Settings of a worker that neither gives a record up nor takes a few keys for an outage."""


async def test_two_workers_share_and_part_with_256_in_flight(
    kafka: RealKafka, tmp_path: Path
) -> None:
    """Nothing is lost, keys keep their order, and repeated is at most what was in flight.

    Some keys are in backoff all the time. What finished behind their records is not repeated
    either: commit metadata tells the next owner. No two requests of one key are ever open at once,
    whoever sends them.
    """
    async with Scene(kafka, tmp_path) as scene:
        scene.latency_seconds = 0.5
        scene.failing = {f"key-{n}" for n in range(6)}
        await scene.ready_worker("a", **PATIENT)
        scene.load.publish(1000)
        scene.load.flow(600)
        handovers = []
        for round_ in range(ROUNDS):
            name = f"b{round_}"
            await scene.until_full()
            handovers.append(time.monotonic())
            worker = await scene.ready_worker(name, **PATIENT)
            await scene.until_sent_by(name, MAX_IN_FLIGHT)
            await scene.until_full()
            handovers.append(time.monotonic())
            worker.sigterm()
            assert await worker.wait() == 0
            await scene.admin.settled_group(1)
        scene.latency_seconds = 0.02
        scene.failing = set()
        await scene.close_books()
        assert scene.repeated_across(handovers) == set()
        assert sum(scene.repeats().values()) <= MAX_IN_FLIGHT * len(handovers)
        assert scene.overlaps() == []
