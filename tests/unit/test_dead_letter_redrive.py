"""Redriving in batches: what is published, what is committed, and when it ends early."""

from collections.abc import AsyncIterator, Sequence

import click
import pytest

from order_relay.cli.dlq.letters import POSITION, TIME, check_selection, letter_filter
from order_relay.cli.dlq.redrive import add_result
from order_relay.cli.output import ChangeReport
from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.letter import Letter, LetterPosition
from order_relay.dead_letters.open_topic import OpenTopic, TopicLog
from order_relay.dead_letters.redrive import BATCH, NO_ROOM, LetterResult, Redrive, RedriveResult
from order_relay.dead_letters.redrive_group import Membership, RedriveGroup
from order_relay.dead_letters.redriven import Redriven, RedriveProgress
from order_relay.delivery.progress import Commit
from order_relay.errors import PublishRefused, RecordTooLarge, TopicUnusable
from order_relay.kafka.topic_reader import Extent
from order_relay.settings import Settings
from tests.support.publish_fakes import FakeProducer


class Topics:
    """A dead-letter topic of one partition, and what was published to the orders' topic."""

    def __init__(self, *offsets: int) -> None:
        self.held = [Letter("dlq", 0, offset, b"k", b"%d" % offset) for offset in offsets]
        self.errors: dict[int, Exception] = {}
        self.producer = FakeProducer(refuse=lambda sent: self.errors.get(int(sent.value or b"")))

    @property
    def published(self) -> list[tuple[bytes | None, int | None]]:
        return [(sent.value, sent.partition) for sent in self.producer.acknowledged]

    async def letters(self, partition: int, start: int, end: int) -> AsyncIterator[Letter]:
        for letter in self.held:
            if letter.partition == partition and start <= letter.offset < end:
                yield letter


class FakeMembership(Membership):
    """Stores commits; may be lost, or refuse them."""

    def __init__(self) -> None:
        super().__init__("dlq", consumer=None)
        self.error: TopicUnusable | None = None
        self.commits: list[Commit] = []

    async def commit(self, partition: int, commit: Commit) -> None:
        assert self.busy.locked()
        if self.error is not None:
            raise self.error
        self.commits.append(commit)


def progress_of(topics: Topics) -> RedriveProgress:
    """Nothing was redriven yet."""
    offsets = [letter.offset for letter in topics.held]
    return RedriveProgress(Redriven(), offsets, max(offsets, default=-1) + 1)


async def redriven(
    redrive: Redrive, topics: Topics, membership: Membership, chosen: Sequence[int]
) -> list[LetterResult]:
    """Redrive letters of partition 0 to three partitions."""
    run = redrive.run(topics.letters, membership, 3, {0: chosen}, {0: progress_of(topics)})
    return [one async for one in run]


def prepared(topics: Topics, rate: float | None = None) -> Redrive:
    """A redrive."""
    return Redrive(topics.producer, topic="orders", consumer="order_logging", rate=rate)


async def test_batches_are_published_in_order_and_remembered() -> None:
    """Each batch is committed once; what was not chosen stays open."""
    topics, membership = Topics(*range(2 * BATCH + 10)), FakeMembership()
    chosen = [letter.offset for letter in topics.held if letter.offset != 3]
    redrive = prepared(topics)
    results = await redriven(redrive, topics, membership, chosen)
    assert [one.offset for one in results] == chosen
    assert {one.result for one in results} == {RedriveResult.REDRIVEN}
    assert [value for value, _ in topics.published] == [b"%d" % offset for offset in chosen]
    assert len(membership.commits) == 3
    known = Redriven(membership.commits[-1])
    assert [offset for offset in range(2 * BATCH + 10) if offset not in known] == [3]
    assert redrive.remark == ""


async def test_the_partition_is_the_records_own_where_there_is_one() -> None:
    """If the topic lacks that partition, the key decides."""
    topics = Topics()
    topics.held = [Letter("dlq", number, 0, b"k", b"0") for number in (2, 3)]
    redrive = prepared(topics)
    both = {number: RedriveProgress(Redriven(), [0], 1) for number in (2, 3)}
    run = redrive.run(topics.letters, FakeMembership(), 3, {2: [0], 3: [0]}, both)
    assert len([one async for one in run]) == 2
    assert topics.published == [(b"0", 2), (b"0", None)]


async def test_what_kafka_refuses_ends_it_and_stays_open() -> None:
    """The rest of the batch is committed; the next batch does not begin."""
    topics, membership = Topics(*range(2 * BATCH)), FakeMembership()
    topics.errors[1] = PublishRefused("orders", "timed out")
    redrive = prepared(topics)
    results = await redriven(redrive, topics, membership, range(2 * BATCH))
    assert len(results) == BATCH
    assert [one.offset for one in results if one.result is RedriveResult.FAILED] == [1]
    assert "timed out" in redrive.remark
    known = Redriven(membership.commits[-1])
    assert (0 in known, 1 in known, 2 in known) == (True, False, True)


async def test_a_letter_that_is_too_large_holds_nothing_up() -> None:
    """Only it fails."""
    topics, membership = Topics(*range(BATCH + 1)), FakeMembership()
    topics.errors[1] = RecordTooLarge("orders", 7)
    redrive = prepared(topics)
    results = await redriven(redrive, topics, membership, range(BATCH + 1))
    assert [one.offset for one in results if one.result is RedriveResult.FAILED] == [1]
    assert (len(topics.published), redrive.remark) == (BATCH, "")


