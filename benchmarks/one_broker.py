"""One broker of Apache Kafka: on two cores three would leave too little for the subject."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from benchmarks.brokers import Brokers
from benchmarks.processes import CannotMeasure
from tests.support.compose import ComposeSettings
from tests.support.kafka.broker import JVM_OPTIONS, Broker
from tests.support.kafka.distribution import KafkaUnavailable, fetch_jars, java_executable
from tests.support.kafka.ports import LOOPBACK
from tests.support.waiting import wait_until

READY_SECONDS = 60.0
# These replace the settings for three brokers in docker-compose.yml and the tests' harness.
ALONE = {
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
}


@contextlib.contextmanager
def one_broker() -> Iterator[Brokers]:
    """Start the first broker of docker-compose.yml alone, with temporary data.

    Raises:
        CannotMeasure: Java or Maven is missing, or the broker does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="order-relay-kafka-") as folder:
        try:
            broker = _broker(Path(folder))
        except KafkaUnavailable as error:
            raise CannotMeasure(str(error)) from error
        broker.launch()
        try:
            servers = f"{LOOPBACK}:{broker.port}"
            _wait_until_ready(broker, servers)
            yield Brokers(servers, creates_topics=True)
        finally:
            broker.kill()


def _broker(folder: Path) -> Broker:
    jars = fetch_jars()
    compose = ComposeSettings()
    service = compose.services[0]
    settings = compose.properties(service)
    first_voter, *_ = settings["controller.quorum.voters"].split(",")
    broker = Broker(
        1,
        compose.port(service),
        settings=settings,
        directory=folder,
        java=[str(java_executable()), *compose.heap, *JVM_OPTIONS, "-cp", f"{jars}/*"],
        properties={**ALONE, "controller.quorum.voters": first_voter},
        listeners={},
        spawn=lambda popen: popen(),
    )
    broker.format(compose.cluster_id(service), {})
    return broker


def _wait_until_ready(broker: Broker, servers: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})

    def answers() -> bool:
        if not broker.running:
            raise CannotMeasure(f"the broker ended by itself: {broker.last_words()}")
        try:
            return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    try:
        wait_until(answers, limit=READY_SECONDS, what="broker ready")
    except TimeoutError as late:
        raise CannotMeasure(f"{late}: {broker.last_words()}") from late
