"""Several records in one POST: who goes together, and what of the answer is for whom.

Each record asks for its own attempt, as without batches; here those that wait are put together.
A record has no other one of its key beside it, since its lane sends one at a time. So order within
a key needs nothing here.

A refusal for a message's own fault (4xx) says that somebody in the batch is guilty: it is halved
until the guilty one is alone. Any other failure may be one record's fault, too: all are to try
again, once more in the same batch (the target may have taken it), then in a small one, then alone.
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

from order_relay.delivery.answer import JSON, Answer, Company, PostHandler
from order_relay.delivery.back_pressure import Pace
from order_relay.delivery.lanes import Abandoned
from order_relay.delivery.retry import Verdict, judge
from order_relay.model.trace_context import TraceContext

BatchFormat = Literal["json_array", "ndjson"]
LINES = "application/x-ndjson"

# After so many failures a record goes in a batch of a tenth, and from the next one on alone.
FAILURES_IN_COMPANY = 2
SMALL_PART = 10
MAX_ITEM_TEXT = 1024
# Requests at a time, to begin with and after a refusal; one more with each that is taken. A target
# that bears few of them is not sent a hundred at once, and what it bears is seen sooner.
FEW_REQUESTS = 4


@dataclass(frozen=True, slots=True)
class Batching:
    """How records are put together.

    Attributes:
        size: Records in a batch, at most; 1: each goes alone, as it is.
        max_bytes: Of a body; one record alone may have more.
        linger_seconds: How long a record waits for others to go with it.
        form: A JSON array of the values, or a value a line.
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


class _Batch:
    """Records under way together, and the task that sends them."""

    __slots__ = ("items", "task")

    def __init__(self, items: list[_Item]) -> None:
        self.items = items
        self.task: asyncio.Task[None] | None = None


