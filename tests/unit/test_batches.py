"""Several records in one POST: which records share it, and each one's result.

In virtual time, through the relay, with a target that takes batches.
"""

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import msgspec
import pytest

from order_relay.delivery.answer import JSON, Answer, Verdict
from order_relay.delivery.batch_results import item_answers
from order_relay.delivery.batches import NDJSON, Batching, batch_key
from order_relay.model.events import Events
from order_relay.model.record import Record
from order_relay.model.trace_context import TraceContext
from tests.support.fakes import NO_ANSWER, Bench, answer, record
from tests.support.limiters import FixedWindow, SlidingWindow, TokenBucket
from tests.support.orders import order_value

pytestmark = pytest.mark.virtual_time

OK = answer(200)


def results_of(said: object) -> Answer:
    """A 207 with a result for each record."""
    return Answer(Verdict.SUCCESS, 207, body=json.dumps(said).encode())


@dataclass(frozen=True, slots=True)
class Post:
    """One request that a ``BatchTarget`` got."""

    at: float
    body: bytes
    key: str
    content_type: str
    orders: tuple[int, ...]


class BatchTarget:
    """A ``PostHandler`` that accepts batches and answers as the test says."""

    def __init__(self, answers: Callable[[Post], Answer], seconds: float = 0.02) -> None:
        self.posts: list[Post] = []
        self.accepted: Counter[int] = Counter()
        self.under_way = 0
        self.most_under_way = 0
        self._answers = answers
        self._seconds = seconds

    async def post(
        self,
        body: bytes,
        idempotency_key: str,
        trace: TraceContext | None = None,
        *,
        content_type: str = JSON,
    ) -> Answer:
        loop = asyncio.get_running_loop()
        lines = content_type == NDJSON
        text = b"[" + b",".join(body.splitlines()) + b"]" if lines else body
        found = json.loads(text)
        values = found if isinstance(found, list) else [found]
        orders = tuple(value["orderId"] for value in values)
        post = Post(loop.time(), body, idempotency_key, content_type, orders)
        self.posts.append(post)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.under_way -= 1
        said = self._answers(post)
        if said.verdict is Verdict.SUCCESS:
            self.accepted.update(orders)
        return said

    def redact(self, text: str) -> str:
        return text


class Story:
    """A dispatcher with batches of one size, and its orders."""

    def __init__(
        self, answers: Callable[[Post], Answer], *, size: int = 10, **settings: Any
    ) -> None:
        batching = {
            name: settings.pop(name)
            for name in ("max_bytes", "linger_seconds", "form")
            if name in settings
        }
        self.target = BatchTarget(answers)
        self.bench = Bench(
            **{"breaker_threshold": 20, "max_in_flight": 64, "max_queued": 2000, **settings},
            batching=Batching(size, **batching),
            target=self.target,
        )
        self.taken = 0

    async def submit(self, count: int) -> list[Record]:
        """Submit orders, each with its own key."""
        records = [record(n, f"key-{n}") for n in range(self.taken, self.taken + count)]
        self.taken += count
        for one in records:
            await self.bench.dispatcher.submit(one)
        return records

    async def end(self, within_seconds: float = 1000.0) -> None:
        """Wait until all orders are finished."""
        await self.bench.until_finished(self.taken, within_seconds)

    @property
    def given_up(self) -> list[int]:
        """Offsets of the records that were given up."""
        return sorted(letter.record.offset for letter in self.bench.dead_letters.letters)

    @property
    def sizes(self) -> list[int]:
        """How many orders each request had."""
        return [len(post.orders) for post in self.target.posts]


async def test_values_go_byte_for_byte_in_their_order() -> None:
    """A batch is an array of the unchanged values; its key is made from the records' keys."""
    story = Story(lambda post: OK, size=3)
    records = await story.submit(7)
    await story.end()
    assert story.sizes == [3, 3, 1]
    first = records[:3]
    assert story.target.posts[0].body == b"[" + b",".join(one.value or b"" for one in first) + b"]"
    assert story.target.posts[2].body == b"[" + (records[6].value or b"") + b"]"
    keys = [one.idempotency_key() for one in records]
    assert [post.key for post in story.target.posts] == [
        batch_key(keys[:3]), batch_key(keys[3:6]), keys[6]
    ]  # fmt: skip
    assert batch_key(keys[:3]) == batch_key(tuple(keys[:3])) != batch_key(keys[:2])
    assert {post.content_type for post in story.target.posts} == {JSON}


