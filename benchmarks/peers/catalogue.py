"""The peers: how each is set up and started, and what it needs to be compared fairly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from benchmarks import subjects
from benchmarks.peers.installation import HERE, jars_of, python_of, version_of
from benchmarks.processes import Child
from benchmarks.subjects import Job, Start, log_file
from order_relay.version import VERSION
from tests.support.kafka.distribution import java_executable


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the table.

    Attributes:
        name: As people know it.
        version: What of it is measured.
        set_up: Installs it where it is not there yet; returns what starts it. Raises
            ``CannotSetUp``.
        threads: Deliveries at a time where it has a number of its own, else ``None``.
    """

    name: str
    version: str
    set_up: Callable[[], Start]
    threads: int | None = None


def _java(folder: str) -> Start:
    jars = jars_of(folder)

    def start(job: Job) -> Child:
        return Child(
            [
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                *("-cp", f"{jars}/*", str(HERE / folder / "Peer.java")),
                *_arguments(job),
            ],
            program=str(java_executable()),
            log=log_file(folder),
        )

    return start


def _python(folder: str, at_least: tuple[int, int] = (3, 11)) -> Start:
    python = python_of(folder, at_least)

    def start(job: Job) -> Child:
        return Child(
            [str(HERE / folder / "peer.py"), *_arguments(job)],
            program=python,
            log=log_file(folder),
        )

    return start


def _arguments(job: Job) -> list[str]:
    return [
        job.brokers.servers,
        job.topic.name,
        job.group,
        job.sink.url,
        str(job.in_flight),
    ]


PEERS = (
    Peer("relay", VERSION, lambda: subjects.relay),
    Peer(
        "Confluent Parallel Consumer, vert.x",
        version_of("parallel_consumer"),
        lambda: _java("parallel_consumer"),
    ),
    Peer(
        "Spring Kafka, 3 threads",
        version_of("spring_kafka"),
        lambda: _java("spring_kafka"),
        threads=3,
    ),
    Peer(
        "Pyrallel Consumer, asyncio",
        version_of("pyrallel_consumer"),
        lambda: _python("pyrallel_consumer", (3, 12)),
    ),
    Peer("mq-bridge", version_of("mq_bridge"), lambda: _python("mq_bridge")),
    Peer(
        "plain aiokafka and aiohttp",
        f"{version('aiokafka')}, {version('aiohttp')}",
        lambda: subjects.unordered,
    ),
)
