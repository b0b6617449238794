"""Several records in one POST: which records share a batch, and what the answer means for each.

Each record asks for its own attempt, as without batches; those that wait are put together here. A
batch never has two records of one key, since a lane sends one record at a time. So order within a
key needs no code here.

A rejected batch (4xx) has at least one bad record: it is halved until the bad one is alone. Any
other failure may be one record's fault, too. Then all records try again: first in the same batch
(the target may have accepted it), then in a small one, then alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from order_relay.delivery.answer import JSON, Answer, FailedBatch, PostHandler
from order_relay.delivery.back_pressure import Pace
from order_relay.delivery.retry import Verdict, judge
from order_relay.model.trace_context import TraceContext

BatchFormat = Literal["json_array", "ndjson"]
NDJSON = "application/x-ndjson"

# After this many failures a record goes into a batch of a tenth of the size; after more, alone.
FAILURES_IN_LARGE_BATCH = 2
SMALL_BATCH_DIVISOR = 10
MAX_ERROR_LENGTH = 1024
# Concurrent requests at the start and after a throttled one; each accepted request adds one. So a
# target that can take only a few is not sent a hundred at once, and its limit shows sooner.
INITIAL_REQUESTS = 4


@dataclass(frozen=True, slots=True)
class Batching:
    """How records are put together.

    Attributes:
        size: Maximum records in a batch; 1: each is sent alone, byte for byte.
        max_bytes: Maximum size of a body with several records.
        linger_seconds: How long a record waits for others.
        form: A JSON array of the values, or one value a line.
    """

    size: int = 1
    max_bytes: int = 1_000_000
    linger_seconds: float = 0.02
    form: BatchFormat = "json_array"


class _Item:
    """A record that waits to be sent, or for its answer."""

    __slots__ = ("answer", "batch", "batch_index", "key", "since", "trace", "value")

    def __init__(self, value: bytes, key: str, trace: TraceContext | None, since: float) -> None:
        self.value = value
        self.key = key
        self.trace = trace
        self.since = since
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.batch: _Batch | None = None
        self.batch_index = 0


@dataclass(slots=True, eq=False)
class _Batch:
    """Records that are under way in one request, and the task that sends it."""

    items: list[_Item]
    task: asyncio.Task[None] | None = None


class _Queue:
    """Records that wait to be put into batches of one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: deque[_Item] = deque()
        self.bytes = 0

    def append(self, item: _Item) -> None:
        self.items.append(item)
        self.bytes += len(item.value) + 1

    def take_all(self) -> list[_Item]:
        items = list(self.items)
        self.items.clear()
        self.bytes = 0
        return items

    def popleft(self) -> _Item:
        item = self.items.popleft()
        self.bytes -= len(item.value) + 1
        return item