@pytest.mark.parametrize("line_end", [b"\n", b"\r"])
async def test_ndjson_has_a_value_per_line(line_end: bytes) -> None:
    """In NDJSON each value is a line; a value with several lines is sent alone, unchanged."""
    story = Story(lambda post: OK, form="ndjson")
    pretty = json.dumps(json.loads(order_value(100)), indent=1).encode().replace(b"\n", line_end)
    await story.submit(2)
    await story.bench.dispatcher.submit(record(2, "pretty", value=pretty))
    story.taken = 3
    await story.submit(2)
    await story.end()
    alone, lines = story.target.posts
    assert (alone.body, alone.content_type) == (pretty, JSON)
    assert lines.content_type == NDJSON
    assert lines.body.endswith(b"\n")
    assert lines.orders == (0, 1, 3, 4)


@pytest.mark.parametrize("form", ["json_array", "ndjson"])
async def test_a_value_that_is_not_json_goes_alone(form: Any) -> None:
    """In an array ``1,2`` would be two values, and "" none."""
    bench = Bench(batching=Batching(9, form=form, raw=True), events=Events(bytes), max_in_flight=99)
    json_values = [b"7", rb'"\ud800"', b"[1,2]"]
    others = [b"1,2", b"", b"text", b'"\xff"', b"[" * 10_000]
    await bench.deliver(
        *(
            msgspec.structs.replace(record(n, f"key-{n}"), value=value)
            for n, value in enumerate([*json_values, *others])
        )
    )
    *alone, together = (attempt.body for attempt in bench.target.attempts)
    assert sorted(alone) == sorted(others)
    assert together in (b"[" + b",".join(json_values) + b"]", b"\n".join([*json_values, b""]))


async def test_records_wait_for_others_no_longer_than_they_may() -> None:
    """A single record is sent after the linger; a full batch at once."""
    story = Story(lambda post: OK, size=5, linger_seconds=0.5)
    await story.submit(1)
    await asyncio.sleep(0.4)
    await story.submit(1)
    await story.end()
    await story.submit(5)
    await story.end()
    assert [(round(post.at, 3), len(post.orders)) for post in story.target.posts] == [
        (0.5, 2), (0.52, 5)
    ]  # fmt: skip


async def test_a_batch_has_no_more_orders_than_it_may() -> None:
    """Even if many wait while all requests are in flight."""
    story = Story(lambda post: OK, size=10)
    await story.submit(995)
    await story.end()
    assert max(story.sizes) == 10
    assert story.sizes.count(10) == 99


async def test_a_batch_has_no_more_bytes_than_it_may() -> None:
    """The body is bounded; a full batch is sent at once, and so is a larger record."""
    value = len(order_value(0))
    story = Story(lambda post: OK, size=100, max_bytes=3 * (value + 1) + 1)
    await story.submit(9)
    huge = order_value(9)[:-1] + b',"note":"' + b"x" * 10_000 + b'"}'
    await story.bench.dispatcher.submit(record(9, "huge", value=huge))
    story.taken = 10
    await story.end()
    assert story.sizes == [3, 3, 3, 1]
    assert max(len(post.body) for post in story.target.posts[:3]) <= 3 * (value + 1) + 1
    assert {post.at for post in story.target.posts} == {0.0}


async def test_no_two_records_of_a_key_are_under_way() -> None:
    """Records of one key go one after another, in batches with those of other keys."""
    story = Story(lambda post: OK, size=100)
    for number in range(60):
        await story.bench.dispatcher.submit(record(number, f"key-{number % 6}"))
    story.taken = 60
    await story.end()
    assert story.sizes == [6] * 10
    assert [sorted(post.orders) for post in story.target.posts] == [
        list(range(first, first + 6)) for first in range(0, 60, 6)
    ]


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("bad", [{0}, {57}, {99}, {3, 4, 80}, set(range(100))])
async def test_a_refused_batch_is_halved_until_the_bad_ones_are_alone(
    bad: set[int], status: int
) -> None:
    """Bad records are dead-lettered, each after a request of its own; others are not."""
    story = Story(lambda post: answer(status) if bad & {*post.orders} else OK, size=100)
    await story.submit(100)
    await story.end()
    assert story.given_up == sorted(bad)
    assert story.target.accepted == Counter(set(range(100)) - bad)
    assert len(story.target.posts) <= 1 + 14 * len(bad)
    assert {letter.attempts for letter in story.bench.dead_letters.letters} == {1}


