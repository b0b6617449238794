"""A real Prometheus watches a real worker: every panel has data, every alert is evaluated."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.alert_rules import grafanas_own
from tests.support.dashboard_panels import boards, questions
from tests.support.embedded import EmbeddedKafka
from tests.support.kafka.ports import LOOPBACK
from tests.support.orders import Order, order, order_value, orders
from tests.support.prometheus_server import JOB, PrometheusServer, unavailable_reason
from tests.support.sink import Answer, Received, ScriptedSink
from tests.support.stage import Stage
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess

REASON = unavailable_reason()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(300),
]

LIMIT_SECONDS = 60.0
# The embedded cluster has no controller, which would say how long it keeps records. On real Kafka
# tests/kafka/test_delivery_topics.py sees it.
UNKNOWN_HERE = ["Records near their deletion"]
REJECTED, HOPELESS = 901, 902
POISON = [
    Order(b"t", None), Order(b"u", b"\xff\xfe"), Order(b"j", b"{"),
    Order(b"e", b'{"eventType":"ORDER_PAID"}'),
]  # fmt: skip
# The series that the story below must move.
HAPPENED = [
    *(f'order_relay_deliveries_total{{outcome="{outcome}"}}'
      for outcome in ("delivered", "dead_lettered", "duplicate")),
    *(f'order_relay_delivery_attempts_total{{result="{result}", status="{status}"}}'
      for result, status in (("success", "2xx"), ("retryable", "5xx"), ("throttled", "429"),
                             ("rejected", "4xx"), ("outage", "4xx"))),
    *(f'order_relay_target_state{{state="{state}"}}'
      for state in ("works", "throttles", "fails_for_some", "refuses_us")),
    "order_relay_target_rate_limit",
    "order_relay_concurrency_limit",
    "order_relay_first_attempts_failed_ratio",
    *(f'order_relay_dead_letters_total{{reason="{reason}"}}'
      for reason in ("tombstone", "invalid_utf8", "invalid_json", "invalid_event", "rejected",
                     "retries_exhausted")),
    *(f'order_relay_published_total{{result="{result}"}}'
      for result in ("published", "saved", "refused")),
    *(f'order_relay_fallback_replayed_total{{result="{result}"}}'
      for result in ("published", "failed")),
    *(f'order_relay_fallback_messages{{status="{status}"}}'
      for status in ("pending", "published", "failed")),
    "order_relay_delivery_retries_total",
    "order_relay_breaker_state",
    "order_relay_fallback_oldest_pending_seconds",
    "order_relay_table_entries",
]  # fmt: skip


class Story:
    """A worker, its logger and its Kafka, and what happens to them."""

    def __init__(
        self, kafka: EmbeddedKafka, stage: Stage, sink: ScriptedSink, folder: Path
    ) -> None:
        self.kafka = kafka
        self.stage = stage
        self.sink = sink
        self.database = folder / "relay.db"
        self.worker = WorkerProcess(
            folder, stage, sink.url, breaker_failure_threshold=8,
            fallback_replay_interval_seconds=1, producer_delivery_timeout_ms=3000,
            producer_request_timeout_ms=1000, database_url=f"sqlite+aiosqlite:///{self.database}",
        )  # fmt: skip
        sink.script = self._answer

    def _answer(self, request: Received) -> Answer:
        if request.order_id == REJECTED:
            return Answer(422)
        return Answer(503) if request.order_id == HOPELESS else Answer()

    async def deliver(self) -> None:
        """Deliver orders: one is rejected, one fails four times, four are invalid, one repeats."""
        await self.stage.publish([*orders(100), *POISON, order(REJECTED)])
        await self.wait_for("deliveries_total", 'outcome="delivered"', 100)
        # Successes between its failures keep the breaker closed.
        await self.stage.publish([order(HOPELESS), *orders(100, first=200)])
        await self.wait_for("dead_letters_total", 'reason="retries_exhausted"', 1)
        for _ in range(2):
            await self.stage.publish([order(300, event_id="the-same")])
        await self.wait_for("deliveries_total", 'outcome="duplicate"', 1)

    async def throttle(self) -> None:
        """The logger answers 429 to all requests in flight, with Retry-After 1."""
        self.sink.fail_next(20, 429, headers={"Retry-After": "1"})
        await self.stage.publish(orders(20, first=350))
        await self.wait_for("target_state", 'state="throttles"', 1)

    async def outage(self, told: Callable[[], Awaitable[None]]) -> None:
        """The logger refuses the token, and the breaker opens; then it accepts the token again.

        Args:
            told: Waits until Prometheus has seen it.
        """
        self.sink.script = lambda _: Answer(401)
        await self.stage.publish(orders(50, first=400))
        await told()
        self.sink.script = self._answer
        await self.wait_for("deliveries_total", 'outcome="delivered"', 271)

    async def pay(self) -> None:
        """Post orders: one is published, one is refused, and one is saved while Kafka is down."""
        for body, status in ((order_value(601), "published"), (b"{}", None)):
            assert (await self.worker.post_order(body))[1].get("status") == status
        self.kafka.down()
        assert (await self.worker.post_order(order_value(602)))[1]["status"] == "saved"
        self.kafka.up()
        await self.wait_for("fallback_replayed_total", 'result="published"', 1)

    async def rows_that_wait(self) -> None:
        """Insert a row that can never be published, and one that is due in 2999."""
        connection = sqlite3.connect(self.database, timeout=30)
        with connection:
            connection.execute(
                "INSERT INTO kafka_fallback_message (topic, payload, headers) VALUES (?, '1', '?')",
                (self.stage.topic,),
            )
            connection.execute(
                "INSERT INTO kafka_fallback_message (topic, payload, next_retry_at)"
                " VALUES (?, '1', '2999-01-01 00:00:00.000000')",
                (self.stage.topic,),
            )
        connection.close()
        for status in ("failed", "pending", "published"):
            await self.wait_for("fallback_messages", f'status="{status}"', 1)

    async def wait_for(self, name: str, label: str, value: float) -> None:
        """Wait until a metric of the worker has at least this value."""
        key = f"order_relay_{name}{{{label}}}"
        await self.worker.wait_metric(key, lambda now: now >= value, LIMIT_SECONDS)


async def test_every_panel_has_data_and_every_alert_is_evaluated(
    fragile: EmbeddedKafka, sink: ScriptedSink, tmp_path: Path
) -> None:
    """Prometheus scrapes a worker through a day's events; then every Grafana query is run."""
    story = Story(fragile, fragile.stage(), sink, tmp_path)
    target = f"{LOOPBACK}:{story.worker.web_port}"
    async with story.worker as worker, PrometheusServer(tmp_path, [target]) as prometheus:
        await worker.wait_ready()
        await seen(prometheus, "order_relay_topic_partitions > 0")
        await story.deliver()
        await story.throttle()
        await story.outage(lambda: seen(prometheus, "order_relay_breaker_state == 2"))
        await story.pay()
        await story.rows_that_wait()
        for series in HAPPENED:
            await seen(prometheus, f"max_over_time({series}[10m]) > 0")
        await alerts_are_well(prometheus)
        await variables_have_values(prometheus, target)
        await panels_have_data(prometheus, target)
        assert await worker.stop() == 0
    assert "Traceback" not in worker.log_text()


