"""What the tests of a cluster with TLS and SASL share."""

import uuid

import pytest

from tests.support.secure_kafka import SecureKafka
from tests.support.stage import Stage


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