@pytest.mark.parametrize(
    ("failure", "alone"),
    [(answer(500), 4), (NO_ANSWER, 4), (answer(404), 1)],
    ids=["500", "no answer", "404"],
)
async def test_one_record_that_fails_its_batch_does_not_take_the_others_along(
    failure: Answer, alone: int
) -> None:
    """A batch's failure counts against no record; sent alone, only the bad one is given up."""
    story = Story(lambda post: failure if 7 in post.orders else OK, size=10)
    for _ in range(10):
        await story.submit(100)
        await asyncio.sleep(1.0)
    await story.end()
    assert story.given_up == [7]
    assert story.target.accepted == Counter(set(range(1000)) - {7})
    # Alone, an attempt and three retries; a 404 needs one attempt, as others are accepted.
    assert len([post for post in story.target.posts if post.orders == (7,)]) == alone


async def test_a_batch_that_fails_goes_once_more_then_in_tenths_then_each_alone() -> None:
    """So a bad record causes at most three more requests for the others of its batch."""
    story = Story(lambda post: answer(500) if 42 in post.orders else OK, size=100, max_queued=10**4)
    await story.submit(100)
    for _ in range(100):  # others are accepted meanwhile
        await asyncio.sleep(0.5)
        await story.submit(20)
    await story.end()
    assert story.given_up == [42]
    assert story.target.accepted == Counter(set(range(2100)) - {42})
    posts = [[n for n in post.orders if n < 100] for post in story.target.posts]
    first = [orders for orders in posts if orders]
    assert [len(orders) for orders in first if 42 in orders] == [100, 100, 10, 1, 1, 1, 1]
    assert max(Counter(n for orders in first for n in orders if n != 42).values()) == 4


async def test_a_batch_without_an_answer_is_repeated_as_it_was() -> None:
    """The target may have accepted it: same records, same order, same key."""
    story = Story(lambda post: NO_ANSWER if post.at < 0.5 else OK, size=10)
    await story.submit(25)
    await asyncio.sleep(0.9)
    await story.submit(25)  # others come meanwhile
    await story.end()
    first = {post.orders: post.key for post in story.target.posts if post.at < 0.5}
    again = {post.orders: post.key for post in story.target.posts if post.at >= 0.5}
    assert len(first) == 3
    assert first.items() <= again.items()
    assert not story.given_up


async def test_an_outage_is_one_attempt_a_batch_and_spends_nothing() -> None:
    """Probes have one record each, and nothing is given up."""
    story = Story(lambda post: answer(503) if post.at < 60 else OK, size=10)
    await story.submit(400)
    await story.end()
    assert not story.given_up
    assert story.target.accepted == Counter(range(400))
    in_outage = [post for post in story.target.posts if 5 < post.at < 60]
    assert {len(post.orders) for post in in_outage} == {1}
    assert len(in_outage) <= 15
    assert max(post.at for post in story.target.posts) < 70


@pytest.mark.parametrize("share", [0.0, 0.3])
async def test_a_retry_after_now_and_then_holds_back_no_longer(share: float) -> None:
    """A twentieth of the requests asks for a second; of the others none or some fail."""
    dice = Random(1)

    def answers(post: Post) -> Answer:
        if dice.random() < 0.05:
            return answer(429, retry_after_seconds=1.0)
        return answer(500) if dice.random() < share else OK

    story = Story(answers, size=5)
    await story.submit(1000)
    await story.end()
    assert story.target.accepted.keys() == set(range(1000))
    last = next(post for post in story.target.posts if 999 in post.orders)
    times = [post.at for post in story.target.posts if post.at <= last.at]
    assert max(later - at for at, later in pairwise(times)) < 1.5


