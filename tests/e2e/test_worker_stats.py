"""The figures of the shipped worker under traffic; without Kafka, see test_worker_start."""

import json

import pytest

from tests.support.orders import order, orders
from tests.support.sink import Answer, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import NewWorker, attempts

pytestmark = pytest.mark.e2e


async def test_the_figures_under_traffic_are_those_of_the_metrics(
    stage: Stage, sink: ScriptedSink, new_worker: NewWorker
) -> None:
    """Counts, offsets, times and the log line agree, and no secret is shown."""
    sink.script = lambda request: Answer(
        422 if request.order_id == 7 else 503 if request.attempt == 1 else 200
    )
    await stage.publish([order(7), *orders(60, first=100)])
    async with new_worker(
        external_logger_token="hush-hush",
        api_token="whisper",
        fallback_stats_interval_seconds=1,
        breaker_failure_threshold=0,
    ) as worker:
        await sink.wait_for(lambda s: len(s.accepted) == 60, timeout=60)
        await eventually(stage.all_committed, 20, "everything is committed")
        ends = await stage.ends()

        async def settled() -> bool:
            found = await worker.json("/stats")
            return [one["lag"] for one in found["partitions"]] == [0] * len(ends)

        await worker.wait_until(settled, 30, "to show a lag of 0")
        found, metrics = await worker.json("/stats"), await worker.metrics()
        await worker.wait_log("Delivery stats - delivered: 60, dead lettered: 1, duplicates: 0, ")
        assert await worker.stop() == 0
    assert not worker.log_lines("Breaker open")  # the threshold is 0, and 61 in a row failed
    assert found["group"] == stage.group_id
    assert found["worker"]["pid"] > 0
    assert str(worker.web_port) in found["worker"]["url"]
    assert found["kafka_up"] is True
    assert found["uptime_seconds"] > 0
    assert [(one["topic"], one["partition"]) for one in found["partitions"]] == [
        (stage.topic, partition) for partition in sorted(ends)
    ]
    for one in found["partitions"]:
        if ends[one["partition"]]:
            assert one["committed"] == one["position"] == ends[one["partition"]]
    for outcome, count in found["deliveries"].items():
        assert metrics[f'order_relay_deliveries_total{{outcome="{outcome}"}}'] == count
    for result, count in found["attempts"].items():
        assert attempts(metrics, result) == count
    assert (found["deliveries"]["delivered"], found["deliveries"]["dead_lettered"]) == (60, 1)
    assert found["attempts"]["retryable"] == found["retries"] == 60
    assert found["dead_letters"]["rejected"] == 1
    assert found["paid_to_delivered"]["count"] == 60
    assert found["paid_to_delivered"]["p95_seconds"] >= found["paid_to_delivered"]["p50_seconds"]
    assert found["breaker"]["state"] == "closed"
    assert found["target"]["state"] == "fails_for_some"
    assert found["target"]["said"].startswith("fails for some records for ")
    assert (found["target"]["last_status"], found["target"]["last_text"]) in {(503, ""), (422, "")}
    assert metrics['order_relay_target_state{state="fails_for_some"}'] == 1
    assert metrics["order_relay_concurrency_limit"] == found["target"]["concurrency_limit"] > 0
    assert (found["in_flight"], found["held"]) == (0, 0)
    assert found["fallback"]["database_up"] is True
    assert not {"hush-hush", "whisper"} & set(json.dumps(found).split('"'))
