"""One real Kafka cluster for all the tests in this folder.

A test that harms brokers has the mark ``harms_brokers`` and the cluster alone. The others run side
by side.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.kafka.cluster import RealKafka
from tests.support.kafka.distribution import KafkaUnavailable
from tests.support.run import TestRun
from tests.support.secure_kafka import SecureKafka
from tests.support.stage import Stage, new_stage

HERE = Path(__file__).parent
# The first test also waits for the cluster, and on a new machine for Maven.
TEST_LIMIT_SECONDS = 600
HARMFUL = "harms_brokers"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, give them longer time limits, and run them first.

    Shared tests come before those that need the brokers alone, so that the latter wait only once
    and then run beside all the tests without brokers.
    """
    peaceful, harmful, others = [], [], []
    for item in items:
        if HERE not in item.path.parents:
            others.append(item)
            continue
        item.add_marker(pytest.mark.kafka)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_LIMIT_SECONDS))
        if item.get_closest_marker(HARMFUL):
            item.add_marker(pytest.mark.xdist_group(HARMFUL))
            harmful.append(item)
        else:
            peaceful.append(item)
    items[:] = [*peaceful, *harmful, *others]


@pytest.fixture(scope="session")
def kafka(test_run: TestRun) -> RealKafka:
    """The cluster; where it cannot run, tests are skipped (and fail under RELAY_REQUIRE_ALL=1)."""
    cluster = test_run.cluster()
    try:
        with test_run.brokers():
            cluster.start()
    except KafkaUnavailable as missing:
        pytest.skip(str(missing))
    return cluster


@pytest.fixture(autouse=True)
def brokers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Share the brokers, or have them alone; afterwards all are up with their preferred partitions.

    Else Kafka would move leaders by itself minutes later, during another test.
    """
    if "kafka" in request.fixturenames and "module_kafka" not in request.fixturenames:
        with _brokers(request):
            yield
    else:
        yield


@pytest.fixture(scope="module")
def module_kafka(request: pytest.FixtureRequest) -> Iterator[RealKafka]:
    """The cluster for a module whose stories last over several tests."""
    with _brokers(request) as kafka:
        yield kafka


@contextmanager
def _brokers(request: pytest.FixtureRequest) -> Iterator[RealKafka]:
    kafka: RealKafka = request.getfixturevalue("kafka")
    test_run: TestRun = request.getfixturevalue("test_run")
    alone = request.node.get_closest_marker(HARMFUL) is not None
    with test_run.brokers(alone=alone):
        try:
            yield kafka
        finally:
            if alone:
                kafka.revive()
                kafka.elect_preferred_leaders()


@pytest.fixture(scope="session")
def secure(
    kafka: RealKafka, test_run: TestRun, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureKafka]:
    """The same cluster by its listeners with TLS and SASL, and an identity provider."""
    clients = SecureKafka(kafka, test_run.secrets, tmp_path_factory.mktemp("secure"))
    clients.provider.start()
    yield clients
    clients.provider.stop()


@pytest.fixture
def stage(kafka: RealKafka) -> Stage:
    """Names of this test's own; workers declare the topics."""
    return new_stage(kafka.bootstrap_servers, declare_topics=True)