@pytest.mark.parametrize(
    "limiter",
    [TokenBucket(50, 50), FixedWindow(50), SlidingWindow(50)],
    ids=lambda limiter: type(limiter).__name__,
)
async def test_a_limit_of_requests_is_not_a_limit_of_orders(
    limiter: TokenBucket | FixedWindow | SlidingWindow,
) -> None:
    """With 50 requests a second, batches of 20 deliver more than 800 orders; nothing is lost."""
    story = Story(
        lambda post: OK if limiter.takes(post.at) else answer(429),
        size=20,
        max_in_flight=256,
        max_queued=10_000,
    )
    intake = asyncio.create_task(story.submit(100_000))
    await asyncio.sleep(12)
    assert sum(story.target.accepted.values()) > 12 * 800
    assert set(story.target.accepted.values()) == {1}
    assert not story.given_up
    refused = len(story.target.posts) - sum(story.target.accepted.values()) / 20
    assert refused <= 0.12 * len(story.target.posts)
    intake.cancel()
    await story.bench.dispatcher.drain(attempt_seconds=1)


async def test_half_of_all_batches_fail() -> None:
    """No record is given up for its batches."""
    count = iter(range(10**6))
    story = Story(lambda post: answer(500) if next(count) % 2 else OK, size=20)
    for _ in range(50):
        await story.submit(20)
        await asyncio.sleep(0.5)
    await story.end()
    assert not story.given_up
    assert story.target.accepted == Counter(range(1000))


async def test_results_of_single_records() -> None:
    """The results in a 2xx count for each record: delivered, retried, or dead-lettered."""
    tried: Counter[int] = Counter()

    def results(post: Post) -> Answer:
        tried.update(post.orders)
        said = [
            {"status": 422, "error": {"field": "userId"}}
            if order == 3
            else {"status": 503 if order == 5 and tried[order] == 1 else 201}
            for order in post.orders
        ]
        return results_of({"results": said})

    story = Story(results)
    await story.submit(10)
    await story.end()
    assert story.given_up == [3]
    assert story.bench.dead_letters.letters[0].message == 'HTTP 422: {"field":"userId"}'
    assert tried == Counter({order: 2 if order == 5 else 1 for order in range(10)})


async def test_throttled_records_of_batches_that_are_accepted_otherwise() -> None:
    """If one record of each batch gets 429, the target still takes a batch a second."""
    told: set[int] = set()

    def results(post: Post) -> Answer:
        once = {order for order in post.orders if order % 10 == 0} - told
        told.update(once)
        return results_of([{"status": 429 if order in once else 200} for order in post.orders])

    story = Story(results)
    await story.submit(500)
    await story.end()
    assert not story.given_up
    assert asyncio.get_running_loop().time() < 100


@pytest.mark.parametrize("retry_after_seconds", [0.0, 3.0])
async def test_a_batch_that_is_refused_for_one_user_does_not_stop_the_others(
    retry_after_seconds: float,
) -> None:
    """Nearly every batch is: single orders show it, and those users' orders are sent alone."""
    users = [(n * 7919) % 100 for n in range(2000)]
    story = Story(
        lambda post: (
            answer(429, retry_after_seconds=retry_after_seconds)
            if any(users[n] < 10 for n in post.orders)
            else OK
        ),
        size=50,
        max_in_flight=256,
        max_queued=10_000,
    )
    for number, user in enumerate(users):
        await story.bench.dispatcher.submit(record(number, f"user-{user}"))
        await asyncio.sleep(0.02)
    await asyncio.sleep(100.0)
    assert story.target.accepted == Counter(n for n in range(2000) if users[n] >= 10)
    assert not story.given_up
    assert max(story.sizes) > 10
    await story.bench.dispatcher.drain(attempt_seconds=1)


async def test_records_that_are_throttled_for_ever_hold_up_no_others() -> None:
    """As with a user's quota: all others are delivered at once, and these are not given up."""

    def results(post: Post) -> Answer:
        return results_of([{"status": 200 if order % 50 else 429} for order in post.orders])

    story = Story(results, size=100)
    intake = asyncio.create_task(story.submit(3000))
    await asyncio.sleep(60)
    posts = story.target.posts
    assert max(post.at for post in posts if any(order % 50 for order in post.orders)) <= 2.0
    assert len(posts) <= 30 + 60 * 10
    assert not story.given_up
    await intake
    await story.bench.dispatcher.drain(attempt_seconds=1)


