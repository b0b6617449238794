"""Open dead letters: counting, finding, grouping, and what is read again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from order_relay.dead_letters.filters import LetterFilter
from order_relay.dead_letters.index import LetterIndex
from order_relay.dead_letters.letter import Letter
from order_relay.dead_letters.open_letters import OpenFigures, OpenLetters
from order_relay.dead_letters.redriven import Redriven, RedriveProgress
from order_relay.delivery.progress import Commit
from order_relay.errors import KafkaUnavailable, RelayError, TopicUnusable
from order_relay.kafka.topic_reader import Extent

MOMENT = datetime(2025, 12, 19, 10, 30, tzinfo=UTC)
OPEN_ENDED = LetterFilter()


def letter(
    offset: int,
    *,
    partition: int = 0,
    reason: str = "rejected",
    status: int = 400,
    message: str = "HTTP 400: no such user 17",
    key: str = "",
    failed_at: datetime = MOMENT,
) -> Letter:
    """A dead letter as the relay writes it."""
    headers = {
        "dlq-reason": reason, "dlq-http-status": str(status),
        "dlq-failed-at": failed_at.isoformat(), "kafka_dlt-exception-message": message,
        "event-id": f"event-{partition}-{offset}",
    }  # fmt: skip
    return Letter(
        "orders.DLQ",
        partition,
        offset,
        (key or str(offset)).encode(),
        b'{"orderId":%d}' % offset,
        tuple((name, value.encode()) for name, value in headers.items()),
    )


def indexed(*letters: Letter) -> LetterIndex:
    """An index with these letters."""
    index = LetterIndex()
    index.add(letters)
    return index


def offsets(index: LetterIndex, wanted: LetterFilter) -> list[int]:
    """The offsets of what it finds."""
    return [found.offset for found in index.find(wanted, limit=1000)]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (LetterFilter(), [0, 1, 2]),
        (LetterFilter(reason="rejected"), [0, 2]),
        (LetterFilter(http_status=503), [1]),
        (LetterFilter(key="two"), [2]),
        (LetterFilter(key="1"), [1]),
        (LetterFilter(event_id="event-0-1"), [1]),
        (LetterFilter(message="NO SUCH"), [0]),
        (LetterFilter(message="100%"), []),
        (LetterFilter(message="HTTP%400"), []),
        (LetterFilter(message="HTTP_400"), []),
        (LetterFilter(message="\\"), []),
        (LetterFilter(message="http 400", reason="rejected"), [0, 2]),
        (LetterFilter(since=MOMENT + timedelta(hours=1)), [1, 2]),
        (LetterFilter(until=MOMENT + timedelta(hours=1)), [0]),
        (LetterFilter(reason="rejected", http_status=503), []),
        (LetterFilter(reason="' OR 1=1 --"), []),
    ],
    ids=str,
)
def test_finds_what_the_filter_of_the_commands_finds(
    wanted: LetterFilter, found: list[int]
) -> None:
    """The index finds what reading every letter would."""
    letters = [
        letter(0),
        letter(1, reason="retries_exhausted", status=503, message="HTTP 503: busy",
               failed_at=MOMENT + timedelta(hours=1)),
        letter(2, key="two", message="HTTP 400: bad", failed_at=MOMENT + timedelta(hours=2)),
    ]  # fmt: skip
    index = indexed(*letters)
    assert offsets(index, wanted) == found == [one.offset for one in letters if wanted.finds(one)]
    assert index.count(wanted) == len(found)
    assert sum(group.count for group in index.groups(wanted, limit=10)) == len(found)


def test_a_message_is_found_in_the_index_as_in_the_topic() -> None:
    """In upper or lower case of any alphabet, and also at a long message's end."""
    letters = [
        letter(0, message="HTTP 422: Ungültig"),
        letter(1, message="HTTP 422: UNGÜLTIG"),
        letter(2, message=f"RuntimeError: {'a' * 1000} at the end"),
    ]
    index = indexed(*letters)
    for text, found in (("ungültig", [0, 1]), ("UNGÜLTIG", [0, 1]), ("At the end", [2])):
        wanted = LetterFilter(message=text)
        assert offsets(index, wanted) == found
        assert [one.offset for one in letters if wanted.finds(one)] == found
    assert len(index.find(LetterFilter(), after=(0, 1), limit=1)[0].message or "") == 300