class _Queue:
    """Records that wait to be cut into batches of a size."""

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
    """Puts records together, sends them at a pace, and gives each its answer."""

    def __init__(
        self,
        poster: PostHandler,
        batching: Batching,
        pace: Pace,
        clock: Callable[[], float],
        *,
        max_requests: int,
    ) -> None:
        """Begin with nothing.

        Args:
            poster: By whom bodies are posted; its answers to a 2xx have the body.
            batching: How records are put together.
            pace: Requests a second; is told what they come to.
            clock: Monotonic seconds.
            max_requests: Requests at a time.
        """
        self._poster = poster
        self._batching = batching
        self._pace = pace
        self._clock = clock
        self._max_requests = max_requests
        self._window = min(FEW_REQUESTS, max_requests)
        self._requests = 0
        # Cut when they can be sent, so that they grow while they cannot.
        self._whole = _Queue(batching.size)
        self._small = _Queue(max(batching.size // SMALL_PART, 1))
        self._queues = self._whole, self._small
        # Records of failed batches that have come back so far.
        self._again: dict[Company, list[_Item]] = {}
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
        """Send a record, with others or alone; returns what its answer is.

        Args:
            value: The record's value.
            key: Its idempotency key.
            trace: Goes along where the record is alone.
            failures: Its attempts that failed.
            last: The answer to its last attempt.
            alone: Whether it is to go at once and alone: a probe.
        """
        item = _Item(value, key, trace, self._clock())
        if alone or failures > FAILURES_IN_COMPANY or self._has_lines(value):
            self._ready.append([item])
        elif failures == FAILURES_IN_COMPANY:
            self._small.append(item)
        elif failures and last is not None and last.company is not None:
            item.batch_index = last.batch_index
            self._join(last.company, item)
        else:
            self._whole.append(item)
        self._serve()
        try:
            return await item.answer
        except asyncio.CancelledError:
            batch = item.batch
            if batch is not None and batch.task and all(one.answer.done() for one in batch.items):
                batch.task.cancel()
            raise

    def drain(self) -> None:
        """Let records that were not sent yet be given up: ``post`` raises ``Abandoned``."""
        waiting = [*self._whole.take_all(), *self._small.take_all()]
        for items in (*self._again.values(), *self._ready):
            waiting += items
        self._again.clear()
        self._ready.clear()
        for item in waiting:
            if not item.answer.done():
                item.answer.set_exception(Abandoned())

    def _has_lines(self, value: bytes) -> bool:
        # JSON has line breaks between its tokens only; there they are part of the record's bytes.
        return self._batching.form == "ndjson" and (b"\n" in value or b"\r" in value)

    def _join(self, company: Company, item: _Item) -> None:
        back = self._again.setdefault(company, [])
        back.append(item)
        if len(back) >= company.size:
            self._ready.append(self._leave_together(company))

    def _leave_together(self, company: Company) -> list[_Item]:
        return sorted(self._again.pop(company), key=lambda item: item.batch_index)

    # --- who goes next --------------------------------------------------------------------------

    def _serve(self) -> None:
        """Send what may be sent, and look again when there may be more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._requests < self._window:
            now = self._clock()
            wait = self._ready_in(now)
            if wait == 0.0:
                wait = self._pace.wait_seconds()
            if wait:
                if wait != math.inf:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._serve)
                return
            items = [item for item in self._cut(now) if not item.answer.done()]
            if items:
                if not self._pace.free:
                    self._pace.sent()
                self._requests += 1
                batch = _Batch(items)
                for item in items:
                    item.batch = batch
                batch.task = asyncio.create_task(self._send(batch))

    def _ready_in(self, now: float) -> float:
        """After how many seconds there is something to send."""
        if self._ready:
            return 0.0
        linger, wait = self._batching.linger_seconds, math.inf
        for queue in self._queues:
            if queue.items:
                full = len(queue.items) >= queue.size or queue.bytes > self._batching.max_bytes
                wait = min(wait, 0.0 if full else max(queue.items[0].since + linger - now, 0.0))
        for back in self._again.values():
            wait = min(wait, max(back[-1].since + linger - now, 0.0))
        return wait

    def _cut(self, now: float) -> list[_Item]:
        """Take the next batch out of those that wait."""
        if self._ready:
            return self._ready.popleft()
        linger = self._batching.linger_seconds
        for company, back in self._again.items():
            if back[-1].since + linger <= now:
                return self._leave_together(company)
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
            self._answered(items, answer, sent_at)
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
            batch.items = []  # no cycle is left to the garbage collector
            self._requests -= 1
            self._serve()

    async def _post(self, items: list[_Item]) -> Answer:
        first = items[0]
        if len(items) == 1 and self._has_lines(first.value):
            return await self._poster.post(first.value, first.key, first.trace)
        values = [item.value for item in items]
        if self._batching.form == "ndjson":
            body, content_type = b"\n".join(values) + b"\n", LINES
        else:
            body, content_type = b"[" + b",".join(values) + b"]", JSON
        return await self._poster.post(
            body,
            first.key if len(items) == 1 else batch_key([item.key for item in items]),
            first.trace if len(items) == 1 else None,
            content_type=content_type,
        )

    def _answered(self, items: list[_Item], answer: Answer, sent_at: float) -> None:
        count = len(items)
        answers = [answer] * count
        if answer.verdict is Verdict.SUCCESS:
            answers = answers_of_items(answer, count, self._poster.redact)
        throttled = [one for one in answers if one.verdict is Verdict.THROTTLED]
        if throttled:
            wait = max(one.retry_after_seconds for one in throttled)
            self._pace.refused(sent_at, wait, self._requests - 1)
            self._window = min(FEW_REQUESTS, self._max_requests)
        elif answer.verdict is Verdict.SUCCESS:
            self._pace.accepted(sent_at)
            self._window = min(self._window + 1, self._max_requests)
        if count > 1 and answer.verdict is Verdict.REJECTED:
            middle = (count + 1) // 2
            self._ready.extendleft((items[middle:], items[:middle]))
            return
        if count > 1 and answers[0] is answers[-1]:
            answers = _shared(answers[0], count)
        for item, one in zip(items, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(one)


def _shared(answer: Answer, count: int) -> list[Answer]:
    """Return one answer for each of so many records that it is for."""
    if answer.verdict is Verdict.SUCCESS:
        return [answer, *[replace(answer, batch_index=1)] * (count - 1)]
    company = Company(count)
    return [
        replace(answer, company=company, batch_index=batch_index) for batch_index in range(count)
    ]


def batch_key(keys: Sequence[str]) -> str:
    """Return the idempotency key of a batch: the same for the same records in the same order."""
    return f"batch-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:32]}"


class _Result(msgspec.Struct):
    status: int
    error: object = ""


class _Results(msgspec.Struct):
    results: list[_Result]


_decoder = msgspec.json.Decoder(list[_Result] | _Results)
_encoder = msgspec.json.Encoder()


def answers_of_items(answer: Answer, count: int, redact: Callable[[str], str]) -> list[Answer]:
    """Return what a 2xx says of each record of a batch, in their order.

    The body may be ``{"results": [{"status": 200}, {"status": 422, "error": "..."}]}``, or that
    list alone, with one entry for each record. Any other body of a 2xx finishes all; but a 207
    without readable results says nothing of any record, which is a failed attempt of all.

    Secrets are taken out of the texts, never out of the body as a whole: a secret such as ``2``
    stands in a status, too.
    """
    try:
        found = _decoder.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = []
    results = found.results if isinstance(found, _Results) else found
    if len(results) == count:
        return [_answer_of(result, redact) for result in results]
    if answer.status != 207:
        return [answer] * count
    text = redact(answer.body.decode("utf-8", "replace"))[:200]
    detail = f"207 without a result for each of {count} records: {text!r}"
    return [Answer(Verdict.RETRYABLE, answer.status, detail)] * count


def _answer_of(result: _Result, redact: Callable[[str], str]) -> Answer:
    verdict = judge(result.status)
    if verdict is Verdict.SUCCESS:
        return Answer(verdict, result.status)
    said = result.error
    text = said if isinstance(said, str) else _encoder.encode(said).decode()
    return Answer(verdict, result.status, redact(text)[:MAX_ITEM_TEXT])
