"""The Kafka and worker settings of docker-compose.yml, at work on real brokers."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined] # documented, not re-exported
    AdminClient,
    ConfigResource,
    NewTopic,
)

from app.settings import Settings
from tests.kafka.compose_brokers import ComposeBrokers
from tests.support.compose import Compose
from tests.support.kafka.broker import DIE_WITH_PARENT
from tests.support.kafka.distribution import KafkaUnavailable
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.publish_postgres import PostgresServer
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import ROOT, WorkerProcess

TOPICS = {Settings.model_fields[name].default for name in ("order_paid_topic", "dlq_topic")}
SECRETS_FOLDER = "/run/secrets/"


@pytest.fixture(scope="module")
def compose() -> Compose:
    """The file."""
    return Compose()


@pytest.fixture(scope="module")
def brokers(compose: Compose) -> Iterator[ComposeBrokers]:
    """The brokers of the file; where they cannot run, tests are skipped."""
    with tempfile.TemporaryDirectory(prefix="order-relay-compose-") as directory:
        try:
            running = ComposeBrokers(compose, Path(directory))
        except KafkaUnavailable as missing:
            pytest.skip(str(missing))
        with running:
            yield running


async def test_brokers_understand_what_they_are_told(
    compose: Compose, brokers: ComposeBrokers
) -> None:
    """Every variable is a property that the brokers have, with that value; health checks pass."""
    admin = AdminClient({"bootstrap.servers": brokers.moved("kafka-1:9092")})
    for service in compose.brokers:
        node = compose.environment(service)["KAFKA_NODE_ID"]
        ask = ConfigResource(ConfigResource.Type.BROKER, node)
        told = await eventually(partial(told_by, admin, ask), 60, f"broker {node} to tell")
        assert told is not None
        for name, value in brokers.properties[service].items():
            assert told[name].value == value, name
        assert brokers.healthy(service)


async def told_by(admin: AdminClient, broker: ConfigResource) -> dict[str, Any] | None:
    """A broker's properties; ``None`` where the client has just let go of the connection."""
    asked = admin.describe_configs([broker])[broker]
    try:
        told: dict[str, Any] = await asyncio.to_thread(asked.result, 30)
    except KafkaException:
        return None
    return told


async def test_a_topic_that_nobody_made_is_not_made(brokers: ComposeBrokers) -> None:
    """A record for a mistyped topic is not taken, and there is no such topic afterwards."""
    assert await asyncio.to_thread(refusal, brokers, "mistyped", 3) is not None
    states = await asyncio.to_thread(brokers.view.partitions)
    assert "mistyped" not in {state.topic for state in states or ()}


