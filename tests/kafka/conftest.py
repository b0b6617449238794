"""One real Kafka cluster for all the tests in this folder, whole again before each of them."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.kafka_cluster import KafkaUnavailable, RealKafka

HERE = Path(__file__).parent
# The first test also waits for the cluster, and on a fresh machine for Maven.
TEST_LIMIT_SECONDS = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder as needing Kafka, and give it time for what brokers do."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kafka)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_LIMIT_SECONDS))


@pytest.fixture(scope="session")
def kafka() -> Iterator[RealKafka]:
    """The cluster; where it cannot run, tests are skipped (and fail under RELAY_REQUIRE_ALL=1)."""
    cluster = RealKafka()
    try:
        try:
            cluster.start()
        except KafkaUnavailable as missing:
            pytest.skip(str(missing))
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(autouse=True)
def all_brokers_up(request: pytest.FixtureRequest) -> None:
    """Revive what an earlier test has killed or frozen, and let it lead what it led.

    Else Kafka would do so by itself, minutes later, in the midst of some other test.
    """
    if "kafka" in request.fixturenames:
        kafka = request.getfixturevalue("kafka")
        kafka.revive()
        kafka.elect_preferred_leaders()


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Make a name for a topic or a group that no other test uses: `unique("orders")`."""
    return lambda stem: f"{stem}-{uuid.uuid4().hex[:8]}"