class Batches:
    """Puts records into batches, sends these at the pace, and gives each record its answer."""

    def __init__(
        self,
        poster: PostHandler,
        batching: Batching,
        pace: Pace,
        clock: Callable[[], float],
        *,
        max_requests: int,
    ) -> None:
        """Start without any record.

        Args:
            poster: Posts the bodies; its successful answers must include the target's body.
            batching: How records are put together.
            pace: Limits the requests a second; the results are reported to it.
            clock: Monotonic seconds.
            max_requests: Maximum concurrent requests.
        """
        self._poster = poster
        self._batching = batching
        self._pace = pace
        self._clock = clock
        self._max_requests = max_requests
        self._window = min(INITIAL_REQUESTS, max_requests)
        self._requests = 0
        # Batches are made when they can be sent, so that they fill up until then.
        self._large = _Queue(batching.size)
        self._small = _Queue(max(batching.size // SMALL_BATCH_DIVISOR, 1))
        self._queues = self._large, self._small
        # Records of failed batches that are ready for their next attempt.
        self._returned: dict[FailedBatch, list[_Item]] = {}
        self._ready: deque[list[_Item]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def post(
        self,
        value: bytes,
        key: str,
        trace: TraceContext | None,
        *,
        failures: int = 0,
        last: Answer | None = None,
        alone: bool = False,
    ) -> Answer:
        """Send a record, in a batch or alone, and return its answer.

        Args:
            value: The record's value.
            key: Its idempotency key.
            trace: Sent only if the record is alone.
            failures: Its failed attempts.
            last: The answer to its last attempt.
            alone: Whether it is sent at once and alone, as a probe.

        Raises:
            CancelledError: ``drain`` was called before the record was sent.
        """
        item = _Item(value, key, trace, self._clock())
        if alone or failures > FAILURES_IN_LARGE_BATCH or self._has_lines(value):
            self._ready.append([item])
        elif failures == FAILURES_IN_LARGE_BATCH:
            self._small.append(item)
        elif failures and last is not None and last.failed_batch is not None:
            item.batch_index = last.batch_index
            self._rejoin(last.failed_batch, item)
        else:
            self._large.append(item)
        self._serve()
        try:
            return await item.answer
        except asyncio.CancelledError:
            batch = item.batch
            if batch is not None and batch.task and all(one.answer.done() for one in batch.items):
                batch.task.cancel()
            raise

    def drain(self) -> None:
        """Abandon all records that were not sent yet: their ``post`` is cancelled."""
        waiting = [*self._large.take_all(), *self._small.take_all()]
        for items in (*self._returned.values(), *self._ready):
            waiting += items
        self._returned.clear()
        self._ready.clear()
        for item in waiting:
            item.answer.cancel()

    def _has_lines(self, value: bytes) -> bool:
        # Line breaks between JSON tokens are part of the record's bytes, and are not removed.
        return self._batching.form == "ndjson" and (b"\n" in value or b"\r" in value)

    def _rejoin(self, failed_batch: FailedBatch, item: _Item) -> None:
        returned = self._returned.setdefault(failed_batch, [])
        returned.append(item)
        if len(returned) >= failed_batch.size:
            self._ready.append(self._pop_returned(failed_batch))

    def _pop_returned(self, failed_batch: FailedBatch) -> list[_Item]:
        return sorted(self._returned.pop(failed_batch), key=lambda item: item.batch_index)

    # --- the next batch -------------------------------------------------------------------------

    def _serve(self) -> None:
        """Send all batches that may be sent, and set a timer for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._requests < self._window:
            now = self._clock()
            wait = self._seconds_until_ready(now)
            if wait == 0.0:
                wait = self._pace.wait_seconds()
            if wait:
                if wait != math.inf:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._serve)
                return
            items = [item for item in self._next_batch(now) if not item.answer.done()]
            if items:
                if not self._pace.free:
                    self._pace.sent()
                self._requests += 1
                batch = _Batch(items)
                for item in items:
                    item.batch = batch
                batch.task = asyncio.create_task(self._send(batch))

    def _seconds_until_ready(self, now: float) -> float:
        """Return the seconds until there is a batch to send."""
        if self._ready:
            return 0.0
        linger, wait = self._batching.linger_seconds, math.inf
        for queue in self._queues:
            if queue.items:
                full = len(queue.items) >= queue.size or queue.bytes > self._batching.max_bytes
                wait = min(wait, 0.0 if full else max(queue.items[0].since + linger - now, 0.0))
        for returned in self._returned.values():
            wait = min(wait, max(returned[-1].since + linger - now, 0.0))
        return wait

    def _next_batch(self, now: float) -> list[_Item]:
        """Remove the records of the next batch from those that wait."""
        if self._ready:
            return self._ready.popleft()
        linger = self._batching.linger_seconds
        for failed_batch, returned in self._returned.items():
            if returned[-1].since + linger <= now:
                return self._pop_returned(failed_batch)
        queue = min(
            (queue for queue in self._queues if queue.items), key=lambda one: one.items[0].since
        )
        items = [queue.popleft()]
        room = self._batching.max_bytes - len(items[0].value) - 2
        while queue.items and len(items) < queue.size:
            room -= len(queue.items[0].value) + 1
            if room < 0:
                break
            items.append(queue.popleft())
        return items

    # --- one request ----------------------------------------------------------------------------

    async def _send(self, batch: _Batch) -> None:
        items = batch.items
        sent_at = self._clock()
        try:
            answer = await self._post(items)
            self._distribute(items, answer, sent_at)
        except BaseException as error:
            for item in items:
                if not item.answer.done():
                    if isinstance(error, Exception):
                        item.answer.set_exception(error)
                    else:
                        item.answer.cancel()
            if not isinstance(error, Exception):
                raise
        finally:
            batch.items = []  # breaks the reference cycle
            self._requests -= 1
            self._serve()

    async def _post(self, items: list[_Item]) -> Answer:
        first = items[0]
        if len(items) == 1 and self._has_lines(first.value):
            return await self._poster.post(first.value, first.key, first.trace)
        values = [item.value for item in items]
        if self._batching.form == "ndjson":
            body, content_type = b"\n".join(values) + b"\n", NDJSON
        else:
            body, content_type = b"[" + b",".join(values) + b"]", JSON
        return await self._poster.post(
            body,
            first.key if len(items) == 1 else batch_key([item.key for item in items]),
            first.trace if len(items) == 1 else None,
            content_type=content_type,
        )

    def _distribute(self, items: list[_Item], answer: Answer, sent_at: float) -> None:
        count = len(items)
        answers = [answer] * count
        if answer.verdict is Verdict.SUCCESS:
            answers = item_answers(answer, count, self._poster.redact)
        throttled = [one for one in answers if one.verdict is Verdict.THROTTLED]
        if throttled:
            wait = max(one.retry_after_seconds for one in throttled)
            self._pace.refused(sent_at, wait, self._requests - 1)
            self._window = min(INITIAL_REQUESTS, self._max_requests)
        elif answer.verdict is Verdict.SUCCESS:
            self._pace.accepted(sent_at)
            self._window = min(self._window + 1, self._max_requests)
        if count > 1 and answer.verdict is Verdict.REJECTED:
            middle = (count + 1) // 2
            self._ready.extendleft((items[middle:], items[:middle]))
            return
        if count > 1 and answers[0] is answers[-1]:
            answers = _shared_answers(answers[0], count)
        for item, one in zip(items, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(one)


def _shared_answers(answer: Answer, count: int) -> list[Answer]:
    """Return the answer once for each of ``count`` records."""
    if answer.verdict is Verdict.SUCCESS:
        return [answer, *[replace(answer, batch_index=1)] * (count - 1)]
    failed_batch = FailedBatch(count)
    return [
        replace(answer, failed_batch=failed_batch, batch_index=batch_index)
        for batch_index in range(count)
    ]


def batch_key(keys: Sequence[str]) -> str:
    """Return the idempotency key of a batch; the same records in the same order give the same."""
    return f"batch-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:32]}"


class _Result(msgspec.Struct):
    status: int
    error: object = ""


class _Results(msgspec.Struct):
    results: list[_Result]


_decoder = msgspec.json.Decoder(list[_Result] | _Results)
_encoder = msgspec.json.Encoder()


def item_answers(answer: Answer, count: int, redact: Callable[[str], str]) -> list[Answer]:
    """Return the answer for each record of a batch that got a 2xx, in their order.

    The body may be ``{"results": [{"status": 200}, {"status": 422, "error": "..."}]}``, or that
    list alone, with one entry for each record. Any other body of a 2xx means success for all. A 207
    without readable results is a failed attempt for all.

    Secrets are removed from the texts only, not from the whole body: a secret such as ``2`` may
    occur in a status, too.
    """
    try:
        decoded = _decoder.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = []
    results = decoded.results if isinstance(decoded, _Results) else decoded
    if len(results) == count:
        return [_item_answer(result, redact) for result in results]
    if answer.status != 207:
        return [answer] * count
    text = redact(answer.body.decode("utf-8", "replace"))[:200]
    detail = f"207 without a result for each of {count} records: {text!r}"
    return [Answer(Verdict.RETRYABLE, answer.status, detail)] * count


def _item_answer(result: _Result, redact: Callable[[str], str]) -> Answer:
    verdict = judge(result.status)
    if verdict is Verdict.SUCCESS:
        return Answer(verdict, result.status)
    error = result.error
    text = error if isinstance(error, str) else _encoder.encode(error).decode()
    return Answer(verdict, result.status, redact(text)[:MAX_ERROR_LENGTH])
