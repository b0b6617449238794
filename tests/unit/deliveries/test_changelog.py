"""When the callbacks of the table's changes are called, with a fake Kafka."""

import asyncio
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
    """A producer that answers when told.

    Attributes:
        batches: What it was given: partition, records, and the callback.
        running: Whether it takes records.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[KeyAndValue], OnSettled]] = []
        self.running = True
        self._ends: dict[int, int] = {}

    def enqueue(
        self, topic: str, partition: int, records: Sequence[KeyAndValue], on_settled: OnSettled
    ) -> None:
        if not self.running:
            raise REFUSAL
        self.batches.append((partition, list(records), on_settled))

    def acknowledge(self, *partitions: int) -> None:
        """Acknowledge everything, or what these partitions got."""
        batches, self.batches = self.batches, []
        for partition, records, on_settled in batches:
            if partitions and partition not in partitions:
                self.batches.append((partition, records, on_settled))
                continue
            first = self._ends.get(partition, 0)
            self._ends[partition] = first + len(records)
            on_settled(first, None)

    def refuse(self) -> None:
        """Refuse everything that was sent."""
        batches, self.batches = self.batches, []
        for _, _, on_settled in batches:
            on_settled(None, REFUSAL)


class OfSlowKafka(Changelog):
    """A changelog that has been read to the beginning of its two partitions."""

    def __init__(self) -> None:
        self.kafka = SlowKafka()
        super().__init__(cast(KafkaProducer, self.kafka), "changelog")
        self.next_offsets = {0: 0, 1: 0}


@pytest.fixture
def changelog(monkeypatch: pytest.MonkeyPatch) -> OfSlowKafka:
    """One that writes refused changes again at once."""
    monkeypatch.setattr(changelog_module, "RETRY_SECONDS", 0.0)
    return OfSlowKafka()


async def test_each_callback_is_called_once(changelog: OfSlowKafka) -> None:
    """By Kafka's acknowledgement, or before it by ``release_waiters``, sent or not."""
    done: list[str] = []

    def write(name: str) -> None:
        changelog.write(0, b"1", b"{}", partial(done.append, name))

    write("acknowledged")
    await changelog.drain(0.0)
    assert done == []
    changelog.kafka.acknowledge()
    changelog.release_waiters()
    assert done == ["acknowledged"]
    write("sent")
    await changelog.drain(0.0)
    changelog.release_waiters()
    write("gathered")
    assert done == ["acknowledged", "sent"]
    changelog.release_waiters()
    write("later")
    await changelog.drain(0.0)
    assert done == ["acknowledged", "sent", "gathered"]
    changelog.kafka.acknowledge()
    assert done == ["acknowledged", "sent", "gathered", "later"]


async def test_a_change_waits_for_its_partition_alone(changelog: OfSlowKafka) -> None:
    """A leader that does not answer delays only the commits of its own partition."""
    done: list[int] = []
    for partition in (0, 1, 0, 1):
        changelog.write(partition, b"1", b"{}", partial(done.append, partition))
    await changelog.drain(0.0)
    changelog.kafka.acknowledge(0)
    assert done == [0, 0]
    assert changelog.next_offsets == {0: 2, 1: 0}


@pytest.mark.parametrize(
    ("first_offset", "refusal", "next_offset"),
    [
        (0, None, 3),
        (3, None, 0),  # another worker wrote before
        (None, None, 0),  # ... or in between, or Kafka does not say where they are
        (None, REFUSAL, 0),
    ],
)
async def test_the_next_offset_advances_with_consecutive_changes(
    changelog: OfSlowKafka,
    first_offset: int | None,
    refusal: PublishRefused | None,
    next_offset: int,
) -> None:
    """What another worker wrote must be read."""
    for _ in range(3):
        changelog.write(0, b"1", b"{}")
    await changelog.drain(0.0)
    ((_, _, on_settled),) = changelog.kafka.batches
    on_settled(first_offset, refusal)
    assert changelog.next_offsets == {0: next_offset, 1: 0}


async def test_an_unknown_offset_stays_unknown(changelog: OfSlowKafka) -> None:
    """A partition that was not read is read from its beginning."""
    changelog.write(2, b"1", b"{}")
    await changelog.drain(0.0)
    changelog.kafka.acknowledge()
    assert changelog.next_offsets == {0: 0, 1: 0}


async def test_changes_from_before_a_read_do_not_move_its_offset(changelog: OfSlowKafka) -> None:
    """The read may have missed them; later ones are another batch."""
    before = changelog.next_offsets
    changelog.write(0, b"1", b"{}")
    changelog.next_offsets = {0: 0}
    changelog.write(0, b"2", b"{}")
    await changelog.drain(0.0)
    assert [records for _, records, _ in changelog.kafka.batches] == [
        [(b"1", b"{}")],
        [(b"2", b"{}")],
    ]
    changelog.kafka.acknowledge()
    assert before[0] == 1
    assert changelog.next_offsets == {0: 0}


