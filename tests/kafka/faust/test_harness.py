"""The harness itself: brokers die, freeze and come back, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from tests.support import kafka_cluster
from tests.support.kafka import distribution
from tests.support.kafka_cluster import RealKafka, unavailable_reason
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]


def produce(kafka: RealKafka, topic: str, value: bytes) -> None:
    """Write one record to partition 0 and wait until two brokers at least have it."""
    failures: list[KafkaError] = []

    def acknowledged(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": 60_000,
            "socket.timeout.ms": 3_000,  # a frozen broker is left alone after this
            "log_level": 0,
        }
    )
    producer.produce(topic, value, partition=0, on_delivery=acknowledged)
    left = producer.flush(60)
    assert (left, failures) == (0, [])


def consume(kafka: RealKafka, topic: str, count: int) -> list[bytes | None]:
    """Read the first records of partition 0."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": "harness",
            "enable.auto.commit": False,
            "socket.timeout.ms": 3_000,
            "log_level": 0,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        values: list[bytes | None] = []

        def enough() -> bool:
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                values.append(message.value())
            return len(values) >= count

        wait_until(enough, limit=60, what=f"{count} records of {topic}")
        return values
    finally:
        consumer.close()


@pytest.fixture
def topic(kafka: RealKafka, unique: Callable[[str], str]) -> str:
    """A new topic of one partition on all three brokers."""
    name = unique("harness")
    kafka.create_topic(name, partitions=1)
    return name


@pytest.mark.harms_brokers
def test_the_loss_of_a_leader_costs_no_record(kafka: RealKafka, topic: str) -> None:
    """What was acknowledged outlives a kill -9 of the leader, and the other two go on."""
    produce(kafka, topic, b"before")
    leader = kafka.leader_of(topic)

    kafka.kill(leader)
    assert kafka.running == set(kafka.broker_ids) - {leader}
    produce(kafka, topic, b"after")
    assert kafka.leader_of(topic, other_than=leader) != leader
    assert consume(kafka, topic, 2) == [b"before", b"after"]

    kafka.revive(leader)
    assert kafka.running == set(kafka.broker_ids)
    assert consume(kafka, topic, 2) == [b"before", b"after"]

    assert kafka.leader_of(topic) != leader
    kafka.elect_preferred_leaders()
    assert kafka.leader_of(topic) == leader


@pytest.mark.harms_brokers
def test_a_frozen_leader_is_replaced_and_comes_back(kafka: RealKafka, topic: str) -> None:
    """A leader that hangs with its connections open loses its partitions until it is thawed."""
    produce(kafka, topic, b"before")
    leader = kafka.leader_of(topic)
    pid = kafka.pids[leader]

    kafka.freeze(leader)
    assert kafka.leader_of(topic, other_than=leader) != leader
    produce(kafka, topic, b"meanwhile")

    kafka.revive(leader)
    assert kafka.pids[leader] == pid
    assert consume(kafka, topic, 2) == [b"before", b"meanwhile"]


@pytest.mark.harms_brokers
def test_data_and_commits_outlive_the_death_of_all_brokers(
    kafka: RealKafka, topic: str, unique: Callable[[str], str]
) -> None:
    """After a kill -9 of all three, records and committed offsets are as they were."""
    produce(kafka, topic, b"kept")
    group = unique("group")
    committer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": group})
    committer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
    committer.close()

    kafka.kill()
    assert kafka.pids == {}
    kafka.revive()

    assert consume(kafka, topic, 1) == [b"kept"]
    assert kafka.end_offsets(topic) == {0: 1}
    assert kafka.committed(group, topic) == {0: 1}
    assert kafka.committed(unique("stranger"), topic) == {}


@pytest.fixture
def by_hand(kafka: RealKafka, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run the harness as a command; needs `kafka` for the jars only."""
    # What a killed harness leaves is its directory: let that be one that pytest clears.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", kafka_cluster.__name__, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
def test_no_broker_outlives_a_killed_harness(by_hand: Callable[..., subprocess.Popen[str]]) -> None:
    """The command serves on its ports, and after a kill -9 of it nothing listens there."""
    process = by_hand()
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "is ready: 127.0.0.1:" in line, process.communicate()
    servers = line.rsplit(maxsplit=1)[-1].split(",")
    ports = [int(server.rpartition(":")[2]) for server in servers]
    assert all(_listens(port) for port in ports)

    process.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(_listens, ports)), limit=30, what="end of the brokers")


def test_ports_in_use_are_one_clear_line(
    kafka: RealKafka, by_hand: Callable[..., subprocess.Popen[str]]
) -> None:
    """A port that is taken, too few of them, or no number at all is said in one line."""
    taken = kafka.bootstrap_servers.split(",")[0].rpartition(":")[2]
    for ports, expected in [
        (f"{taken},29092,39092", f"port {taken} on 127.0.0.1 is in use"),
        ("19092,29092", "ports: 3 different ones are needed, not [19092, 29092]"),
        ("19092,x,39092", "--ports: 3 numbers from 1 to 65535 are needed, not 19092,x,39092"),
    ]:
        process = by_hand("--ports", ports)
        _, complaint = process.communicate(timeout=60)
        assert (process.returncode, complaint.splitlines()) == (1, [expected])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_is_missing_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Java, an old Java, and no Maven while the cache is not whole: each is named."""
    monkeypatch.setenv("RELAY_KAFKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    assert "no java in JAVA_HOME or PATH" in str(unavailable_reason())

    java = programs / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    assert str(unavailable_reason()).endswith(f"{java} is Java 11")

    java.write_text("#!/bin/sh\necho 'openjdk version \"21\" 2023-09-19' >&2\n")
    half = distribution.cache_directory()
    half.mkdir(parents=True)
    (half / "kafka-clients-4.3.1.jar").touch()
    assert "no mvn in PATH" in str(unavailable_reason())

    for line in distribution.DIGESTS.read_text().splitlines():
        (half / line.split()[1]).touch()
    assert unavailable_reason() is None
