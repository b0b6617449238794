"""The quickstart's parts that talk: its Kafka, its sample logger, its reader of dead letters."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from confluent_kafka import Producer

from app.publishing.producer import Headers
from app.quickstart.dead_letter_reader import DeadLetterReader
from app.quickstart.demo_settings import demo_settings
from app.quickstart.embedded_cluster import EmbeddedCluster
from app.quickstart.errors import CannotRun
from app.quickstart.logger_script import (
    RETRY_AFTER_SECONDS,
    Answer,
    Kind,
    LoggerScript,
    Outages,
)
from app.quickstart.sample_logger import SampleLogger
from app.quickstart.worker_process import check_web_port
from tests.support.kafka.ports import free_ports
from tests.support.waiting import eventually


class Answers(LoggerScript):
    """A script that does as the key says."""

    def __init__(self) -> None:
        super().__init__(1, Outages())

    def answer(self, event_id: str, now: float) -> Answer:
        """The kind named by the key."""
        return Answer(Kind[event_id], 0.0)


async def test_the_sample_logger_does_what_its_script_says() -> None:
    """Each kind is a real answer over HTTP, and only accepted keys are told."""
    accepted: list[str] = []
    logger = SampleLogger(Answers(), accepted.append)
    port = free_ports(1)[0]
    await logger.start(port)
    url = f"http://127.0.0.1:{port}/logs"
    short = aiohttp.ClientTimeout(total=0.3)
    try:
        async with aiohttp.ClientSession() as session:

            async def post(kind: Kind) -> aiohttp.ClientResponse:
                headers = {"Idempotency-Key": kind.name}
                async with session.post(url, data=b"{}", headers=headers, timeout=short) as answer:
                    return answer

            assert (await post(Kind.ACCEPTED)).status == 201
            assert (await post(Kind.REFUSED)).status == 422
            assert (await post(Kind.UNAVAILABLE)).status == 503
            busy = await post(Kind.BUSY)
            assert busy.status == 429
            assert busy.headers["Retry-After"] == str(RETRY_AFTER_SECONDS)
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await post(Kind.RESET)
            with pytest.raises(TimeoutError):
                await post(Kind.HANGING)
    finally:
        await logger.stop()
        await logger.stop()
    assert accepted == ["ACCEPTED"]
    assert logger.requests == 6
    assert set(logger.answers) == set(Kind)


async def test_a_port_in_use_is_named_with_the_way_out() -> None:
    """One line says which port, for what, and how to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotRun, match=rf"port {port} is in use.*LOGGER_PORT"):
            await SampleLogger(Answers(), lambda _: None).start(port)
        with pytest.raises(CannotRun, match=rf"port {port} is in use.*WEB_PORT"):
            check_web_port(port)


def test_a_cluster_that_does_not_start_is_one_line() -> None:
    """What librdkafka says against it stands in the line."""
    with pytest.raises(CannotRun, match=r"embedded Kafka cluster.*test\.mock\.num\.brokers"):
        EmbeddedCluster(brokers=-1).start()


async def test_every_dead_letter_is_read_to_the_very_end() -> None:
    """Letters from before the start, from while it runs, and from just before the end."""
    cluster = EmbeddedCluster()
    settings = demo_settings(servers="127.0.0.1:1", logger_port=3000, web_port=6066)
    servers = cluster.start([settings.dlq_topic])
    assert len(servers.split(",")) == 3
    settings = demo_settings(servers=servers, logger_port=3000, web_port=6066)
    producer = Producer({"bootstrap.servers": servers, "log_level": 0})
    found: dict[str, str] = {}

    def write(number: int) -> None:
        for letter in range(number, number + 10):
            event_id = f"event-{letter}".encode()
            headers: Headers = [("event-id", event_id), ("dlq-reason", b"rejected")]
            producer.produce(settings.dlq_topic, b"value", f"{letter}".encode(), headers=[*headers])
        assert producer.flush(10) == 0

    write(0)
    reader = DeadLetterReader(settings, found.__setitem__)
    try:
        reader.start()
        await eventually(lambda: len(found) == 10)
        write(10)
        await eventually(lambda: len(found) == 20)
        write(20)
        producer.produce(settings.dlq_topic, b"no headers", partition=0)
        assert producer.flush(10) == 0
    finally:
        await reader.finish()
        await reader.finish()
        cluster.stop()
    nameless = [event_id for event_id in found if "without event-id" in event_id]
    assert len(nameless) == 1
    assert found.pop(nameless[0]) == "no reason given"
    assert found == {f"event-{letter}": "rejected" for letter in range(30)}
