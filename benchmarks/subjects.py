"""What is measured: the worker as it ships, and the two plain loops."""

from __future__ import annotations

import socket
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks.brokers import Brokers, Topic
from benchmarks.processes import Child, Sink

Start = Callable[[Brokers, Topic, Sink, int], Child]

_folder = tempfile.TemporaryDirectory(prefix="order-relay-benchmark-")


def relay(brokers: Brokers, topic: Topic, sink: Sink, in_flight: int) -> Child:
    """``faust -A app worker -l warn``."""
    return _relay("memory", brokers, topic, sink, in_flight)


def relay_without_table(brokers: Brokers, topic: Topic, sink: Sink, in_flight: int) -> Child:
    """The worker with ``DELIVERIES_STORE=off``."""
    return _relay("off", brokers, topic, sink, in_flight)


def relay_with_rocksdb(brokers: Brokers, topic: Topic, sink: Sink, in_flight: int) -> Child:
    """The worker with ``DELIVERIES_STORE=rocksdb``."""
    return _relay("rocksdb", brokers, topic, sink, in_flight)


def _relay(store: str, brokers: Brokers, topic: Topic, sink: Sink, in_flight: int) -> Child:
    return Child(
        ["-m", "faust", "-A", "app", "worker", "-l", "warn"],
        environment={
            "KAFKA_BOOTSTRAP_SERVERS": brokers.servers,
            "KAFKA_DECLARE_TOPICS": "false",
            "ORDER_PAID_TOPIC": topic.name,
            "DLQ_TOPIC": topic.dlq_name,
            "CONSUMER_GROUP_ID": _group(),
            "EXTERNAL_LOGGER_URL": sink.url,
            "MAX_IN_FLIGHT": str(in_flight),
            "DELIVERIES_STORE": store,
            "DATA_DIR": f"data-{_group()}",
            "WEB_PORT": str(_free_port()),
        },
        log=_log("relay"),
        folder=Path(_folder.name),
    )


def unordered(brokers: Brokers, topic: Topic, sink: Sink, in_flight: int) -> Child:
    """The plain loop with as many in flight."""
    return _plain("unordered", brokers, topic, sink, in_flight)


def one_at_a_time(brokers: Brokers, topic: Topic, sink: Sink, in_flight: int) -> Child:
    """The plain loop that waits for every answer."""
    return _plain("one-at-a-time", brokers, topic, sink, in_flight)


def _plain(loop: str, brokers: Brokers, topic: Topic, sink: Sink, in_flight: int) -> Child:
    arguments = [loop, brokers.servers, topic.name, _group(), sink.url, str(in_flight)]
    return Child(["-m", "benchmarks.plain_loops", *arguments], log=_log(loop))


def _group() -> str:
    # A new group reads the topic from its beginning: one filling serves every run.
    return f"order-relay-benchmark-{uuid.uuid4().hex[:8]}"


def _log(name: str) -> Path:
    return Path(_folder.name) / f"{name}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
