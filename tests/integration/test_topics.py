"""Waiting for Kafka and declaring topics, on the embedded cluster."""

import asyncio
import logging

import pytest

from order_relay.kafka import topic_reader
from order_relay.kafka.topic_reader import TopicReader
from order_relay.kafka.topics import Topics
from order_relay.settings import load_settings
from tests.support.embedded import EmbeddedKafka
from tests.support.producing import producing
from tests.support.stage import Stage


class Pauses:
    """Runs the next event at each pause of the worker; "stop" ends the wait."""

    def __init__(self, *events: object) -> None:
        self._events = list(events)
        self.lasted: list[float] = []

    async def __call__(self, seconds: float) -> bool:
        self.lasted.append(seconds)
        event = self._events.pop(0)
        if callable(event):
            event()
        return event == "stop"


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notice a silent Kafka sooner than in production."""
    monkeypatch.setattr("order_relay.kafka.topics.PROBE_SECONDS", 0.5)


def _told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [
        (line.levelno, line.getMessage())
        for line in caplog.records
        if line.name == "order_relay.kafka.topics"
    ]


async def test_kafka_that_comes_later_is_waited_for(
    fragile: EmbeddedKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says that Kafka is down, and another that it is back."""
    stage = fragile.stage()
    fragile.down()
    pauses = Pauses(None, None, fragile.up, *[None] * 20)
    assert await Topics(stage.settings()).wait_until_ready(pauses)
    missing, back = _told(caplog)
    assert missing[0] == logging.ERROR
    assert "cannot be reached" in missing[1]
    assert stage.bootstrap_servers in missing[1]
    assert "\n" not in missing[1]
    assert back == (logging.WARNING, f"Kafka works at {stage.bootstrap_servers}")


async def test_a_name_that_does_not_resolve_is_waited_for(
    caplog: pytest.LogCaptureFixture, stage: Stage
) -> None:
    """A host that DNS does not know is like Kafka that is down; a stop ends the wait."""
    settings = stage.settings(kafka_bootstrap_servers="kafka.invalid:9092")
    assert not await Topics(settings).wait_until_ready(Pauses("stop"))
    ((level, _),) = _told(caplog)
    assert level == logging.ERROR


async def test_existing_topics_are_left_alone(
    embedded: EmbeddedKafka, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Existing topics are not created again (the embedded cluster cannot create topics)."""
    embedded.create_topic(stage.settings().deliveries_changelog_topic)
    settings = stage.settings(topic_partitions=3)
    topics = Topics(settings)
    await topics.declare(settings)
    counts = await topics.partition_counts()
    assert (counts[stage.topic], counts[stage.dlq_topic]) == (3, 3)
    assert not _told(caplog)


async def test_a_broker_that_does_not_know_the_topic_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The changelog gets as many partitions as the source has, not as the settings say."""
    settings = load_settings(topic_partitions=3)
    topics = Topics(settings)
    made: dict[str, int] = {}
    answers: list[dict[str, int]] = [{}, {}, {settings.order_paid_topic: 12}]

    async def partition_counts() -> dict[str, int]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def create(name: str, partitions: int, config: dict[str, str]) -> None:
        made[name] = partitions  # succeeds for an existing topic, too

    monkeypatch.setattr(topics, "partition_counts", partition_counts)
    monkeypatch.setattr(topics, "_create", create)
    await topics.declare(settings)
    assert made[settings.deliveries_changelog_topic] == 12


async def test_fewer_partitions_than_configured_is_a_warning(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """A topic with fewer partitions is used unchanged, with one warning for each topic."""
    settings = stage.settings(topic_partitions=5, deliveries_store="off")
    await Topics(settings).declare(settings)
    told = _told(caplog)
    assert [level for level, _ in told] == [logging.WARNING] * 2
    for topic in (stage.topic, stage.dlq_topic):
        (line,) = [text for _, text in told if f" {topic} " in text]
        assert "3 partitions" in line
        assert "TOPIC_PARTITIONS=5" in line


async def test_a_slow_reader_of_a_topic_is_not_an_outage(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that pauses, such as a redrive with a rate, continues afterwards."""
    monkeypatch.setattr(topic_reader, "BATCH", 2)
    monkeypatch.setattr(topic_reader, "GIVE_UP_SECONDS", 0.05)
    async with producing(stage) as producer:
        for number in range(6):
            await producer.send(stage.topic, key=b"1", value=b"%d" % number, partition=0)
    read = []
    async with TopicReader(stage.settings(), stage.topic) as reader:
        async for message in reader.messages(0, 0, 6):
            await asyncio.sleep(0.1)
            read.append(message.value())
    assert read == [b"%d" % number for number in range(6)]