async def test_an_order_goes_all_the_way(
    compose: Compose, brokers: ComposeBrokers, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The worker of the file makes its topics, takes an order with the token, and delivers it.

    It goes to the sample logger of the file, and on with one broker less; but nothing is taken that
    only one broker would have.
    """
    first, *_, last = compose.brokers
    await asyncio.to_thread(make_pair, brokers.moved(f"{first}:9092"), "pair")
    (logger_port,) = free_ports(1)
    logger = start_logger(compose, logger_port, tmp_path)
    worker = compose_worker(compose, brokers, postgres_server, tmp_path, logger_port)
    try:
        worker.start()
        await worker.wait_ready()
        described = {
            state.topic: (len(state.replicas), len(state.in_sync))
            for state in await asyncio.to_thread(brokers.view.partitions) or ()
        }
        assert {topic: described[topic] for topic in TOPICS} == dict.fromkeys(TOPICS, (3, 3))
        assert described["__consumer_offsets"][0] == 3

        token = compose.secrets["api_token"].read_text(encoding="utf-8")
        assert await post(worker, 1, "wrong") == (401, None)
        assert await post(worker, 1, token) == (202, "published")
        await eventually(lambda: accepted(logger_port), 30)

        brokers.kill(last)
        assert await post(worker, 2, token) == (202, "published")
        await eventually(lambda: accepted(logger_port, 2), 60)

        async def refused() -> bool:
            # Until the controllers have given the dead broker up, its answer is waited for.
            code = await asyncio.to_thread(refusal, brokers, "pair")
            return code == KafkaError.NOT_ENOUGH_REPLICAS

        await eventually(refused, 120)
        worker.sigterm()
        assert await worker.wait() == 0
    finally:
        worker.kill9()
        logger.kill()
        logger.wait()


def make_pair(servers: str, name: str) -> None:
    """Make a topic of one partition that the first broker leads and the third follows."""
    topic = NewTopic(name, 1, replica_assignment=[[1, 3]])
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([topic])[name].result(30)


def refusal(brokers: ComposeBrokers, topic: str, seconds: int = 15) -> int | None:
    """The code of the error with which a topic refuses a record; ``None`` if it takes it."""
    codes: list[int | None] = []

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        codes.append(error.code() if error is not None else None)

    producer = Producer(
        {
            "bootstrap.servers": brokers.moved("kafka-1:9092"),
            "acks": "all",
            "retries": 0,
            "message.timeout.ms": seconds * 1000,
            "log_level": 0,
        }
    )
    producer.produce(topic, b"x", on_delivery=on_delivery)
    producer.flush(30)
    return codes[0]


def compose_worker(
    compose: Compose,
    brokers: ComposeBrokers,
    postgres: PostgresServer,
    directory: Path,
    logger_port: int,
) -> WorkerProcess:
    """The worker with the file's environment, addresses and folders being those of this test."""
    database = directory / "database_url"
    database.write_text(postgres.url(postgres.create_database()))
    environment = dict(compose.environment("worker"))
    for name, value in environment.items():
        if value.startswith(SECRETS_FOLDER):
            environment[name] = str(compose.secrets[value.removeprefix(SECRETS_FOLDER)])
    environment |= {
        "KAFKA_BOOTSTRAP_SERVERS": brokers.moved(environment["KAFKA_BOOTSTRAP_SERVERS"]),
        "EXTERNAL_LOGGER_URL": environment["EXTERNAL_LOGGER_URL"].replace(
            "sample-logger:3000", f"{LOOPBACK}:{logger_port}"
        ),
        "DATABASE_URL_FILE": str(database),
        "DATA_DIR": str(directory / "data"),
        "WEB_HOST": LOOPBACK,
    }
    stage = Stage(environment["KAFKA_BOOTSTRAP_SERVERS"], "", "", "")
    worker = WorkerProcess(directory, stage, "")
    environment["WEB_PORT"] = str(worker.web_port)
    kept = {name: worker.environment[name] for name in ("PATH", "PYTHONPATH", "PYTHONUNBUFFERED")}
    worker.environment = kept | environment
    return worker


def start_logger(compose: Compose, port: int, directory: Path) -> subprocess.Popen[bytes]:
    """The sample logger as the file starts it, but for its address."""
    service = compose.services["sample-logger"]
    _, *arguments = service["entrypoint"]
    assert service["command"] == ["--host", "0.0.0.0"]
    guard = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid())]
    with (directory / "logger.log").open("wb") as log:
        return subprocess.Popen(
            [*guard, sys.executable, *arguments, "--host", LOOPBACK, "--logger-port", str(port)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


async def post(worker: WorkerProcess, order_id: int, token: str) -> tuple[int, str | None]:
    """Hand an order in at the worker's page; return the status, and what became of it."""
    event: dict[str, Any] = {
        "eventType": "ORDER_PAID",
        "orderId": order_id,
        "userId": 456,
        "paidAt": "2025-12-19T10:30:00",
        "orderItems": [{"productId": 1, "orderQuantity": 2}],
    }
    headers = {"Authorization": f"Bearer {token}", "event-id": f"order-{order_id}-paid"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://{LOOPBACK}:{worker.web_port}/order-paid", json=event, headers=headers
        ) as response,
    ):
        return response.status, (await response.json()).get("status")


async def accepted(port: int, count: int = 1) -> bool:
    """Whether the sample logger has accepted so many, as its page says."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{LOOPBACK}:{port}/") as response,
    ):
        figures = json.loads(await response.text())
        return bool(figures["answers"]["accepted"] >= count)
