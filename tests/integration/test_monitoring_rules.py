"""Prometheus' own tools check alerts, configuration, and the dashboards' arithmetic."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.child import run
from tests.support.dashboard_panels import questions
from tests.support.prometheus_server import FOLDER, JOB, promtool, unavailable_reason

REASON = unavailable_reason()

pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

SUITES = sorted((FOLDER / "tests").glob("*.yml"))


def test_prometheus_can_read_its_configuration() -> None:
    """Prometheus can read its configuration and finds the alerts."""
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout


@pytest.mark.skipif(
    shutil.which("amtool") is None,
    reason="amtool is not installed (Debian: apt-get install prometheus-alertmanager)",
)
def test_alertmanager_can_read_its_configuration() -> None:
    """Alertmanager's own tool finds the receiver and the inhibition rule."""
    done = run("amtool", "check-config", FOLDER / "alertmanager.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 inhibit rules" in done.stdout
    assert "1 receivers" in done.stdout


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_alerts_fire_where_they_must_and_nowhere_else(suite: Path) -> None:
    """Promtool's unit tests of the alerts pass."""
    done = promtool("test", "rules", suite.name, folder=suite.parent)
    assert done.returncode == 0, done.stdout + done.stderr


# Name, further labels, and the values of the workers a, b and c. a and b share one fallback table
# and one topic, and report the same values for them.
SERIES: list[tuple[str, str, str | None, str | None, str | None]] = [
    ("order_relay_fallback_messages", ', status="pending"', "7x20", "7x20", None),
    ("order_relay_fallback_messages", ', status="failed"', "3x20", "3x20", None),
    ("order_relay_fallback_oldest_pending_seconds", "", "40x20", "40x20", None),
    ("order_relay_topic_partitions", "", "6x20", "6x20", None),
    ("order_relay_assigned_partitions", "", "3x20", "2x20", None),
    ("order_relay_breaker_state", "", "0x20", "2x20", None),
    ("order_relay_kafka_up", "", "1x20", "0x20", None),
    # Partition 1 has just moved from a to b, and both reported it for a moment.
    ("order_relay_consumer_lag", ', topic="t", partition="0"', "10x20", None, None),
    ("order_relay_consumer_lag", ', topic="t", partition="1"', "5x20", "5x20", None),
    ("order_relay_dead_letters_open", ', reason="rejected"', "4x20", "4x20", None),
    ("order_relay_dead_letters_open", ', reason="tombstone"', "2x20", None, None),
    # The third was started five minutes ago, and failed before it was first seen.
    ("order_relay_published_total", ', result="failed"', "0 1x20", "0 1x20", "_x9 3x9"),
    ("process_start_time_seconds", "", "-7200x20", "-7200x20", "_x9 590x9"),
]
WORKERS = {
    f'{name}{{job="order-relay", instance="{worker}"{labels}}}': values
    for name, labels, *each in SERIES
    for worker, values in zip("abc", each, strict=True)
    if values is not None
    # Another job's worker, which these dashboards must not add.
} | {'order_relay_assigned_partitions{job="another", instance="z"}': "4x20"}
FIGURES = {
    "Rows pending": 7,
    "Rows FAILED": 3,
    "Oldest pending row": 40,
    "Partitions of the topic": 6,
    "Partitions owned": 5,
    "Partitions without a worker": 1,
    "Target": 2,
    "Kafka": 0,
    "Records waiting": 15,
    "Open dead letters": 6,
    "Posted orders refused": 5,
}


def of_consumer(series: str, consumer: str) -> str:
    """Give a series the consumer label, if it is about a consumer."""
    of_worker = series.startswith(("order_relay_fallback_", "order_relay_published_", "process_"))
    return series if of_worker else series.replace("{", f'{{consumer="{consumer}", ', 1)


def test_an_event_is_in_one_bar(tmp_path: Path) -> None:
    """Of the bars that Grafana queries, a minute apart, exactly one has the event."""
    # Grafana's $__rate_interval: the step of a minute, plus a scrape interval.
    (bars,) = (
        question.asked({"job": JOB, "worker": "a", "consumer": ".*", "__rate_interval": "75s"})
        for question in questions()
        if question.panel == "Dead letters, by reason"
    )
    series = {
        "series": of_consumer(
            'order_relay_dead_letters_total{job="order-relay", instance="a", reason="x"}', "coupons"
        ),
        "values": "10x20 11x60",
    }
    cases = [
        {
            "expr": f"round({bars})",
            "eval_time": f"{minute}m{after}s",
            "exp_samples": [{"labels": '{reason="x"}', "value": int(minute == first)}],
        }
        # Minutes begin anywhere between two scrapes; the event is scraped at 5m15s.
        for after, first in ((1, 6), (7, 6), (14, 6), (16, 5), (29, 5), (44, 5), (59, 5))
        for minute in (4, 5, 6, 7, 8)
    ]
    suite = {"tests": [{"interval": "15s", "input_series": [series], "promql_expr_test": cases}]}
    (tmp_path / "bars.yml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    done = promtool("test", "rules", "bars.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_of_several_workers_are_right(tmp_path: Path) -> None:
    """Shared values count once, each worker's own values are added, the worst state is shown."""
    variables = {
        "job": JOB, "worker": "(a|b|c)", "consumer": "order_logging", "__range": "15m",
        "__range_s": "900", "__rate_interval": "1m",
    }  # fmt: skip
    cases: list[dict[str, Any]] = [
        {
            "expr": question.asked(variables),
            "eval_time": "15m",
            "exp_samples": [{"labels": "{}", "value": FIGURES[question.panel]}],
        }
        for question in questions()
        if question.panel in FIGURES
    ]
    assert len(cases) >= len(FIGURES)
    series = [
        {"series": of_consumer(name, "order_logging"), "values": values}
        for name, values in WORKERS.items()
    ]
    # Another consumer's series, which must not count.
    series += [
        {"series": of_consumer(name, "coupons"), "values": "1000x20"}
        for name in WORKERS
        if of_consumer(name, "coupons") != name
    ]
    suite = {
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": cases}],
    }
    (tmp_path / "figures.yml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    done = promtool("test", "rules", "figures.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
