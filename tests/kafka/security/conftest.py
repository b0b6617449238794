"""One real Kafka cluster with TLS and SASL for the tests in this folder."""

import uuid
from collections.abc import Iterator

import pytest

from tests.support.kafka_cluster import KafkaUnavailable
from tests.support.secure_kafka import SecureKafka
from tests.support.stage import Stage


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """The cluster; where it cannot run, tests are skipped (and fail under RELAY_REQUIRE_ALL=1)."""
    cluster = SecureKafka(tmp_path_factory.mktemp("secure"))
    try:
        try:
            cluster.start()
        except KafkaUnavailable as missing:
            pytest.skip(str(missing))
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def stage(secure: SecureKafka) -> Stage:
    """Topics and a group of the test's own, which the test itself reaches without TLS."""
    name = uuid.uuid4().hex[:8]
    return Stage(
        secure.kafka.bootstrap_servers,
        topic=f"order-paid-{name}",
        dlq_topic=f"order-paid-{name}.DLQ",
        group_id=f"group-{name}",
        declare_topics=True,
    )
