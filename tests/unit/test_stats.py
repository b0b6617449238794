"""A worker's figures: they are those of the metrics, and the page explains them."""

import ast
import asyncio
import json
import logging
import re
import time
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
from faust.types import TP
from prometheus_client import CollectorRegistry

from order_relay.dead_letters.open_letters import OpenFigures
from order_relay.delivery.breaker import Breaker
from order_relay.delivery.target_health import TargetState
from order_relay.fallback.store import FallbackStats
from order_relay.kafka.consumer import RelayConsumer
from order_relay.monitoring.metrics import PREFIX, Metrics
from order_relay.monitoring.stats import Samples, Stats, quantile
from order_relay.settings import load_settings
from order_relay.version import VERSION
from tests.support.metric_catalogue import catalogue
from tests.support.targets import standing_dispatcher, target
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


class FakeConsumer:
    """A consumer with two partitions, one of them never committed."""

    group_problem = ""

    def committed_offsets(self) -> dict[TP, int | None]:
        return {TP("orders", 2): None, TP("orders", 0): 41}

    def positions(self) -> dict[TP, int | None]:
        return {TP("orders", 0): 57, TP("orders", 2): None}


class Bench:
    """Figures with their own clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.worker = Metrics(CollectorRegistry())
        self.metrics = self.worker.of("order_logging")
        self.breaker = Breaker(2, 5.0, lambda: self.now)
        self.metrics.watch(
            in_flight=lambda: 3,
            held_records=lambda: 5,
            left_in_kafka_records=lambda: 7,
            breaker_state=lambda: self.breaker.state,
            oldest_unfinished_seconds=lambda: 2.26,
        )
        self.target = target()
        self.metrics.target = lambda: self.target
        self.stats = Stats(
            self.metrics,
            load_settings(consumer_group_id="g", advertised_url="http://10.0.0.1:6066"),
            cast(RelayConsumer, FakeConsumer()),
            standing_dispatcher(self.breaker, lambda: self.target),
            clock=lambda: self.now,
            wall_clock=lambda: 1_766_140_200.0 + self.now - 1000.0,
        )

    def figures(self) -> dict[str, Any]:
        """The page, as decoded JSON."""
        found = json.loads(json.dumps(self.stats.figures(), allow_nan=False))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def bench() -> Bench:
    """A worker that has just started."""
    return Bench()


def test_a_new_worker_has_figures_for_everything(bench: Bench) -> None:
    """Counts are 0, unknown figures are null, and nothing is missing."""
    found = bench.figures()
    assert found["version"] == VERSION
    assert found["time"] == "2025-12-19T10:30:00.000Z"
    assert found["uptime_seconds"] == 0
    assert found["deliveries"] == {
        "delivered": 0, "dead_lettered": 0, "duplicate": 0, "skipped": 0, "abandoned": 0
    }  # fmt: skip
    assert found["paid_to_delivered"] == {
        "count": 0, "average_seconds": None,
        "p50_seconds": None, "p95_seconds": None, "p99_seconds": None,
    }  # fmt: skip
    assert found["fallback"]["database_up"] is False
    assert found["fallback"]["pending"] is None
    assert found["fallback"]["oldest_pending_seconds"] is None
    assert found["logged_at"] is None


def test_the_figures_are_those_of_the_metrics(bench: Bench) -> None:
    """The observers' counts, by the same names."""
    metrics = bench.metrics
    for seconds in (0.02, 0.02, 0.2, 4.0):
        metrics.delivered(seconds)
    bench.worker.of("coupons").delivered(9.0)
    metrics.attempted("success", "2xx", 0.01)
    metrics.attempted("retryable", "5xx", 0.5)
    metrics.attempted("retryable", "timeout", 9.0)
    metrics.retrying()
    metrics.dead_lettered("rejected")
    metrics.counters["dead_letters_saved"].inc()
    bench.worker.published("saved")
    bench.worker.replayed("retried")
    bench.worker.counted(
        FallbackStats(
            pending=2,
            published=45,
            failed=1,
            oldest_pending_seconds=61.04,
            oldest_failed_seconds=7.33,
        ),
        works=True,
    )
    metrics.of_partition("consumer_lag", "orders", 0, 16)
    metrics.counters["deleted_records"].inc(5)
    for partition, near, seconds in ((0, 3, 0.0), (2, 4, 61.26)):
        metrics.of_partition("near_deletion_records", "orders", partition, near)
        metrics.of_partition("transaction_open_seconds", "orders", partition, seconds)
    bench.now += 90.0
    found = bench.figures()
    assert found["uptime_seconds"] == 90.0
    assert found["deliveries"]["delivered"] == 4
    assert found["deliveries"]["dead_lettered"] == 1
    assert found["attempts"] == {
        "success": 1, "retryable": 2, "throttled": 0, "outage": 0, "gone": 0, "rejected": 0,
        "local": 0,
    }  # fmt: skip
    assert found["retries"] == 1
    assert found["dead_letters"]["rejected"] == 1
    assert found["dead_letters_saved"] == 1
    assert found["paid_to_delivered"]["count"] == 4
    assert found["paid_to_delivered"]["average_seconds"] == 1.06
    assert 0.01 < found["paid_to_delivered"]["p50_seconds"] <= 0.025
    assert 2.5 < found["paid_to_delivered"]["p99_seconds"] <= 5.0
    assert found["published"]["saved"] == 1
    assert found["fallback"] == {
        "database_up": True, "files_replaced": 0, "pending": 2, "published": 45, "failed": 1,
        "oldest_pending_seconds": 61.0, "oldest_failed_seconds": 7.3,
        "replayed": {"published": 0, "retry": 1, "failed": 0},
    }  # fmt: skip
    assert (found["in_flight"], found["held"], found["oldest_unfinished_seconds"]) == (3, 5, 2.3)
    assert found["left_in_kafka"] == 7
    assert (found["deleted_records"], found["near_deletion_records"]) == (5, 7)
    assert found["transaction_open_seconds"] == 61.3
    assert found["partitions"] == [
        {"topic": "orders", "partition": 0, "lag": 16, "committed": 41, "position": 57},
        {"topic": "orders", "partition": 2, "lag": None, "committed": None, "position": None},
    ]


