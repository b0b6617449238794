"""What is measured: the worker as it ships, and the two plain loops."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.brokers import Brokers, Topic
from benchmarks.processes import Child, Sink


@dataclass(frozen=True, slots=True)
class Job:
    """What a subject is to do.

    Attributes:
        brokers: Where the topic is.
        topic: What to read, from its beginning.
        sink: Where to POST every record.
        in_flight: Deliveries at a time.
        group: The consumer group; one that is new reads from the beginning, one that was there
            before goes on.
    """

    brokers: Brokers
    topic: Topic
    sink: Sink
    in_flight: int
    group: str


Start = Callable[[Job], Child]

_folder = tempfile.TemporaryDirectory(prefix="order-relay-benchmark-")


def relay(job: Job) -> Child:
    """``faust -A app worker -l warn``."""
    return _relay("memory", job)


def relay_without_table(job: Job) -> Child:
    """The worker with ``DELIVERIES_STORE=off``."""
    return _relay("off", job)


def relay_with_rocksdb(job: Job) -> Child:
    """The worker with ``DELIVERIES_STORE=rocksdb``."""
    return _relay("rocksdb", job)


def _relay(store: str, job: Job) -> Child:
    return Child(
        ["-m", "faust", "-A", "app", "worker", "-l", "warn"],
        environment={
            "KAFKA_BOOTSTRAP_SERVERS": job.brokers.servers,
            "KAFKA_DECLARE_TOPICS": str(job.brokers.creates_topics),
            "TOPIC_REPLICATION_FACTOR": str(job.brokers.replication),
            "ORDER_PAID_TOPIC": job.topic.name,
            "DLQ_TOPIC": job.topic.dlq_name,
            "CONSUMER_GROUP_ID": job.group,
            "EXTERNAL_LOGGER_URL": job.sink.url,
            "MAX_IN_FLIGHT": str(job.in_flight),
            "DELIVERIES_STORE": store,
            "DATA_DIR": f"data-{job.group}",
            "WEB_PORT": str(_free_port()),
        },
        log=log_file("relay"),
        folder=Path(_folder.name),
    )


def unordered(job: Job) -> Child:
    """The plain loop with as many in flight."""
    return _plain("unordered", job)


def one_at_a_time(job: Job) -> Child:
    """The plain loop that waits for every answer."""
    return _plain("one-at-a-time", job)


def _plain(loop: str, job: Job) -> Child:
    arguments = [loop, job.brokers.servers, job.topic.name, job.group, job.sink.url]
    return Child(
        ["-m", "benchmarks.plain_loops", *arguments, str(job.in_flight)], log=log_file(loop)
    )


def log_file(name: str) -> Path:
    """Where a subject's output goes; it is there until the benchmark ends."""
    return Path(_folder.name) / f"{name}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