def test_groups_are_alike_but_for_numbers() -> None:
    """Letters of one cause are one group with its count and times; the largest is first."""
    index = indexed(
        letter(0, message="HTTP 400: no such user 17"),
        letter(1, message="HTTP 400: no such user 4", failed_at=MOMENT + timedelta(hours=1)),
        letter(2, status=422, message="HTTP 422: order 550e8400-e29b-41d4-a716-446655440000"),
    )
    first, second = index.groups(OPEN_ENDED, limit=10)
    assert (first.kind, first.count) == ("HTTP #: no such user #", 2)
    assert (first.oldest, first.newest) == (MOMENT.timestamp(), MOMENT.timestamp() + 3600)
    assert (second.kind, second.count) == ("HTTP #: order #", 1)
    assert index.groups(OPEN_ENDED, limit=1) == [first]
    assert (first.common_text, second.common_text) == (": no such user", ": order")


def test_pages_follow_one_another() -> None:
    """The last letter of a page is where the next one begins, across partitions."""
    index = indexed(*(letter(n % 5, partition=n // 5) for n in range(12)))
    seen: list[tuple[int, int]] = []
    after = (-1, -1)
    while page := index.find(OPEN_ENDED, after=after, limit=5):
        seen += [(one.partition, one.offset) for one in page]
        after = seen[-1]
    assert seen == [(n // 5, n % 5) for n in range(12)]


def test_a_letter_of_another_program_is_found() -> None:
    """Without headers, with a key that is not text, and without a value."""
    index = indexed(Letter("orders.DLQ", 0, 7, b"\xff\x00", None))
    (found,) = index.find(OPEN_ENDED, limit=1)
    assert (found.reason, found.failed_at, found.key) == ("", None, r"\xff00")
    assert index.by_reason() == [("", 1, None)]


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_what_is_open_is_what_was_neither_redriven_nor_deleted(
    written: set[int], chosen: set[int], low: int
) -> None:
    """The index holds all but the redriven and deleted ones."""
    index = indexed(*map(letter, written))
    progress = RedriveProgress(Redriven(), sorted(written), 61)
    redriven = written & chosen
    for offset in redriven:
        progress.finish(offset)
    index.close_redriven(0, Redriven(progress.commit(), end=61))
    still_open = written - redriven
    assert set(offsets(index, OPEN_ENDED)) == still_open
    assert index.remove_below(0, low) == len({one for one in still_open if one < low})
    assert set(offsets(index, OPEN_ENDED)) == {one for one in still_open if one >= low}


class Topic:
    """A dead-letter topic of one partition, with its group's commit."""

    def __init__(self, *letters: Letter) -> None:
        self.letters_there = list(letters)
        self.low = 0
        self.commit: Commit | None = None
        self.problem: RelayError | None = None
        self.read: list[int] = []
        self.deleted = 0

    @property
    def end(self) -> int:
        """The next letter's offset."""
        return self.letters_there[-1].offset + 1 if self.letters_there else self.low

    async def extents(self) -> dict[int, Extent]:
        """See ``TopicLog``."""
        if self.problem is not None:
            raise self.problem
        return {0: Extent(self.low, self.end)}

    async def letters(self, partition: int, start: int, end: int) -> AsyncIterator[Letter]:
        """See ``TopicLog``."""
        for one in self.letters_there:
            if start <= one.offset < end:
                self.read.append(one.offset)
                yield one

    async def commits(self, partitions: Collection[int]) -> Mapping[int, Commit]:
        """See ``RedriveGroup``."""
        return {} if self.commit is None else {0: self.commit}

    def redrive(self, *chosen: int) -> None:
        """Redrive letters as the command does."""
        known = Redriven(self.commit, end=self.end)
        there = [one.offset for one in self.letters_there if one.offset >= known.below]
        progress = RedriveProgress(known, there, self.end)
        for offset in chosen:
            progress.finish(offset)
        self.commit = progress.commit()

    def delete_before(self, low: int) -> None:
        """Delete letters as retention does."""
        self.low = low
        self.letters_there = [one for one in self.letters_there if one.offset >= low]

    async def looked_at(self) -> OpenLetters:
        """What a worker that starts now knows after its first look."""
        watch = self.watched()
        await watch.refresh(self)
        return watch

    def watched(
        self,
        on_figures: Callable[[OpenFigures | None], None] = lambda _: None,
        *,
        interval_seconds: float = 3600.0,
    ) -> OpenLetters:
        """What a worker that starts now knows."""

        @asynccontextmanager
        async def opened() -> AsyncIterator[Topic]:
            yield self

        def deleted(number: int) -> None:
            self.deleted += number

        return OpenLetters(
            opened,
            self.commits,
            on_figures,
            deleted,
            topic="orders.DLQ",
            interval_seconds=interval_seconds,
        )


async def test_open_letters_are_counted_over_restarts() -> None:
    """A letter that was not redriven is open, also for a later worker."""
    topic = Topic(letter(0), letter(1), letter(2, reason="tombstone"))
    watch = await topic.looked_at()
    assert watch.figures == OpenFigures({"rejected": 2, "tombstone": 1}, MOMENT.timestamp())
    topic.redrive(0, 2)
    topic.letters_there.append(letter(3))
    await watch.refresh(topic)
    later = await topic.looked_at()
    assert watch.figures == later.figures == OpenFigures({"rejected": 2}, MOMENT.timestamp())
    topic.redrive(1, 3)
    await watch.refresh(topic)
    assert watch.figures == OpenFigures({}, None)


async def test_each_letter_is_read_once() -> None:
    """A look reads only new letters; a new worker begins at the first open one."""
    topic = Topic(*map(letter, range(5)))
    watch = await topic.looked_at()
    await watch.refresh(topic)
    topic.letters_there.append(letter(5))
    await watch.refresh(topic)
    assert topic.read == [0, 1, 2, 3, 4, 5]
    topic.redrive(0, 1, 2)
    topic.read.clear()
    await topic.looked_at()
    assert topic.read == [3, 4, 5]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The ERROR lines: that open letters were deleted, and how many."""
    lines = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert all(line.startswith("Open dead letters were deleted from their") for line in lines)
    return [line.partition("letters=")[2].split()[0] for line in lines]


async def test_open_letters_that_kafka_deletes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """If retention deletes open letters, there are an ERROR line and a count."""
    topic = Topic(*map(letter, range(4)))
    watch = await topic.looked_at()
    topic.redrive(0)
    topic.delete_before(3)
    await watch.refresh(topic)
    assert (topic.deleted, errors(caplog)) == (2, ["2"])
    assert watch.figures is not None
    assert watch.figures.total == 1


async def test_open_letters_that_were_never_seen_are_told() -> None:
    """Letters that came after the last look, and were deleted before the next one."""
    topic = Topic(*map(letter, range(4)))
    watch = await topic.looked_at()
    topic.letters_there = list(map(letter, range(12)))
    topic.delete_before(10)
    await watch.refresh(topic)
    assert topic.deleted == 10
    topic.letters_there = list(map(letter, range(20)))
    topic.redrive(*range(16))
    topic.delete_before(15)
    await watch.refresh(topic)
    assert topic.deleted == 10
    assert watch.figures is not None
    assert watch.figures.total == 4


async def test_a_topic_made_anew_is_read_anew() -> None:
    """Offsets that begin again belong to new letters."""
    topic = Topic(*map(letter, range(4)))
    watch = await topic.looked_at()
    topic.redrive(0, 1, 2)
    topic.letters_there = [letter(0, reason="tombstone")]
    await watch.refresh(topic)
    assert watch.figures == OpenFigures({"tombstone": 1}, MOMENT.timestamp())


@pytest.mark.parametrize("redriven", [1, 4])
async def test_open_letters_of_a_topic_that_was_deleted_are_told(
    redriven: int, caplog: pytest.LogCaptureFixture
) -> None:
    """If someone deletes the topic and makes it anew, its open letters are lost, if it had any."""
    topic = Topic(*map(letter, range(4)))
    watch = await topic.looked_at()
    topic.redrive(*range(redriven))
    await watch.refresh(topic)
    topic.commit = None  # Kafka deletes it with the topic
    topic.letters_there = [letter(0, reason="tombstone")]
    await watch.refresh(topic)
    await watch.refresh(topic)
    assert (topic.deleted, errors(caplog)) == ((3, ["3"]) if redriven == 1 else (0, []))
    assert watch.figures == OpenFigures({"tombstone": 1}, MOMENT.timestamp())


MISSING = TopicUnusable("orders.DLQ", "Broker: Unknown topic", "UNKNOWN_TOPIC_OR_PART")


@asynccontextmanager
async def running(topic: Topic) -> AsyncIterator[Callable[[int | None], Awaitable[None]]]:
    """A worker that looks all the time; yields a wait for the next look with this count."""
    totals: asyncio.Queue[int | None] = asyncio.Queue()
    watch = topic.watched(
        lambda found: totals.put_nowait(None if found is None else found.total),
        interval_seconds=0.001,
    )

    async def until(total: int | None) -> None:
        while await totals.get() != total:
            pass

    task = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(10):
            yield until
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        watch.close()


async def test_open_letters_of_a_topic_that_is_missing_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While it is missing, and not again when it is made anew; an outage deletes nothing."""
    topic = Topic(*map(letter, range(4)))
    topic.redrive(0)
    async with running(topic) as until:
        await until(3)
        topic.problem = KafkaUnavailable("broker:9092", "no answer")
        for _ in range(3):
            await until(None)
        assert topic.deleted == 0
        topic.problem = MISSING
        while not topic.deleted:
            await until(None)
        await until(None)
        topic.letters_there, topic.commit, topic.problem = [], None, None
        await until(0)
        topic.letters_there = [letter(0)]
        await until(1)
    assert (topic.deleted, errors(caplog)) == (3, ["3"])


async def test_a_topic_that_one_look_does_not_find_is_not_deleted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broker that has just started may not know it yet: its letters stay open."""

    class Flickering(Topic):
        """Missing at each third look."""

        looks = 0

        async def extents(self) -> dict[int, Extent]:
            self.looks += 1
            self.problem = MISSING if self.looks % 3 == 0 else None
            return await super().extents()

    topic = Flickering(letter(0))
    async with running(topic) as until:
        for _ in range(3):
            await until(None)
            await until(1)
    assert (topic.deleted, errors(caplog)) == (0, [])


async def test_a_topic_that_was_made_anew_before_the_start_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A commit beyond the topic's end is of an earlier topic; how many were open is unknown."""
    topic = Topic(*map(letter, range(4)))
    topic.redrive(0, 1)
    topic.letters_there = [letter(0)]
    watch = await topic.looked_at()
    await watch.refresh(topic)
    assert (topic.deleted, errors(caplog)) == (1, ["unknown"])
    assert watch.figures == OpenFigures({"rejected": 1}, MOMENT.timestamp())


async def test_while_kafka_does_not_answer_nothing_is_known() -> None:
    """Without an answer the counts are unknown, not zero; they return with an answer."""
    topic = Topic(letter(0))
    said: asyncio.Queue[OpenFigures | None] = asyncio.Queue()
    watch = topic.watched(said.put_nowait, interval_seconds=0.001)
    running = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(10):
            assert await said.get() == OpenFigures({"rejected": 1}, MOMENT.timestamp())
            topic.problem = KafkaUnavailable("broker:9092", "no answer")
            while await said.get() is not None:
                pass
            topic.problem = None
            while (figures := await said.get()) is None:
                pass
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert figures.total == 1
    # While the worker stops, its pages still answer.
    assert len(await watch.ask(LetterIndex.by_reason)) == 1
    watch.close()
