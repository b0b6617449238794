"""DLQ_AUTO_REDRIVE: one automatic redrive per configured wait, and no more."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.dead_letter_commands import letter, put_letters, relay_on
from tests.support.orders import Headers, Order, order
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker

pytestmark = pytest.mark.e2e


def given_up(number: int, *, redrives: int = 0, reason: str = "retries_exhausted") -> Order:
    """A letter that was given up just now, with an order in it that can be delivered."""
    headers: Headers = (
        ("dlq-failed-at", datetime.now(UTC).isoformat().encode()),
        ("dlq-redrives", b"%d" % redrives),
    )
    made = letter(number, reason=reason, headers=headers)
    return Order(made.key, order(number).value, made.headers, made.partition)


async def test_a_letter_gets_its_chances_and_no_more(
    stage: Stage, sink: ScriptedSink, tmp_path: Path, new_worker: NewWorker
) -> None:
    """Due letters are redriven; rejected letters, and those without redrives left, stay open."""
    sink.script = lambda request: Answer(500 if request.order_id == 2 else 200)
    await put_letters(
        stage, [given_up(1), given_up(2), given_up(3, redrives=1), given_up(4, reason="rejected")]
    )
    async with new_worker(dlq_auto_redrive="1s", consumer_retry_max_attempts=1) as worker:
        await worker.wait_ready()
        await sink.wait_for(lambda s: "paid-1" in s.accepted_keys, timeout=90)
        redriven = "order_relay_dead_letters_auto_redriven_total"
        await worker.wait_metric(redriven, lambda count: count == 2, 30)
        commands = relay_on(stage, tmp_path)

        async def left() -> bool:
            listed = (await commands("dlq", "list", "--json")).objects
            return {(one["order_id"], one["redrives"]) for one in listed} == {
                (2, 1), (3, 1), (4, 0),
            }  # fmt: skip

        await eventually(left, 60, "the second letter of order 2 had its chance")
    assert sink.accepted_keys == ["paid-1"]
    assert len(worker.log_lines("Dead letters redriven automatically")) == 1