def test_an_open_breaker_says_when_it_probes(bench: Bench) -> None:
    """The state, the failed probes, and how long until the next one."""

    def shown() -> tuple[object, ...]:
        breaker = bench.figures()["breaker"]
        assert list(breaker) == ["state", "failed_probes", "next_probe_seconds"]
        return tuple(breaker.values())

    assert shown() == ("closed", 0, None)
    bench.breaker.failed(0, first=True)
    bench.breaker.failed(0, first=True)
    bench.now += 0.5
    assert shown() == ("open", 0, 0.5)
    bench.now += 4.0
    assert shown() == ("open", 0, 0)
    ticket = bench.breaker.begin_probe(never_sent=False)
    assert shown() == ("half_open", 0, None)
    bench.breaker.failed(ticket, first=True)
    assert shown() == ("open", 1, 5.0)


def test_the_target_is_shown(bench: Bench) -> None:
    """Its state, since when, its last text and the next probe; null for what is missing."""
    assert bench.figures()["target"] == {
        "state": "works", "since_seconds": 75.0, "said": "works for 75 s", "rate_limit": None,
        "concurrency_limit": 256, "share_failed": 0, "last_status": None, "last_text": "",
        "last_seconds": None, "next_probe_seconds": None, "opened_because": "",
    }  # fmt: skip
    bench.target = target(
        TargetState.DOWN, seconds=12.34, share_failed=1 / 3, last_status=503, last_text="no\ndisk",
        last_seconds=2.06, next_probe_seconds=2.94, opened_because="20 first attempts failed",
    )  # fmt: skip
    assert bench.figures()["target"] == {
        "state": "down", "since_seconds": 12.3, "said": str(bench.target), "rate_limit": None,
        "concurrency_limit": 256, "share_failed": 0.3333, "last_status": 503,
        "last_text": "no\ndisk", "last_seconds": 2.1, "next_probe_seconds": 2.9,
        "opened_because": "20 first attempts failed",
    }  # fmt: skip
    assert "\n" not in bench.figures()["target"]["said"]
    bench.target = target(TargetState.THROTTLES, rate=0.2468, concurrency=3)
    assert bench.figures()["target"]["rate_limit"] == 0.247
    assert bench.figures()["target"]["concurrency_limit"] == 3


