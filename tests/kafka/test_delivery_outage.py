"""All three brokers are killed under load and come back after a minute."""

import asyncio
import re
import time
from pathlib import Path

from app.main import SHUTDOWN_TAIL_SECONDS
from tests.kafka.administration import together
from tests.kafka.scene import MAX_IN_FLIGHT, Scene
from tests.support.kafka_cluster import RealKafka

OUTAGE_SECONDS = 60.0
GRACE_SECONDS = 5.0
# What a busy machine may take for the process to end, once it was told to.
ENDING_SECONDS = 10.0


class Outage:
    """A minute without any broker, once all stories are ready for it.

    Attributes:
        since: When the brokers were killed; monotonic seconds.
    """

    def __init__(self, kafka: RealKafka, stories: int) -> None:
        self.since = 0.0
        self._kafka = kafka
        self._ready = asyncio.Barrier(stories + 1)
        self._begun = asyncio.Event()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Kill the brokers, wait a minute, bring them back."""
        await self._ready.wait()
        self.since = time.monotonic()
        await asyncio.to_thread(self._kafka.kill)
        self._begun.set()
        await asyncio.sleep(OUTAGE_SECONDS)  # the outage itself, not a wait for something
        await asyncio.to_thread(self._kafka.revive)
        self._over.set()

    async def begun(self) -> None:
        """Say that the story is ready, and wait until no broker is alive."""
        await self._ready.wait()
        await self._begun.wait()

    async def over(self) -> None:
        """Wait until all brokers are back."""
        await self._over.wait()


async def test_a_minute_without_any_broker(kafka: RealKafka, tmp_path: Path) -> None:
    """A worker under load, one that is to stop, and one that starts then, all lose nothing."""
    outage = Outage(kafka, 3)
    await together(
        outage.run(),
        a_worker_under_load_goes_on_afterwards(kafka, tmp_path, outage),
        a_worker_that_is_to_stop_ends_during_it(kafka, tmp_path, outage),
        a_worker_that_starts_during_it_waits(kafka, tmp_path, outage),
    )


async def a_worker_under_load_goes_on_afterwards(
    kafka: RealKafka, directory: Path, outage: Outage
) -> None:
    """It lives on, and everything published before, meanwhile and afterwards is delivered once.

    Repeated is at most what finished while no commit could be taken.
    """
    async with Scene(kafka, directory) as scene:
        scene.latency_seconds = 0.2
        worker = await scene.ready_worker("a")
        scene.load.flow(100)
        await scene.until_accepted(500)
        scene.all_brokers_died = True
        await outage.begun()
        await outage.over()
        assert await worker.live()
        await scene.until_orders_accepted(scene.load.produced + 100)
        await scene.close_books()
        scene.assert_repeats_are_recent(outage.since)
        assert worker.running


async def a_worker_that_is_to_stop_ends_during_it(
    kafka: RealKafka, directory: Path, outage: Outage
) -> None:
    """SIGTERM ends it within the grace and the tail, and the next worker delivers the rest."""
    async with Scene(kafka, directory) as scene:
        scene.latency_seconds = 1.0
        worker = await scene.ready_worker("b", shutdown_grace_seconds=GRACE_SECONDS)
        scene.load.publish(3000)
        await scene.until_accepted(MAX_IN_FLIGHT)
        await scene.until_full()
        scene.all_brokers_died = True
        await outage.begun()
        worker.sigterm()
        await worker.wait(GRACE_SECONDS + SHUTDOWN_TAIL_SECONDS + ENDING_SECONDS)
        await outage.over()
        scene.latency_seconds = 0.1
        scene.worker("b2")
        await scene.close_books()
        scene.assert_repeats_are_recent(outage.since)


async def a_worker_that_starts_during_it_waits(
    kafka: RealKafka, directory: Path, outage: Outage
) -> None:
    """It says in one line that Kafka is away, keeps trying, declares its topics and delivers."""
    async with Scene(kafka, directory, declared=False) as scene:
        await outage.begun()
        worker = scene.worker("c")
        await worker.wait_log("Kafka cannot be reached")
        await outage.over()
        await worker.wait_ready()
        scene.load.publish(500)
        await scene.close_books()
        before, _, _ = worker.log_text().partition("Declared topic")
        complaints = re.findall(r"^.*\[(?:WARNING|ERROR|CRITICAL)\].*$", before, re.MULTILINE)
        assert [line for line in complaints if "Kafka cannot be reached" not in line] == []
        assert len(complaints) == 1
        assert "Traceback" not in before