@pytest.mark.parametrize("running", [True, False])
async def test_nothing_waits_while_kafka_refuses(
    changelog: OfSlowKafka, caplog: pytest.LogCaptureFixture, running: bool
) -> None:
    """A refusal is logged once, and its end once."""
    done: list[int] = []
    changelog.kafka.running = running
    for number in (1, 2):
        for _ in range(2):
            changelog.write(0, b"1", b"{}", partial(done.append, number))
        await changelog.drain(0.0)
        for _, _, on_settled in changelog.kafka.batches:
            on_settled(None, REFUSAL)
        changelog.kafka.batches = []
    assert done == [1, 1, 2, 2]
    assert len([line for line in caplog.messages if "refuses its changelog" in line]) == 1
    changelog.kafka.running = True
    changelog.write(0, b"1", b"{}", partial(done.append, 3))
    assert done[-1] == 3
    await changelog.drain(0.0)
    changelog.kafka.acknowledge()
    assert len([line for line in caplog.messages if "again" in line]) == 1
    changelog.write(0, b"1", b"{}", partial(done.append, 4))
    assert done[-1] == 3


async def test_too_many_changes_in_flight_delay_nothing(
    changelog: OfSlowKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a bound a record is finished before its entry is in Kafka."""
    monkeypatch.setattr(changelog_module, "MAX_UNACKNOWLEDGED", 2)
    done: list[int] = []
    for number in range(3):
        changelog.write(0, b"%d" % number, b"{}", partial(done.append, number))
    assert done == [2]
    await changelog.drain(0.0)
    changelog.kafka.acknowledge()
    assert sorted(done) == [0, 1, 2]


async def sent(changelog: OfSlowKafka) -> list[tuple[int, list[KeyAndValue]]]:
    """What was sent, once everything that is due by now was."""
    for _ in range(3):  # refused changes are due at once
        await asyncio.sleep(0)
    await changelog.drain(0.0)
    return [(partition, records) for partition, records, _ in changelog.kafka.batches]


async def test_refused_changes_are_written_again(changelog: OfSlowKafka) -> None:
    """Until Kafka accepts them, each key's latest only; callbacks are not called again."""
    done: list[str] = []
    for partition, key, value in (
        (0, b"1", b"a"),
        (0, b"2", b"b"),
        (0, b"2", b"c"),
        (1, b"1", b"d"),
    ):
        changelog.write(partition, key, value, partial(done.append, key.decode()))
    await changelog.drain(0.0)
    for _ in range(2):
        changelog.kafka.refuse()
        again = await sent(changelog)
        assert again == [(0, [(b"1", b"a"), (b"2", b"c")]), (1, [(b"1", b"d")])]
    changelog.kafka.acknowledge()
    assert await sent(changelog) == []
    assert done == ["1", "2", "2", "1"]


async def test_changes_that_are_perhaps_not_in_kafka_are_written_again(
    changelog: OfSlowKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """If another worker wrote in between, one may be missing; no refusal is logged."""
    for key in (b"1", b"2"):
        changelog.write(0, key, b"{}")
    await changelog.drain(0.0)
    ((_, records, on_settled),) = changelog.kafka.batches
    changelog.kafka.batches = []
    on_settled(None, None)
    assert await sent(changelog) == [(0, records)]
    assert not [line for line in caplog.messages if "refuses" in line]


async def test_a_newer_change_is_not_undone_by_one_that_was_refused(changelog: OfSlowKafka) -> None:
    """Neither by one refused while the newer one was in flight, nor by one refused before it."""
    changelog.write(0, b"1", b"old")
    await changelog.drain(0.0)
    changelog.write(0, b"1", b"new")
    changelog.kafka.refuse()
    assert await sent(changelog) == [(0, [(b"1", b"new")])]
    changelog.kafka.refuse()
    changelog.write(0, b"1", b"newest")
    assert await sent(changelog) == [(0, [(b"1", b"newest")])]


async def test_nothing_is_written_again_for_partitions_that_were_given_up(
    changelog: OfSlowKafka,
) -> None:
    """Another worker may have written newer changes since."""
    for partition in (0, 1):
        changelog.write(partition, b"1", b"{}")
    await changelog.drain(0.0)
    later = changelog.kafka.batches.pop()
    changelog.kafka.refuse()
    changelog.release_waiters()
    changelog.kafka.batches = [later]
    changelog.kafka.refuse()
    assert await sent(changelog) == []


async def test_refused_changes_that_are_kept_are_bounded(
    changelog: OfSlowKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changelog that Kafka refuses for days uses bounded memory."""
    monkeypatch.setattr(changelog_module, "MAX_UNACKNOWLEDGED", 2)
    for number in range(3):
        changelog.write(0, b"%d" % number, b"{}")
    await changelog.drain(0.0)
    changelog.kafka.refuse()
    assert await sent(changelog) == [(0, [(b"0", b"{}"), (b"1", b"{}")])]