async def test_nothing_is_published_that_is_not_ours_any_more() -> None:
    """After another member joined, or a commit was refused, no batch begins."""
    topics, membership = Topics(*range(2 * BATCH)), FakeMembership()
    membership.lost = True
    redrive = prepared(topics)
    assert await redriven(redrive, topics, membership, range(2 * BATCH)) == []
    assert topics.published == []
    assert "another dlq redrive" in redrive.remark

    membership = FakeMembership()
    membership.error = TopicUnusable("dlq", "the group rebalances")
    redrive = prepared(topics)
    assert len(await redriven(redrive, topics, membership, range(2 * BATCH))) == BATCH
    assert len(topics.published) == BATCH
    assert "may be redriven once more by the next run, with the same event-ids" in redrive.remark


async def test_stopping_ends_it_after_the_batch_under_way() -> None:
    """Also while it waits because of the rate; the first reason stays."""
    topics, membership = Topics(*range(100)), FakeMembership()
    redrive, progress = prepared(topics, rate=0.01), progress_of(topics)
    results = []
    async for one in redrive.run(topics.letters, membership, 3, {0: range(100)}, {0: progress}):
        results.append(one)
        redrive.stop("stopped by a signal")
        redrive.stop("twice")
    assert [one.offset for one in results] == [0]
    assert (len(topics.published), redrive.remark) == (1, "stopped by a signal")
    assert membership.commits == [Commit(1, "")]


async def test_letters_that_are_gone_or_cannot_be_remembered_are_left() -> None:
    """One was deleted; for others a commit has no room."""
    topics, membership = Topics(0, 2), FakeMembership()
    results = await redriven(prepared(topics), topics, membership, [0, 1, 2])
    (gone,) = [one for one in results if one.result is not RedriveResult.REDRIVEN]
    assert (gone.offset, gone.result) == (1, RedriveResult.FAILED)
    assert gone.reason == "it is no longer in the topic"

    class NoRoom(RedriveProgress):
        def can_remember(self, offsets: object) -> bool:
            return False

    topics = Topics(0, 2)
    no_room = NoRoom(Redriven(), [0, 2], 3)
    run = prepared(topics).run(topics.letters, membership, 3, {0: [2]}, {0: no_room})
    results = [one async for one in run]
    assert [(one.result, one.reason) for one in results] == [(RedriveResult.FAILED, NO_ROOM)]
    assert topics.published == []
    for named in (True, False):
        report = ChangeReport("letter", "redriven", named=named, as_json=True)
        add_result(report, results[0])
        assert report.status == 1


def test_a_topic_that_was_made_anew() -> None:
    """Its offsets belong to other letters than those that were read: it is refused."""
    settings = Settings(dlq_topic="dlq")
    log, group = TopicLog(settings), RedriveGroup(settings)
    opened = OpenTopic(log, group, {0: Extent(3, 9), 1: Extent(0, 0)}, {})
    opened.check_same({0: Extent(3, 9), 1: Extent(0, 0)})
    opened.check_same({0: Extent(9, 12), 1: Extent(0, 4), 2: Extent(0, 1)})
    for anew in (Extent(0, 9), Extent(3, 8)):
        with pytest.raises(TopicUnusable, match=r"topic dlq .* made anew meanwhile"):
            opened.check_same({0: anew, 1: Extent(0, 0)})
    with pytest.raises(TopicUnusable, match="partition 1"):
        opened.check_same({0: Extent(3, 9)})


@pytest.mark.parametrize(
    ("positions", "everything", "filters", "told"),
    [
        ((), False, LetterFilter(), "say which letters"),
        ((LetterPosition(0, 1),), True, LetterFilter(), "not both"),
        ((LetterPosition(0, 1),), False, LetterFilter(reason="rejected"), "not both"),
    ],
)
def test_choices_that_make_no_sense(
    positions: tuple[LetterPosition, ...], everything: bool, filters: LetterFilter, told: str
) -> None:
    """One line says what is wrong and what is allowed; the status is 2."""
    with pytest.raises(click.ClickException, match=told) as raised:
        check_selection(positions, everything, filters)
    assert raised.value.exit_code == 2


def test_choices() -> None:
    """Positions, filters, all, and all that match."""
    check_selection((LetterPosition(0, 1),), False, LetterFilter())
    check_selection((), False, LetterFilter(reason="rejected"))
    check_selection((), True, LetterFilter())
    check_selection((), True, LetterFilter(key="7"))
    nothing = dict.fromkeys(("reason", "http_status", "key", "event_id"))
    early, late = (TIME.convert(text, None, None) for text in ("2h", "1h"))
    assert letter_filter(**nothing, since=early, until=late).since == early
    with pytest.raises(click.ClickException, match="before --until"):
        letter_filter(**nothing, since=late, until=early)


@pytest.mark.parametrize(
    "text", ["", "7", "0:", ":1", "-1:0", "0:1:2", "²:1", "a:b", "0:" + "9" * 19]
)
def test_invalid_positions(text: str) -> None:
    """Only PARTITION:OFFSET is a position."""
    assert POSITION.convert("0:17", None, None) == LetterPosition(0, 17)
    with pytest.raises(click.BadParameter, match="PARTITION:OFFSET"):
        POSITION.convert(text, None, None)


@pytest.mark.parametrize(("setting", "session"), [(30_000, 6_000), (6_000, 6_000), (2_500, 2_500)])
def test_a_killed_redrive_is_forgotten_after_the_session_of_the_settings(
    setting: int, session: int
) -> None:
    """After 6 s, the brokers' default minimum, or sooner if the settings say so."""
    settings = Settings(kafka_session_timeout_ms=setting)
    assert RedriveGroup(settings).session_ms == session
