"""``POST /probe`` on the shipped worker."""

import json
from pathlib import Path

import pytest

from order_relay.delivery.target_health import MAX_SHORT_WAITS
from tests.support.orders import event_ids, orders
from tests.support.sink import ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.e2e

TOKEN = "hush-hush"


async def test_a_probe_goes_at_once_when_it_is_asked_for(
    stage: Stage, sink: ScriptedSink, tmp_path: Path
) -> None:
    """With ten minutes from probe to probe all is delivered at once after ``POST /probe``."""
    await sink.down()
    published = await stage.publish(orders(40))
    async with WorkerProcess(
        tmp_path,
        stage,
        sink.url,
        breaker_failure_threshold=3,
        breaker_probe_interval_seconds=600,
        max_in_flight=8,  # the others wait, and were never sent
        api_token=TOKEN,
    ) as worker:
        await worker.wait_log("Breaker open")
        assert (await worker.post("/probe"))[0] == 401
        assert (await worker.post("/probe", "wrong"))[0] == 401

        async def waits_long() -> bool:
            answer = await worker.get("/stats")
            breaker = json.loads(answer[1])["breaker"] if answer else {}
            # Records that were never sent probe after a second, but only so often.
            return bool(breaker.get("failed_probes", 0) > MAX_SHORT_WAITS)

        await worker.wait_until(waits_long, 60, "to probe no more for ten minutes")
        await sink.up()
        assert not sink.requests
        assert await worker.post("/probe", TOKEN) == (202, '{"probing": true}')
        await sink.wait_for(lambda s: len(s.accepted) == len(published), timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        status, text = await worker.post("/probe", TOKEN)
        assert (status, "nothing to probe" in text) == (409, True)
        assert await worker.stop() == 0
    assert sorted(sink.accepted_keys) == sorted(event_ids(published))
    assert not await stage.dead_letters()
    assert len(worker.log_lines("Probe asked for, it goes at once")) == 1
    assert "because=3 first attempts in a row failed" in worker.log_lines("Breaker open")[0]
    assert TOKEN not in worker.log_text()
