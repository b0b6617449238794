"""Fixtures for a cluster with TLS and SASL."""

import uuid

import pytest

from tests.support.secure_kafka import SecureKafka
from tests.support.stage import Stage


@pytest.fixture
def stage(secure: SecureKafka) -> Stage:
    """The test's own topics and group; the test itself connects without TLS."""
    name = uuid.uuid4().hex[:8]
    return Stage(
        secure.kafka.bootstrap_servers,
        topic=f"order-paid-{name}",
        dlq_topic=f"order-paid-{name}.DLQ",
        group_id=f"group-{name}",
        declare_topics=True,
    )