def test_open_letters_are_those_of_the_metrics(bench: Bench) -> None:
    """By reason, those of other programs as "other"; null while unknown."""
    by_reason = {"rejected": 2, "tombstone": 1, "of_others": 1}
    bench.metrics.open_letters(OpenFigures(by_reason, time.time() - 90_000))
    found = bench.figures()["open_dead_letters"]
    assert (found["total"], found["by_reason"]["retries_exhausted"]) == (4, 0)
    assert {name: n for name, n in found["by_reason"].items() if n} == {
        "rejected": 2, "tombstone": 1, "other": 1
    }  # fmt: skip
    assert 90_000 <= found["oldest_seconds"] < 90_100
    bench.metrics.open_letters(None)
    assert bench.figures()["open_dead_letters"]["total"] is None


@pytest.mark.parametrize("state", TargetState)
def test_the_states_have_the_same_names_everywhere(bench: Bench, state: TargetState) -> None:
    """The target's state in /stats is the metric's label."""
    bench.target = target(state)
    name = bench.figures()["target"]["state"]
    label = {"consumer": "order_logging", "state": name}
    assert bench.metrics.registry.get_sample_value(f"{PREFIX}_target_state", label) == 1


def test_the_hourly_line_of_deliveries(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The phrase, then the figures; the page has the time of the line."""
    bench.metrics.delivered(0.1)
    bench.metrics.of_partition("consumer_lag", "orders", 0, 16)
    bench.now += 3600.0
    with caplog.at_level(logging.INFO):
        bench.stats.log()
    (line,) = caplog.messages
    assert line == (
        "Delivery stats - delivered: 1, dead lettered: 0, duplicates: 0, lag: 16, "
        "oldest unfinished: 2.3 s, breaker: closed, target: works for 75 s"
    )
    assert bench.figures()["logged_at"] == "2025-12-19T11:30:00.000Z"


async def test_the_line_comes_at_every_interval(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes repeatedly."""
    with caplog.at_level(logging.INFO):
        task = asyncio.create_task(bench.stats.log_regularly(0.001))
        await eventually(lambda: len(caplog.messages) >= 3, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert all(message.startswith("Delivery stats - ") for message in caplog.messages)


def test_every_metric_that_is_read_exists(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not in the catalogue would have no value."""
    names: set[str] = set()
    read = Samples._of

    def spy(samples: Samples, name: str) -> Any:
        names.add(f"{PREFIX}_{name}")
        return read(samples, name)

    monkeypatch.setattr(Samples, "_of", spy)
    bench.figures()
    bench.stats.log()
    assert len(names) > 25
    assert names <= catalogue().keys()


def test_a_quantile_is_estimated_within_its_bucket() -> None:
    """As Prometheus does: in proportion, and never beyond the last finite bound."""
    buckets = [(1.0, 10.0), (2.0, 30.0), (4.0, 30.0), (float("inf"), 40.0)]
    assert quantile(buckets, 0.25) == 1.0
    assert quantile(buckets, 0.5) == 1.5
    assert quantile(buckets, 0.99) == 4.0
    assert quantile([], 0.5) is None
    assert quantile([(1.0, 0.0)], 0.5) is None


def test_the_version_is_the_project_s() -> None:
    """It is in two files, which must agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION


def test_the_document_describes_every_figure(bench: Bench) -> None:
    """docs/reference/web.md has a row for each key of the page, and no other."""
    text = (ROOT / "docs" / "reference" / "web.md").read_text(encoding="utf-8")
    section = text.partition("## Figures of a worker")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(bench.stats.figures())
    example = ast.literal_eval(
        section.partition("```json\n")[2].partition("\n```")[0]
        .replace("null", "None").replace("true", "True").replace("false", "False")
    )  # fmt: skip
    assert set(example) == set(bench.stats.figures())
