"""The Kafka and worker settings of docker-compose.yml on real brokers."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined] # documented, not re-exported
    AdminClient,
    ConfigResource,
    NewTopic,
)

from tests.kafka.administration import Administration
from tests.support.child import on_leash
from tests.support.compose import Compose, ComposeSettings
from tests.support.kafka.cluster import RealKafka
from tests.support.kafka.distribution import fetch_jars, java_executable
from tests.support.kafka.ports import LOOPBACK, free_ports
from tests.support.orders import Order, order_value
from tests.support.publish_postgres import PostgresServer
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import ROOT, WorkerProcess

pytestmark = pytest.mark.harms_brokers

SECRETS_FOLDER = "/run/secrets/"
SETUP_LIMIT_SECONDS = 60
# The test cluster adds listeners to those of the file.
ADDED_TO = {"listeners", "advertised.listeners", "listener.security.protocol.map"}


@pytest.fixture(scope="module")
def compose() -> Compose:
    """The file."""
    return Compose()


async def test_brokers_accept_every_setting(
    compose: Compose, kafka: RealKafka, tmp_path: Path
) -> None:
    """Every variable is a broker property with its value; health checks pass."""
    admin, settings = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}), kafka.compose
    for service in compose.brokers:
        properties = await asyncio.to_thread(image_properties, settings, service, tmp_path)
        expected = settings.properties(service)
        del expected["log.dirs"]
        assert properties == expected
        ask = ConfigResource(ConfigResource.Type.BROKER, properties["node.id"])
        told = await eventually(partial(told_by, admin, ask), 60, f"broker {ask.name} to tell")
        assert told is not None
        for name, value in properties.items():
            if name in ADDED_TO:
                assert told[name].value.startswith(value), name
            else:
                assert told[name].value == value, name
        assert healthy(compose, settings, service)


async def told_by(admin: AdminClient, broker: ConfigResource) -> dict[str, Any] | None:
    """A broker's properties; ``None`` if the client has just closed the connection."""
    asked = admin.describe_configs([broker])[broker]
    try:
        told: dict[str, Any] = await asyncio.to_thread(asked.result, 30)
    except KafkaException:
        return None
    return told


async def test_a_missing_topic_is_not_created(kafka: RealKafka, stage: Stage) -> None:
    """A record for a mistyped topic is refused, and the topic is not created."""
    assert await refusal(stage, "mistyped", seconds=3)
    assert await Administration(stage).replication("mistyped") == []


async def test_an_order_goes_all_the_way(
    compose: Compose,
    kafka: RealKafka,
    stage: Stage,
    postgres_server: PostgresServer,
    tmp_path: Path,
) -> None:
    """The worker of the file creates its topics, accepts an order with the token, and delivers it.

    It delivers to the file's sample logger, also with a broker down; but a record that only one
    broker could store is refused.
    """
    admin, pair = Administration(stage), f"{stage.topic}.pair"
    names = {
        "ORDER_PAID_TOPIC": stage.topic,
        "DLQ_TOPIC": stage.dlq_topic,
        "CONSUMER_GROUP_ID": stage.group_id,
    }
    await asyncio.to_thread(make_pair, kafka, pair)
    (logger_port,) = free_ports(1)
    logger = start_logger(compose, logger_port, tmp_path)
    worker = compose_worker(kafka, names, postgres_server, tmp_path, logger_port)
    try:
        worker.start()
        await worker.wait_ready()
        for topic in (stage.topic, stage.dlq_topic, "__consumer_offsets"):
            assert await admin.replication(topic) == [(3, 3)] * 3

        token = compose.secrets["api_token"].read_text(encoding="utf-8")
        assert await post(worker, 1, "wrong") == (401, None)
        assert await post(worker, 1, token) == (202, "published")
        await eventually(lambda: accepted(logger_port), 30)

        await asyncio.to_thread(kafka.kill, kafka.broker_ids[-1])
        assert await post(worker, 2, token) == (202, "published")
        await eventually(lambda: accepted(logger_port, 2), 60)

        async def refused() -> bool:
            # Until the controllers have removed the dead broker, Kafka waits for its answer.
            return "code=NOT_ENOUGH_REPLICAS," in await refusal(stage, pair)

        await eventually(refused, 120)
        worker.sigterm()
        assert await worker.wait() == 0
    finally:
        worker.kill9()
        logger.kill()
        logger.wait()