async def seen(prometheus: PrometheusServer, expr: str) -> None:
    """Wait until an expression has a value."""

    async def has_value() -> bool:
        return bool(await prometheus.values(expr))

    await eventually(has_value, LIMIT_SECONDS, expr)


async def alerts_are_well(prometheus: PrometheusServer) -> None:
    """Every rule is evaluated without an error; dead letters and the FAILED row raise alerts."""
    await seen(prometheus, 'ALERTS{alertname="OrderRelayDeadLetters", alertstate="firing"}')
    await seen(prometheus, 'ALERTS{alertname="OrderRelayFailedRows"}')
    await seen(prometheus, "order_relay:late:ratio_rate30d")
    rules = await prometheus.rules()
    assert len(rules) > 10
    assert {
        rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"
    } == {}
    for rule in rules:
        await prometheus.values(rule["query"])
    assert await prometheus.values('ALERTS{alertname="OrderRelayNoWorker"}') == []
    asked, _ = grafanas_own()["data"]
    # A group without an evaluation has the timestamp 0, which is 1970.
    await seen(prometheus, f"{asked['model']['expr']} < 120")
    assert await prometheus.values('ALERTS{alertname="OrderRelayPartitionsUnassigned"}') == []


async def variables_have_values(prometheus: PrometheusServer, target: str) -> None:
    """The queries of the variables find the group and its worker."""
    for _, board in boards():
        queries = [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
        assert queries == [
            "label_values(order_relay_breaker_state, job)",
            'label_values(order_relay_breaker_state{job="$job"}, instance)',
            'label_values(order_relay_breaker_state{job="$job"}, consumer)',
        ]
    assert await prometheus.label_values("order_relay_breaker_state", "job") == {JOB}
    workers = await prometheus.label_values(f'order_relay_breaker_state{{job="{JOB}"}}', "instance")
    assert workers == {target}
    of_job = f'order_relay_breaker_state{{job="{JOB}"}}'
    assert await prometheus.label_values(of_job, "consumer") == {"order_logging"}


async def panels_have_data(prometheus: PrometheusServer, target: str) -> None:
    """Every query of every panel returns a number, except where none can be known."""
    variables = {
        "job": JOB, "worker": f"({target}|another:6066)", "consumer": ".*",
        "__rate_interval": "10s", "__range": "10m", "__range_s": "600",
    }  # fmt: skip
    assert len(list(questions())) > 60
    empty: list[str] = []

    async def only_unknown_are_empty() -> bool:
        # A range query shows a new value only after its next step.
        empty[:] = [
            question.panel
            for question in questions()
            if not any(one.values for one in await prometheus.history(question.asked(variables)))
        ]
        return empty == UNKNOWN_HERE

    await eventually(only_unknown_are_empty, LIMIT_SECONDS, "every panel has data")
