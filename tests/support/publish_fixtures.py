"""A cluster for the tests of the ways in: ``pytest_plugins`` names this module."""

import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient

from app.quickstart.embedded_cluster import EmbeddedCluster

START_SECONDS = 30.0


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The servers of one embedded cluster for the whole run."""
    embedded = EmbeddedCluster()
    yield embedded.start()
    embedded.stop()


@pytest.fixture
def topic(cluster: str) -> str:
    """A topic of the test's own."""
    name = f"orders-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": cluster, "log_level": 0})
    deadline = time.monotonic() + START_SECONDS
    # Asking for a topic makes it; the first answer may come before it is there.
    while (found := admin.list_topics(name, timeout=START_SECONDS).topics[name]).error is not None:
        assert time.monotonic() < deadline, found.error
    return name