@pytest.mark.parametrize(
    ("status", "body", "verdicts"),
    [
        (200, b"", "success success"),
        (200, b"[]", "success success"),
        (200, b'{"taken":2}', "success success"),
        (200, b'[{"status":200},{"status":500}]', "success retryable"),
        (200, b'{"results":[{"status":429},{"status":400}]}', "throttled rejected"),
        (207, b'[{"status":204,"id":7},{"status":401}]', "success outage"),
        (207, b'[{"status":200}]', "retryable retryable"),
        (207, b'[{"status":200},{"status":200},{"status":200}]', "retryable retryable"),
        (200, b'[{"status":"200"},{"status":"422"}]', "success rejected"),
        (200, b'[{"status":"200 OK"},{"status":" 422 No"}]', "success rejected"),
        (207, b'[{"status":200},{"status":" "}]', "retryable retryable"),
        (207, b'[{"status":200},{"status":"ok"}]', "retryable retryable"),
        (207, b'{"results":', "retryable retryable"),
        (200, b'{"results":[{"status":200},{"status":42', "retryable retryable"),
        (200, b'{"results":[{"stat', "retryable retryable"),
        (200, b'[{"status', "retryable retryable"),
        (200, b' \xef\xbb\xbf[{"status":200},', "retryable retryable"),
        (200, b'[{"status":200},{"status":422}]\n<!-- 3 ms -->', "success rejected"),
        (200, b"[OK] two orders", "success success"),
        (200, b"{'status': 'OK'}", "success success"),
        (207, b"\xff", "retryable retryable"),
        (207, b"", "retryable retryable"),
        (200, b'[{"status":200}]', "success success"),
        (200, b'[{"status":422}]', "retryable retryable"),
        (200, b'{"results":[{"status":200},{"status":500},{"status":200}]}', "retryable retryable"),
        (200, b'[{"status":422},{"status":null}]', "retryable retryable"),
        (200, b'[null,{"status":422}]', "retryable retryable"),
        (200, b'[{"orderId":1},{"status":true}]', "success success"),
        (200, b'[{"status":422.0},{"status":"200"}]', "rejected success"),
        (200, b'[{"status":%d},{"status":200}]' % 10**30, "retryable success"),
        (200, b'[{"status":422,"error":"\\ud83d"},{"status":200}]', "rejected success"),
        (200, b'[{"status":422,"error":%d},{"status":200}]' % 10**30, "rejected success"),
        (200, b'[{"status":422,"error":NaN},{"status":200}]', "rejected success"),
        (200, b'\xef\xbb\xbf[{"status":200},{"status":422}]', "success rejected"),
        # Words, as "status" or "success"; in a list alone it may be our own record.
        (200, b'{"results":[{"status":"ok"},{"status":"failed"}]}', "success retryable"),
        (200, b'{"results":[{"success":true},{"success":false}]}', "success retryable"),
        (200, b'{"results":[{"status":{"code":1}},{"id":2}]}', "success success"),
        (200, b'[{"status":"PAID"},{"status":"PAID"}]', "success success"),
        (
            200,
            b'{"errors":true,"items":[{"index":{"status":201}},{"index":{"status":429}}]}',
            "success throttled",
        ),
        # Some failed, but not which ones.
        (200, b'{"ingested":1,"failed":1}', "retryable retryable"),
        (200, b'{"insertErrors":[{"index":1}]}', "retryable retryable"),
        (200, b'{"partialSuccess":{"rejectedLogRecords":"1"}}', "retryable retryable"),
        (200, b'{"errors":true}', "retryable retryable"),
        (200, b'{"num_rejected_docs":1}', "retryable retryable"),
        (200, b'{"FailedRecordCount":2}', "retryable retryable"),
        (200, b'{"rejectedLogEventsInfo":{"tooOldLogEventEndIndex":1}}', "retryable retryable"),
        (200, b'{"failover":true,"errorRate":0.2,"maxFailures":9}', "success success"),
        (200, b'{"errors":false,"failed":0,"rejected":[],"error":null}', "success success"),
        (200, b'{"error":"none","partialSuccess":{},"failures":{"count":0}}', "success success"),
        (200, b'{"orders":[{"failed":1}]}', "success success"),
        (200, gzip.compress(b'[{"status":200},{"status":422}]', mtime=0), "success rejected"),
        (
            200,
            gzip.compress(b'[{"status":200},{"status":422}]', mtime=0)[:-9],
            "retryable retryable",
        ),
        (200, b"\x1f\x8bno gzip", "retryable retryable"),
    ],
)
def test_what_a_2xx_says_of_each(status: int, body: bytes, verdicts: str) -> None:
    """Results in the known shape count; otherwise a 2xx accepts all, and a 207 none."""
    found = item_answers(Answer(Verdict.SUCCESS, status, body=body), 2, str)
    assert " ".join(one.verdict for one in found) == verdicts
    for one in found:
        assert 0 <= (one.status or 0) <= 999
        one.detail.encode()  # other text cannot be stored


