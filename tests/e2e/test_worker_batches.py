"""The shipped worker with several orders in one POST."""

import json
import time
from collections import Counter
from typing import Any

import pytest

from tests.support.limiters import FixedWindow
from tests.support.orders import order, orders
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SIZE = 100


def orders_of(request: Received) -> list[dict[str, Any]]:
    """The orders in a request's body."""
    if request.headers["content-type"] == "application/x-ndjson":
        return [json.loads(line) for line in request.body.splitlines()]
    found = json.loads(request.body)
    return found if isinstance(found, list) else [found]


def ids_of(request: Received) -> set[int]:
    """Their ids."""
    return {one["orderId"] for one in orders_of(request)}


@pytest.mark.parametrize("form", ["json_array", "ndjson"])
async def test_batches_under_a_limit_with_bad_orders_and_a_kill(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker, form: str
) -> None:
    """A logger that takes 50 requests a second gets 3,000 orders; only the bad ones are given up.

    Each key's order is kept. The worker is killed halfway.
    """
    limiter = FixedWindow(50)
    guilty, hopeless = 1500, 2500

    accepted: Counter[int] = Counter()
    order_of_key: dict[str, list[int]] = {}

    def script(request: Received) -> Answer:
        ids = ids_of(request)
        if not limiter.takes(time.monotonic()):
            return Answer(429, headers={"Retry-After": "1"})
        for one in orders_of(request):
            seen = order_of_key.setdefault(one["key"], [])
            if one["orderId"] not in seen:
                seen.append(one["orderId"])
        if guilty in ids:
            return Answer(422, body=b"no such user")
        if hopeless in ids:
            return Answer(500)
        accepted.update(ids)
        return Answer(delay_seconds=0.02)

    sink.script = script
    await stage.publish([*orders(3000, keys=300), order(9_000)])
    async with new_worker(
        external_logger_batch_size=SIZE,
        external_logger_batch_format=form,
        deliveries_store="off",  # else deliveries before the kill are not repeated
    ) as worker:
        await eventually(lambda: len(accepted) >= 1000, 90, "the first orders")
        worker.kill9()
        worker.start()
        wanted = {*range(1, 3001), 9_000} - {guilty, hopeless}
        await eventually(lambda: accepted.keys() == wanted, 120, lambda: f"{len(accepted)}")
        await eventually(stage.all_committed, 60, "everything is committed")
    letters = Counter(
        json.loads(letter.value or b"")["orderId"] for letter in await stage.dead_letters()
    )
    assert letters.keys() == {guilty, hopeless}
    # One more if the kill came between a letter's acknowledgement and the commit.
    assert letters.total() <= 3
    assert max(len(orders_of(request)) for request in sink.requests) == SIZE
    assert all(ids == sorted(ids) for ids in order_of_key.values())
    refused = sum(r.answer is not None and r.answer.status == 429 for r in sink.requests)
    assert refused <= 0.5 * len(sink.requests)