def image_properties(settings: ComposeSettings, service: str, directory: Path) -> dict[str, str]:
    """The properties that the image makes of a broker's variables.

    A class of Kafka's own jar does so at each start, and formats the storage.
    """
    folders = {name: directory / service / name for name in ("default", "mounted", "final")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        # The variables replace all of the image's defaults.
        (folder / "server.properties").touch()
    java, jars = str(java_executable()), f"{fetch_jars()}/*"
    done = subprocess.run(
        [
            *(java, "-cp", jars, "kafka.docker.KafkaDockerWrapper", "setup"),
            *(f"--{name}-configs-dir={folder}" for name, folder in folders.items()),
        ],
        env={
            "PATH": os.environ["PATH"],
            **settings.environment(service),
            "CLUSTER_ID": settings.cluster_id(service),
            "KAFKA_LOG_DIRS": str(directory / service / "data"),
        },
        capture_output=True,
        text=True,
        timeout=SETUP_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (folders["final"] / "server.properties").read_text(encoding="utf-8")
    lines = (line.partition("=") for line in text.splitlines() if line)
    found = {name: value for name, _, value in lines}
    assert found.pop("log.dirs") == str(directory / service / "data")
    return found


def healthy(compose: Compose, settings: ComposeSettings, service: str) -> bool:
    """Whether the file's health check passes, with the test broker's address."""
    _, *command = compose.services[service]["healthcheck"]["test"]
    check = re.sub(
        r"/127\.0\.0\.1/(\d+)",
        lambda found: f"/{LOOPBACK}/{settings.port(service, found[1])}",
        command[-1],
    )
    done = subprocess.run([*command[:-1], check], capture_output=True, check=False)
    return done.returncode == 0


def make_pair(kafka: RealKafka, name: str) -> None:
    """Make a topic of one partition that the first broker leads and the third follows."""
    topic = NewTopic(name, 1, replica_assignment=[[1, 3]])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_topics([topic])[name].result(30)


async def refusal(stage: Stage, topic: str, seconds: int = 15) -> str:
    """The error if a topic refuses a record; empty if it accepts it."""
    once = {"enable.idempotence": "false", "retries": 0, "message.timeout.ms": seconds * 1000}
    try:
        await replace(stage, topic=topic).publish([Order(None, b"x", partition=0)], config=once)
    except RuntimeError as error:
        return str(error)
    return ""


def compose_worker(
    kafka: RealKafka,
    names: Mapping[str, str],
    postgres: PostgresServer,
    directory: Path,
    logger_port: int,
) -> WorkerProcess:
    """The worker with the file's environment; addresses, folders and names are this test's."""
    compose = Compose()
    database = directory / "database_url"
    database.write_text(postgres.url(postgres.create_database()))
    environment = dict(compose.environment("worker"))
    for name, value in environment.items():
        if value.startswith(SECRETS_FOLDER):
            environment[name] = str(compose.secrets[value.removeprefix(SECRETS_FOLDER)])
    environment |= {
        **names,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.compose.moved(environment["KAFKA_BOOTSTRAP_SERVERS"]),
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
    """Start the sample logger as the file does, on another address."""
    service = compose.services["sample-logger"]
    _, *arguments = service["entrypoint"]
    assert service["command"] == ["--host", "0.0.0.0"]
    with (directory / "logger.log").open("wb") as log:
        return subprocess.Popen(
            on_leash(sys.executable, *arguments, "--host", LOOPBACK, "--logger-port", str(port)),
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


async def post(worker: WorkerProcess, order_id: int, token: str) -> tuple[int, str | None]:
    """Post an order to the worker; returns the HTTP status, and the status of the order."""
    status, answer = await worker.post_order(
        order_value(order_id), Authorization=f"Bearer {token}", event_id=f"order-{order_id}-paid"
    )
    return status, answer.get("status")


async def accepted(port: int, count: int = 1) -> bool:
    """Whether the sample logger's page shows ``count`` accepted orders."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{LOOPBACK}:{port}/") as response,
    ):
        figures = json.loads(await response.text())
        return bool(figures["answers"]["accepted"] >= count)
