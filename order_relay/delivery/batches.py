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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from order_relay.delivery.answer import JSON, Answer, FailedBatch, PostHandler, Verdict
from order_relay.delivery.back_pressure import LIMIT_SHARE, Pace
from order_relay.delivery.batch_results import item_answers
from order_relay.model.events import is_json
from order_relay.model.trace_context import TraceContext

BatchFormat = Literal["json_array", "ndjson"]
NDJSON = "application/x-ndjson"

# After this many failures a record goes into a batch of a tenth of the size; after more, alone.
FAILURES_IN_LARGE_BATCH = 2
SMALL_BATCH_DIVISOR = 10
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
        raw: Whether values may be other than JSON, which are sent alone.
    """

    size: int = 1
    max_bytes: int = 1_000_000
    linger_seconds: float = 0.02
    form: BatchFormat = "json_array"
    raw: bool = False


@dataclass(slots=True, eq=False)
class _Item:
    """A record that waits to be sent, or for its answer."""

    value: bytes
    key: str
    trace: TraceContext | None
    due: float
    has_own_limit: bool
    answer: asyncio.Future[Answer] = field(default_factory=asyncio.Future)
    batch_index: int = 0
    # The records under way with it, and the task that sends them.
    batch: list[_Item] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Queue:
    """Records that wait for others, to make a batch of ``size``."""

    size: int
    items: deque[_Item] = field(default_factory=deque)
    bytes: int = 0


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
        # Batches are made when they can be sent, so that they fill up until then. Records of a
        # failed batch wait for each other; all others have the queue of their batch's size.
        self._queues: dict[FailedBatch | int, _Queue] = {}
        self._ready: deque[list[_Item]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.draining = False
        """Whether nothing new is sent."""

    async def post(
        self,
        value: bytes,
        key: str,
        trace: TraceContext | None,
        *,
        failures: int = 0,
        last: Answer | None = None,
        alone: bool = False,
        has_own_limit: bool = False,
    ) -> Answer:
        """Send a record, in a batch or alone, and return its answer.

        Args:
            value: The record's value.
            key: Its idempotency key.
            trace: Sent only if the record is alone.
            failures: Its failed attempts.
            last: The answer to its last attempt.
            alone: Whether it is sent at once and alone, as a probe.
            has_own_limit: Whether its key is refused while others are accepted: it is sent alone,
                and a refusal says nothing about the target.

        Raises:
            CancelledError: ``drain`` was called before the record was sent, or before its rejected
                batch was halved.
        """
        due = self._clock() + self._batching.linger_seconds
        item = _Item(value, key, trace, due, has_own_limit)
        alone = alone or has_own_limit
        size = self._batching.size
        if alone or failures > FAILURES_IN_LARGE_BATCH or self._goes_alone(value):
            self._ready.append([item])
        elif failures == FAILURES_IN_LARGE_BATCH:
            self._append(max(size // SMALL_BATCH_DIVISOR, 1), item)
        elif failures and last is not None and last.failed_batch is not None:
            item.batch_index = last.batch_index
            queue = self._append(last.failed_batch, item)
            queue.items[0].due = item.due  # there may be many: it lingers after the last one
        else:
            self._append(size, item)
        self._serve()
        try:
            return await item.answer
        except asyncio.CancelledError:
            if item.task is not None and all(one.answer.done() for one in item.batch):
                item.task.cancel()
            raise

    def drain(self) -> None:
        """Abandon all records that were not sent yet: their ``post`` is cancelled."""
        self.draining = True
        for items in (*(queue.items for queue in self._queues.values()), *self._ready):
            for item in items:
                item.answer.cancel()
        self._queues.clear()
        self._ready.clear()

    def _append(self, batch: FailedBatch | int, item: _Item) -> _Queue:
        size = batch if isinstance(batch, int) else batch.size
        queue = self._queues.setdefault(batch, _Queue(size))
        queue.items.append(item)
        queue.bytes += len(item.value) + 1
        return queue

    def _goes_alone(self, value: bytes) -> bool:
        # Line breaks between JSON tokens are part of the record's bytes, and are not removed.
        has_lines = self._batching.form == "ndjson" and (b"\n" in value or b"\r" in value)
        return has_lines or (self._batching.raw and not is_json(value))

    # --- the next batch -------------------------------------------------------------------------

    def _serve(self) -> None:
        """Send all batches that may be sent, and set a timer for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (self._ready or self._queues) and self._requests < self._window:
            batch = None if self._ready else min(self._queues, key=self._turn)
            wait = 0.0 if batch is None else self._turn(batch)[0]
            if wait := wait or self._pace.wait_seconds():
                self._timer = asyncio.get_running_loop().call_later(wait, self._serve)
                return
            waiting = self._ready.popleft() if batch is None else self._pop(batch)
            if items := [item for item in waiting if not item.answer.done()]:
                if not self._pace.free:
                    self._pace.sent()
                self._requests += 1
                task = asyncio.create_task(self._send(items, self._clock()))
                for item in items:
                    item.batch, item.task = items, task

    def _turn(self, batch: FailedBatch | int) -> tuple[float, float]:
        """Return the seconds until a queue has a batch, and when its first record is due."""
        queue = self._queues[batch]
        due = queue.items[0].due
        if len(queue.items) >= queue.size or queue.bytes > self._batching.max_bytes:
            return 0.0, due
        return max(due - self._clock(), 0.0), due

    def _pop(self, batch: FailedBatch | int) -> list[_Item]:
        """Remove the records of a queue's next batch: at least one."""
        queue = self._queues[batch]
        items: list[_Item] = []
        room = self._batching.max_bytes - 1
        # Perhaps each batch has a record that is refused for its own limit.
        size = 1 if self._pace.probing else queue.size
        while queue.items and len(items) < size:
            length = len(queue.items[0].value) + 1
            room -= length
            if items and room < 0:
                break
            items.append(queue.items.popleft())
            queue.bytes -= length
        if not queue.items:
            del self._queues[batch]
        return sorted(items, key=lambda item: item.batch_index)

    # --- one request ----------------------------------------------------------------------------

    async def _send(self, items: list[_Item], sent_at: float) -> None:
        try:
            self._distribute(items, await self._post(items), sent_at)
        except Exception as error:  # noqa: BLE001 - it is each record's error
            self._pace.ended(sent_at)
            for item in items:
                if not item.answer.done():
                    item.answer.set_exception(error)
        finally:
            items.clear()  # breaks the reference cycle
            self._requests -= 1
            self._serve()

    async def _post(self, items: list[_Item]) -> Answer:
        first = items[0]
        if len(items) == 1 and self._goes_alone(first.value):
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
        # A few records' own limit is not the target's: they alone are sent again.
        if len(throttled) >= LIMIT_SHARE * count and not items[0].has_own_limit:
            wait = max(one.retry_after_seconds for one in throttled)
            if len(throttled) < count:  # or it would count as one that accepts nothing
                self._pace.accepted(sent_at)
            self._pace.refused(sent_at, wait, self._requests - 1)
            self._window = min(INITIAL_REQUESTS, self._max_requests)
        elif answer.verdict is Verdict.SUCCESS:
            self._pace.accepted(sent_at)
            self._window = min(self._window + 1, self._max_requests)
        else:
            self._pace.ended(sent_at)
        if count > 1 and answer.verdict is Verdict.REJECTED:
            middle = (count + 1) // 2
            self._ready.extendleft((items[middle:], items[:middle]))
            if self.draining:
                self.drain()
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
