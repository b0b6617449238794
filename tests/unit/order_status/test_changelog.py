"""Who waits for the table's changes, and how long; Kafka is made by hand."""

from typing import Any, cast

from app.order_status.changelog import Changelog, Settle
from app.publishing.producer import Acknowledged, KafkaProducer


class SlowKafka:
    """A producer that acknowledges when told."""

    def __init__(self) -> None:
        self.settles: list[Settle] = []

    def enqueue(self, topic: str, settle: Settle, **record: Any) -> None:
        """Take a record."""
        self.settles.append(settle)

    def acknowledge(self) -> None:
        """Say that everything was written."""
        for offset, settle in enumerate(self.settles):
            settle(Acknowledged("changelog", 0, offset))
        self.settles = []


async def test_whoever_waits_is_let_go_once() -> None:
    """By Kafka's acknowledgement, or before it when nobody may wait any longer."""
    kafka = SlowKafka()
    changelog = Changelog(cast(KafkaProducer, kafka), "changelog")
    done: list[str] = []
    changelog.write(0, b"1", b"{}", lambda: done.append("acknowledged"))
    await changelog.drain(0.0)
    kafka.acknowledge()
    changelog.wait_no_longer()
    assert done == ["acknowledged"]

    changelog.write(0, b"2", b"{}", lambda: done.append("let go"))
    await changelog.drain(0.0)
    assert done == ["acknowledged"]
    changelog.wait_no_longer()
    kafka.acknowledge()
    assert done == ["acknowledged", "let go"]


async def test_a_change_without_a_place_moves_no_place() -> None:
    """Where Kafka does not say at which offset a change is, what was read before it stays so."""
    kafka = SlowKafka()
    changelog = Changelog(cast(KafkaProducer, kafka), "changelog")
    changelog.next_offsets = {0: 5}
    for partition in (0, 1):
        changelog.write(partition, b"1", b"{}", lambda: None)
    await changelog.drain(0.0)
    for partition, settle in enumerate(kafka.settles):
        settle(Acknowledged("changelog", partition, None))
    assert changelog.next_offsets == {0: 5}