@pytest.mark.parametrize("start", [b"", b'[{"status":422,"error":'], ids=["results", "error"])
def test_results_that_are_nested_too_deeply(start: bytes) -> None:
    """They count as unreadable, as other bodies do."""
    body = start + b"[" * 100_000
    found = item_answers(Answer(Verdict.SUCCESS, 207, body=body), 2, str)
    assert [one.verdict for one in found] == [Verdict.RETRYABLE] * 2


@pytest.mark.parametrize(
    ("body", "verdicts"),
    [
        (b"", "retryable retryable"),
        (b'{"results":[{"status":200},{"sta', "retryable retryable"),
        (b' [{"status":200}', "retryable retryable"),
        (b'{"took":3,"resu', "retryable retryable"),
        (b'[{"status":200},{"status":500}]', "success retryable"),
        (b'{"taken":2}', "success success"),
        (b"taken", "success success"),
    ],
)
def test_what_a_2xx_says_that_was_cut_off(body: bytes, verdicts: str) -> None:
    """If results may be missing, none counts as delivered; a whole body counts."""
    answer = Answer(Verdict.SUCCESS, 200, body=body, is_cut=True)
    assert " ".join(one.verdict for one in item_answers(answer, 2, str)) == verdicts


async def test_giving_back_ends_requests_whose_records_are_all_given_back() -> None:
    """After a drain no abandoned batch is in flight."""
    story = Story(lambda post: OK, size=10)
    story.target._seconds = 1000.0
    await story.submit(30)
    await asyncio.sleep(1)
    assert story.target.under_way == 3
    await story.bench.dispatcher.drain(attempt_seconds=1)
    await asyncio.sleep(0)
    assert story.target.under_way == 0
    assert not story.bench.finished


async def test_giving_back_does_not_wait_for_what_was_not_sent() -> None:
    """Records that wait for others, or for a throttling target, are given back at once."""
    throttled = answer(429, retry_after_seconds=60)
    story = Story(lambda post: throttled, size=10, linger_seconds=100.0)
    await story.submit(25)
    await asyncio.sleep(1)
    assert len(story.target.posts) == 2
    began = asyncio.get_running_loop().time()
    await story.bench.dispatcher.drain(attempt_seconds=1000)
    assert asyncio.get_running_loop().time() - began < 1
    assert len(story.target.posts) == 2
    assert story.bench.observer.abandoned_records == [25]
    story.bench.dispatcher.resume()
    story.target._answers = lambda post: OK
    await story.submit(25)
    await story.bench.until_finished(25, 1000)


@pytest.mark.parametrize("said", [answer(429, retry_after_seconds=5), answer(422)])
async def test_giving_back_ends_with_the_answers_to_what_is_under_way(said: Answer) -> None:
    """A throttled batch is not sent again, and a rejected one is not halved."""
    story = Story(lambda post: said, size=10)
    story.target._seconds = 2.0
    await story.submit(10)
    await asyncio.sleep(1)
    await story.bench.dispatcher.drain(attempt_seconds=1000)
    assert asyncio.get_running_loop().time() == 2.0
    assert len(story.target.posts) == 1
    assert story.bench.observer.abandoned_records == [10]
    story.bench.dispatcher.resume()
    story.target._answers = lambda post: OK if len(post.orders) < 10 else answer(422)
    await story.submit(10)
    await story.bench.until_finished(10, 1000)
