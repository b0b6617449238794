"""When the callbacks of the table's changes are called, on a fake of Kafka."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import pytest

from order_relay.deliveries import changelog as changelog_module
from order_relay.deliveries.changelog import Changelog
from order_relay.errors import PublishRefused
from order_relay.kafka.producer import KafkaProducer, KeyAndValue, OnSettled

REFUSAL = PublishRefused("changelog", "not authorized")


class SlowKafka:
    """A producer that acknowledges when told.

    Attributes:
        batches: What it was given: partition, records, and whom to tell.
        written: How many records each partition has.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[KeyAndValue], OnSettled]] = []
        self.written: dict[int, int] = {}

    def enqueue(
        self, topic: str, partition: int, records: Sequence[KeyAndValue], on_settled: OnSettled
    ) -> None:
        """Take records of a partition."""
        self.batches.append((partition, list(records), on_settled))

    def write(self, partition: int, records: int = 1) -> list[int | None]:
        """Append records, of whomever; returns their offsets."""
        first = self.written.get(partition, 0)
        self.written[partition] = first + records
        return list(range(first, first + records))

    def acknowledge(self) -> None:
        """Say that everything was written."""
        batches, self.batches = self.batches, []
        for partition, records, on_settled in batches:
            on_settled(self.write(partition, len(records)), [])

    def refuse(self) -> None:
        """Say that nothing was."""
        batches, self.batches = self.batches, []
        for _, records, on_settled in batches:
            on_settled([], [REFUSAL] * len(records))


@pytest.fixture
def kafka() -> SlowKafka:
    """The producer of ``changelog``."""
    return SlowKafka()


@pytest.fixture
def changelog(kafka: SlowKafka) -> Changelog:
    """A changelog that has been read to the beginning of its two partitions."""
    made = Changelog(cast(KafkaProducer, kafka), "changelog")
    made.next_offsets = {0: 0, 1: 0}
    return made


async def test_each_callback_is_called_once(changelog: Changelog, kafka: SlowKafka) -> None:
    """By Kafka's acknowledgement, or before it by ``release_waiters``."""
    done: list[str] = []
    changelog.write(0, b"1", b"{}", lambda: done.append("acknowledged"))
    await changelog.drain(0.0)
    kafka.acknowledge()
    changelog.release_waiters()
    assert done == ["acknowledged"]

    changelog.write(0, b"2", b"{}", lambda: done.append("let go"))
    await changelog.drain(0.0)
    assert done == ["acknowledged"]
    changelog.release_waiters()
    kafka.acknowledge()
    assert done == ["acknowledged", "let go"]


async def test_changes_that_are_not_sent_yet_can_be_let_go(
    changelog: Changelog, kafka: SlowKafka
) -> None:
    """Each once, and those that follow them wait for their own answer."""
    done: list[int] = []
    changelog.write(0, b"1", b"{}", partial(done.append, 1))
    changelog.release_waiters()
    assert done == [1]
    changelog.write(0, b"2", b"{}", partial(done.append, 2))
    assert done == [1]
    changelog.release_waiters()
    await changelog.drain(0.0)
    kafka.acknowledge()
    assert done == [1, 2]


async def test_a_change_waits_for_its_partition_alone(
    changelog: Changelog, kafka: SlowKafka
) -> None:
    """A leader that does not answer keeps no other partition's records from their commit."""
    done: list[int] = []
    for partition in (0, 1, 0, 1):
        changelog.write(partition, b"1", b"{}", partial(done.append, partition))
    await changelog.drain(0.0)
    ((partition, records, on_settled), _) = kafka.batches
    on_settled(kafka.write(partition, len(records)), [])
    assert done == [0, 0]
    assert changelog.next_offsets == {0: 2, 1: 0}


async def test_a_change_without_a_place_moves_no_place(
    changelog: Changelog, kafka: SlowKafka
) -> None:
    """Where Kafka does not say at which offset a change is, what was read before it stays so."""
    changelog.next_offsets = {0: 5}
    for partition in (0, 1):
        changelog.write(partition, b"1", b"{}", lambda: None)
    await changelog.drain(0.0)
    for _, _, on_settled in kafka.batches:
        on_settled([None], [])
    assert changelog.next_offsets == {0: 5}


async def test_a_change_behind_anothers_moves_no_place(
    changelog: Changelog, kafka: SlowKafka
) -> None:
    """Also where it stands within a batch: what another worker wrote has to be read."""
    for _ in range(3):
        changelog.write(0, b"1", b"{}")
        changelog.write(1, b"1", b"{}")
    await changelog.drain(0.0)
    (_, _, on_settled), (_, _, on_others_settled) = kafka.batches
    on_settled([0, 1, 3], [])
    # One of the three is refused, and another worker's stands in its place.
    on_others_settled([0, 2], [REFUSAL])
    assert changelog.next_offsets == {0: 0, 1: 0}


async def test_a_refused_change_has_no_place(changelog: Changelog, kafka: SlowKafka) -> None:
    """What was written around it is known all the same."""
    for _ in range(3):
        changelog.write(0, b"1", b"{}")
    await changelog.drain(0.0)
    ((_, _, on_settled),) = kafka.batches
    on_settled([0, 1], [REFUSAL])
    assert changelog.next_offsets[0] == 2


async def test_changes_from_before_a_reading_move_its_place_no_more(
    changelog: Changelog, kafka: SlowKafka
) -> None:
    """It may have missed them; those that follow are another batch."""
    before = changelog.next_offsets
    changelog.write(0, b"1", b"{}")
    changelog.next_offsets = {0: 0}
    changelog.write(0, b"2", b"{}")
    await changelog.drain(0.0)
    assert [records for _, records, _ in kafka.batches] == [[(b"1", b"{}")], [(b"2", b"{}")]]
    kafka.acknowledge()
    assert before[0] == 1
    assert changelog.next_offsets == {0: 0}


async def test_nothing_waits_while_kafka_refuses(
    changelog: Changelog, kafka: SlowKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """One refusal among the answers is enough; it is said once, and once that it is over."""
    done: list[int] = []
    for number in (1, 2):
        changelog.write(0, b"1", b"{}", partial(done.append, number))
        changelog.write(0, b"1", b"{}", partial(done.append, number))
        await changelog.drain(0.0)
        for _, _, on_settled in kafka.batches:
            on_settled([7], [REFUSAL])
        kafka.batches = []
    assert done == [1, 1, 2, 2]
    assert len([line for line in caplog.messages if "refuses its changelog" in line]) == 1
    changelog.write(0, b"1", b"{}", partial(done.append, 3))
    assert done[-1] == 3
    await changelog.drain(0.0)
    kafka.acknowledge()
    assert len([line for line in caplog.messages if "again" in line]) == 1
    changelog.write(0, b"1", b"{}", partial(done.append, 4))
    assert done[-1] == 3


async def test_too_many_changes_on_their_way_hold_nothing_up(
    changelog: Changelog, kafka: SlowKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a bound a record is finished before its entry is in Kafka."""
    monkeypatch.setattr(changelog_module, "MAX_UNACKNOWLEDGED", 2)
    done: list[int] = []
    for number in range(3):
        changelog.write(0, b"%d" % number, b"{}", partial(done.append, number))
    assert done == [2]
    await changelog.drain(0.0)
    kafka.acknowledge()
    assert sorted(done) == [0, 1, 2]
