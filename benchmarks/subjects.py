"""The measured subjects: the shipped worker, and the two plain loops."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.brokers import Brokers, Topic
from benchmarks.processes import Child, Sink
from tests.support.kafka.ports import free_ports


@dataclass(frozen=True, slots=True)
class Job:
    """The task of a subject.

    Attributes:
        brokers: Where the topic is.
        topic: The topic to read, from its beginning.
        sink: The URL for POSTs.
        in_flight: Deliveries at a time.
        group: The consumer group; a new one reads from the beginning, an old one continues.
    """

    brokers: Brokers
    topic: Topic
    sink: Sink
    in_flight: int
    group: str


Start = Callable[[Job], Child]

_folder = tempfile.TemporaryDirectory(prefix="order-relay-benchmark-")


def relay(job: Job, store: str = "memory") -> Child:
    """``faust -A app worker -l warn``; ``store`` is its ``DELIVERIES_STORE``."""
    (port,) = free_ports(1)
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
            "DATA_DIR": f"data-{job.group}-{port}",
            "WEB_PORT": str(port),
        },
        log=log_file(f"relay-{port}"),
        folder=Path(_folder.name),
    )


def relay_without_table(job: Job) -> Child:
    """The worker with ``DELIVERIES_STORE=off``."""
    return relay(job, "off")


def relay_with_rocksdb(job: Job) -> Child:
    """The worker with ``DELIVERIES_STORE=rocksdb``."""
    return relay(job, "rocksdb")


def unordered(job: Job, in_flight: int | None = None) -> Child:
    """The plain loop with as many in flight."""
    arguments = [job.brokers.servers, job.topic.name, job.group, job.sink.url]
    arguments.append(str(in_flight or job.in_flight))
    return Child(["-m", "benchmarks.plain_loops", *arguments], log=log_file("plain"))


def one_at_a_time(job: Job) -> Child:
    """The plain loop that waits for every answer."""
    return unordered(job, 1)


def log_file(name: str) -> Path:
    """The file for a subject's output; it exists until the benchmark ends."""
    return Path(_folder.name) / f"{name}.log"
